"""What begins with a search, and what foretells one."""

import json
from typing import Annotated

import typer

from budgetlm.allocator import begin_again
from budgetlm.commands.final import tell_final
from budgetlm.commands.options import (
    DataOption,
    DeviceOption,
    DevicesOption,
    EngineOption,
    FileOption,
    HoursOption,
    InitOption,
    JsonOption,
    LimitOption,
    NameOption,
    ObjectiveOption,
    ObjectivesOption,
    PickOption,
    ProxyOption,
    RayOption,
    SharedOption,
    StorageOption,
    TargetOption,
    ThreadsOption,
    TrackOption,
    cache_folder,
    search_config,
    sections,
)
from budgetlm.errors import BudgetlmError, ConfigError


def search(
    hours: HoursOption = None,
    target_hours: TargetOption = None,
    study: NameOption = None,
    file: FileOption = None,
    data: DataOption = None,
    device: DeviceOption = None,
    devices: DevicesOption = None,
    threads: ThreadsOption = None,
    seed: Annotated[int | None, typer.Option(help="Decides what is sampled and how runs are initialised.")] = None,
    proxy: ProxyOption = None,
    max_model_mb: LimitOption = None,
    objectives: ObjectivesOption = None,
    objective: ObjectiveOption = None,
    init: InitOption = None,
    storage: StorageOption = None,
    shared: SharedOption = None,
    engine: EngineOption = None,
    ray_address: RayOption = None,
    track: TrackOption = None,
) -> None:
    """Search for the best recipe until the hours are spent; run it again to go on.

    budgetlm search --hours 24        budgetlm search --file studies/demo.toml
    """
    wanted = {
        "seed": seed,
        "proxy": proxy,
        "max_model_mb": max_model_mb,
        "objectives": objectives,
        "storage": storage,
        "shared": shared,
    }
    config = search_config(
        study,
        file,
        sections(hours, target_hours, data, device, devices, threads, objective, wanted, init, engine, ray_address),
    )
    if config.budget.hours == 0:
        raise ConfigError("how much may the search spend? Give `--hours`, e.g. `budgetlm search --hours 24`.")
    from budgetlm.search.ahead import load_ahead

    load_ahead(cache_folder(), config.train.allocator)
    from budgetlm.budget.clock import Clock
    from budgetlm.progress import make_watcher

    watcher = make_watcher(config.name)
    try:
        from budgetlm.search.study import search as run_search
        from budgetlm.track import tracking

        with tracking(config.name, track or [], watcher.note):
            result = run_search(config, cache_folder(), Clock(), watcher)
    finally:
        watcher.close()
    if result.exit_code:
        typer.echo(f"budgetlm: study {config.name!r} is interrupted and settled; the same command goes on.", err=True)
        raise typer.Exit(result.exit_code)
    from budgetlm.tell import describe_search

    typer.echo(describe_search(config, result))


def worker(
    study: NameOption = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="How this machine reaches the study's database, where that is not as its file says: postgresql+psycopg://user@host/database."
        ),
    ] = None,
    shared: Annotated[
        str | None,
        typer.Option(
            help="The study's bucket (`search --shared`), where this machine does not see its folder: s3://bucket/folder."
        ),
    ] = None,
    wait_minutes: Annotated[float, typer.Option(help="For a search that has not begun.", min=0)] = 10.0,
) -> None:
    """Lend a running search another device, and lead it when nobody does.

    As many as there are devices, on every machine that reaches the study's database (`search --storage`) and sees its folder, or its bucket
    (`search --shared`). Each gets one GPU by CUDA_VISIBLE_DEVICES.

    budgetlm worker --study mine        budgetlm worker --study mine --shared s3://bucket/folder
    """
    from budgetlm.budget.clock import Clock
    from budgetlm.files import checked_name
    from budgetlm.progress import make_watcher
    from budgetlm.search.join import join

    name = checked_name(study or "default")
    watcher = make_watcher()
    try:
        lent = join(
            name,
            cache_folder(),
            Clock(),
            watcher,
            storage=storage or "",
            shared=shared or "",
            wait_seconds=60 * wait_minutes,
        )
    finally:
        watcher.close()
    typer.echo(f"study {name}: this worker has done {lent.jobs} runs for others; {lent.because}")
    if lent.exit_code:
        raise typer.Exit(lent.exit_code)


def run(
    hours: Annotated[
        float | None,
        typer.Option(help="Device-hours of everything: search, final, report. From a file or a study: its two together."),
    ] = None,
    study: NameOption = None,
    file: FileOption = None,
    data: DataOption = None,
    device: DeviceOption = None,
    devices: DevicesOption = None,
    threads: ThreadsOption = None,
    seed: Annotated[int | None, typer.Option(help="Decides what is sampled and how runs are initialised.")] = None,
    proxy: ProxyOption = None,
    max_model_mb: LimitOption = None,
    objectives: ObjectivesOption = None,
    objective: ObjectiveOption = None,
    init: InitOption = None,
    pick: PickOption = "best",
    track: TrackOption = None,
) -> None:
    """Search, train the final and report within one budget.

    Run it again to go on. The search gets a quarter at most, and ends when another run is worth less than its seconds are to the final.

    budgetlm run --hours 24        budgetlm run --hours 0.5 --data texts/
    """
    wanted = {"seed": seed, "proxy": proxy, "max_model_mb": max_model_mb, "objectives": objectives}
    config = search_config(study, file, sections(None, None, data, device, devices, threads, objective, wanted, init))
    begin_again(config.train.allocator)
    from budgetlm.search.ahead import load_ahead

    load_ahead(cache_folder(), config.train.allocator)
    from budgetlm.budget.clock import Clock
    from budgetlm.envelope import enveloped, run_all, whole
    from budgetlm.progress import make_watcher
    from budgetlm.track import tracking

    total = hours or whole(config.budget)
    if not total:
        raise ConfigError("how much may be spent on everything? Give `--hours`, e.g. `budgetlm run --hours 24`.")
    with tracking(config.name, track or [], make_watcher().note):
        spent = run_all(
            enveloped(config, total), total, cache_folder(), Clock(), lambda: make_watcher(config.name), which=pick
        )
    if spent.final is None:
        typer.echo(f"budgetlm: study {config.name!r} is interrupted and settled; the same command goes on.", err=True)
        raise typer.Exit(spent.search.exit_code)
    tell_final(config.name, spent.final)
    typer.echo(
        f"envelope: {spent.seconds:.0f} device-seconds; search {spent.search_seconds:.0f} ({spent.stopped_because}), "
        f"final {spent.final_seconds:.0f}"
    )
    typer.echo(f"report: {spent.report}")


def doctor(
    hours: HoursOption = None,
    target_hours: TargetOption = None,
    study: NameOption = None,
    file: FileOption = None,
    data: DataOption = None,
    device: DeviceOption = None,
    devices: DevicesOption = None,
    threads: ThreadsOption = None,
    proxy: ProxyOption = None,
    max_model_mb: LimitOption = None,
    objectives: ObjectivesOption = None,
    objective: ObjectiveOption = None,
    init: InitOption = None,
    try_compile: Annotated[bool, typer.Option("--compile", help="Also try torch.compile; it takes a while.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check what would go wrong with a search before it is paid for.

    Takes the options of `search`, and charges nothing.

    budgetlm doctor --hours 24        budgetlm doctor --file studies/demo.toml
    """
    import dataclasses

    from budgetlm.doctor import Check, examine
    from budgetlm.progress import make_watcher

    watcher = make_watcher()
    try:
        wanted = {"proxy": proxy, "max_model_mb": max_model_mb, "objectives": objectives}
        config = search_config(
            study, file, sections(hours, target_hours, data, device, devices, threads, objective, wanted, init)
        )
        checks = examine(config, cache_folder(), compile=try_compile, watcher=watcher)
    except BudgetlmError as error:  # settings that nothing can be checked for
        checks = [Check("settings", "fault", str(error))]
    finally:
        watcher.close()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(check) for check in checks], indent=1))
    else:
        for check in checks:
            typer.echo(f"{check.state:8} {check.name:10} {check.says}")
    if any(check.state == "fault" for check in checks):
        raise typer.Exit(1)


def plan(
    hours: HoursOption = None,
    target_hours: TargetOption = None,
    study: NameOption = None,
    file: FileOption = None,
    data: DataOption = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu or cuda; or one that is not here: h100, a100, 4090, ... (published figures)."),
    ] = None,
    devices: DevicesOption = None,
    threads: ThreadsOption = None,
    proxy: ProxyOption = None,
    max_model_mb: LimitOption = None,
    objectives: ObjectivesOption = None,
    objective: ObjectiveOption = None,
    init: InitOption = None,
    price_per_hour: Annotated[float, typer.Option(help="Of one device, in any currency.", min=0)] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Show what a search and its final would be, spending nothing.

    Rungs, trials, sizes, tokens, memory, disk and money, for this device or one that is not here.

    budgetlm plan --hours 24 --device h100 --price-per-hour 2.50
    """
    import dataclasses

    from budgetlm.devices import DEVICES
    from budgetlm.progress import make_watcher

    elsewhere = device if device not in (None, "auto", "cpu", "cuda") else None
    here = None if elsewhere else device
    wanted = {"proxy": proxy, "max_model_mb": max_model_mb, "objectives": objectives}
    config = search_config(study, file, sections(hours, target_hours, data, here, devices, threads, objective, wanted, init))
    if config.budget.hours == 0:
        raise ConfigError("what is to be planned? Give `--hours`, e.g. `budgetlm plan --hours 24 --device h100`.")
    watcher = make_watcher()
    try:
        from budgetlm.outlook import describe, look_ahead

        outlook = look_ahead(config, cache_folder(), watcher, device=elsewhere)
    finally:
        watcher.close()
    money = price_per_hour * (outlook.search_hours + outlook.target_hours)
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(outlook), "price": money}, indent=1))
        return
    typer.echo(describe(outlook))
    if elsewhere:
        typer.echo(f"source    {DEVICES[elsewhere].source}")
    if price_per_hour:
        hours_paid = outlook.search_hours + outlook.target_hours
        typer.echo(f"money     {money:,.2f} for {hours_paid:,.4g} device-hours at {price_per_hour:,.4g} an hour")
