"""The commands. Each parses, calls one function, prints; results go to stdout, progress to stderr.

Exit codes: 0 done, 1 a mistake or shortage that a person can put right (one line says what to do), 2 options that cannot
be parsed, 75 stopped by SIGTERM and to be run again, 130 interrupted. Heavy imports happen inside the commands, so that `--help` is instant.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from budgetlm.allocator import begin_again
from budgetlm.errors import BudgetlmError, ConfigError
from budgetlm.interrupt import INTERRUPTED, RESUME_ME

if TYPE_CHECKING:
    from budgetlm.config import StudyConfig
    from budgetlm.final import FinalResult
    from budgetlm.search.replay import TableReplay
    from budgetlm.search.replay_study import StudyReplay

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Give it a device and a deadline: it finds the language model worth training, trains it, and shows why.",
)

StudyOption = Annotated[str, typer.Option(help="Name of the study, or `best`.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
HoursOption = Annotated[float | None, typer.Option(help="Device-hours that the search may spend in total, e.g. 24 or 0.1.")]
TargetOption = Annotated[float | None, typer.Option(help="Device-hours of the final that it searches for (default 24).")]
NameOption = Annotated[str | None, typer.Option(help="Name of the study; repeat it to go on where it stopped.")]
FileOption = Annotated[Path | None, typer.Option(help="A study file (TOML), e.g. studies/demo.toml.")]
DataOption = Annotated[str | None, typer.Option(help="stdlib, site, a file or folder, or hf:owner/name.")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
DevicesOption = Annotated[
    int | None, typer.Option(help="Devices to use at once, each of them charged; 0 for all GPUs, or one CPU.")
]
ProxyOption = Annotated[
    str | None,
    typer.Option(help="What stands for a recipe on a rung: miniature, or truncate for its own shape in less time."),
]
LimitOption = Annotated[
    float | None, typer.Option(help="Most that the final's weights may weigh on the disk, in megabytes; 0 for no limit.")
]
ObjectivesOption = Annotated[
    str | None, typer.Option(help="What recipes are judged by: loss, or loss,size or loss,latency.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="CPU threads of a worker; 0 for what is fastest, one per core at most.")
]


def main() -> None:
    """Run the command line: a person's mistake is one line, a bug keeps its traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    signal.signal(signal.SIGTERM, _leave)  # until a command knows better
    try:
        app()
    except BudgetlmError as error:
        print(f"budgetlm: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("budgetlm: interrupted; the same command goes on where it stopped.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _leave(_number: int, _frame: object) -> None:
    raise SystemExit(RESUME_ME)


@app.command()
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
) -> None:
    """Search for the best recipe until the hours are spent; run it again to go on.

    budgetlm search --hours 24        budgetlm search --file studies/demo.toml
    """
    wanted = {"seed": seed, "proxy": proxy, "max_model_mb": max_model_mb, "objectives": objectives}
    config = _search_config(study, file, _sections(hours, target_hours, data, device, devices, threads, **wanted))
    if config.budget.hours == 0:
        raise ConfigError("how much may the search spend? Give `--hours`, e.g. `budgetlm search --hours 24`.")
    from budgetlm.search.ahead import load_ahead

    load_ahead(cache_folder(), config.train.allocator)
    from budgetlm.budget.clock import Clock
    from budgetlm.progress import make_watcher

    watcher = make_watcher(config.name)
    try:
        from budgetlm.search.study import search as run_search

        result = run_search(config, cache_folder(), Clock(), watcher)
    finally:
        watcher.close()
    if result.exit_code:
        print(f"budgetlm: study {config.name!r} is interrupted and settled; the same command goes on.", file=sys.stderr)
        raise typer.Exit(result.exit_code)
    from budgetlm.tell import describe_search

    typer.echo(describe_search(config, result))


def _sections(
    hours: float | None,
    target_hours: float | None,
    data: str | None,
    device: str | None,
    devices: int | None,
    threads: int | None,
    **search: object,
) -> dict[str, dict[str, object]]:
    """The options of a search as the sections of a study file; None where an option was not given."""
    return {
        "budget": {"hours": hours, "target_hours": target_hours},
        "data": {"source": data},
        "train": {"device": device, "devices": devices, "threads": threads},
        "search": search,
    }


def _search_config(study: str | None, file: Path | None, options: dict[str, dict[str, object]]) -> "StudyConfig":
    """Study file, then the study's own earlier settings, then the options of this call."""
    import dataclasses

    from budgetlm.config import STUDIES, STUDY_FILE, read_study_file, study_config
    from budgetlm.files import checked_name
    from budgetlm.studies import PLAN

    base = dataclasses.asdict(read_study_file(file)) if file else {}
    name = checked_name(study or str(base.get("name", "default")))
    known = STUDIES / name
    if (known / PLAN).exists() and not file:
        base = dataclasses.asdict(read_study_file(known / STUDY_FILE))
    table = {**base, "name": name}
    for section, values in options.items():
        given = {key: value for key, value in values.items() if value is not None}
        table[section] = {**base.get(section, {}), **given}
    return study_config(table)


@app.command()
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
        config = _search_config(study, file, _sections(hours, target_hours, data, device, devices, threads, **wanted))
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


@app.command()
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
    price_per_hour: Annotated[float, typer.Option(help="Of one device, in any currency.", min=0)] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Show what a search and its final would be, spending nothing.

    Rungs, trials, sizes, tokens, memory, disk and money, for this device or one that is not here:

    budgetlm plan --hours 24 --device h100 --price-per-hour 2.50
    """
    import dataclasses

    from budgetlm.devices import DEVICES
    from budgetlm.progress import make_watcher

    elsewhere = device if device not in (None, "auto", "cpu", "cuda") else None
    here = None if elsewhere else device
    wanted = {"proxy": proxy, "max_model_mb": max_model_mb, "objectives": objectives}
    config = _search_config(study, file, _sections(hours, target_hours, data, here, devices, threads, **wanted))
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


@app.command()
def replay(
    table: Annotated[
        Path | None, typer.Argument(help="A CSV file of finished runs: params, tokens, loss and knobs, perhaps seed.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Of a table: params=1.07e9,tokens=1e11, or flops=6e20.")] = None,
    study: Annotated[str | None, typer.Option(help="Replay this study's own search instead, or `best`.")] = None,
    budget: Annotated[float | None, typer.Option(help="What a search may spend, in runs of the target, e.g. 0.25.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many searches (30 of a table, 10 of a study).", min=1)] = None,
    sampler: Annotated[str, typer.Option(help="Optuna's sampler: tpe, gp, cmaes, qmc or random.")] = "tpe",
    prior: Annotated[str | None, typer.Option(help="`steplaw`: believe a published law of the best lr and batch.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay searches on recorded or modelled losses, in seconds.

    On a table a run costs 6 x params x tokens, and only runs cheaper than the target's are seen. On a study its own search runs on a
    simulated clock, with losses modelled from its runs.

    budgetlm replay runs.csv --target params=1.07e9,tokens=1e11 --budget 0.25        budgetlm replay --study demo --sampler gp
    """
    import dataclasses

    if (table is None) == (study is None):
        raise ConfigError("what is to be replayed? Name a table of runs, or a study with `--study`; one of the two.")
    if table and (target is None or budget is None):
        raise ConfigError(
            "a table needs `--target` and `--budget`, e.g. `--target params=1.07e9,tokens=1e11 --budget 0.25`."
        )
    if study and (target or prior):
        raise ConfigError(
            "`--target` and `--prior` are for tables: a study has its own target, and a default recipe by the laws."
        )
    from budgetlm.progress import make_watcher

    watcher = make_watcher()
    try:
        if table and target and budget is not None:
            from budgetlm.search.replay import replay_table

            result: TableReplay | StudyReplay = replay_table(table, target, budget, seeds or 30, sampler, prior)
        else:
            from budgetlm.search.replay_study import replay_study
            from budgetlm.studies import open_config, resolve

            config = open_config(resolve(study or "best"))
            result = replay_study(config, cache_folder(), watcher, budget, seeds or 10, sampler)
    finally:
        watcher.close()
    typer.echo(json.dumps(dataclasses.asdict(result), indent=1) if as_json else result.summary())


@app.command()
def final(
    study: StudyOption = "best",
    hours: Annotated[float, typer.Option(help="Device-hours of the final; 0 for the study's target.", min=0)] = 0.0,
    trial: Annotated[int | None, typer.Option(help="Train this trial's recipe instead of the chosen one.", min=0)] = None,
    pick: Annotated[
        str, typer.Option(help="Of the front, where more than the loss counts: smallest, fastest, best, or a trial.")
    ] = "best",
    seed: Annotated[int, typer.Option(help="Initialisation and data order.", min=0)] = 0,
) -> None:
    """Train the chosen recipe for the full target; run it again to resume."""
    from budgetlm.budget.clock import Clock
    from budgetlm.progress import make_watcher
    from budgetlm.studies import open_config, resolve

    if trial is not None and pick != "best":
        raise ConfigError(f"`--trial {trial}` and `--pick {pick}` name two recipes. Give one of them.")
    name = resolve(study)
    config = open_config(name)
    begin_again(config.train.allocator)
    watcher = make_watcher(name)
    try:
        from budgetlm.final import final as run_final

        result = run_final(
            name, cache_folder(), Clock(), watcher, config=config, hours=hours, trial=trial, seed=seed, which=pick
        )
    finally:
        watcher.close()
    _tell_final(name, result)


def _tell_final(name: str, result: "FinalResult") -> None:
    """Print how a final ended.

    Raises:
        BudgetlmError: it diverged.
        typer.Exit: it is to be gone on with.
    """
    from budgetlm.tell import describe_final

    record = result.record
    if record.state == "interrupted":
        print("budgetlm: the final is interrupted, its checkpoint written; the same command goes on.", file=sys.stderr)
        raise typer.Exit(result.exit_code)
    if record.state == "diverged":
        raise BudgetlmError(
            f"the final of study {name!r} diverged after {record.steps:,} steps and {record.seconds:.0f} s: {record.error}. "
            f"Try another trial (`--trial N`), or another seed."
        )
    typer.echo(describe_final(name, result))


@app.command()
def run(
    hours: Annotated[float | None, typer.Option(help="Device-hours of everything: search, final, report.")] = None,
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
) -> None:
    """Search, train the final and report within one budget.

    Run it again to go on. The search gets a quarter at most, and ends when another run is worth less than its seconds are to the final.

    budgetlm run --hours 24        budgetlm run --hours 0.5 --data texts/
    """
    wanted = {"seed": seed, "proxy": proxy, "max_model_mb": max_model_mb, "objectives": objectives}
    config = _search_config(study, file, _sections(None, None, data, device, devices, threads, **wanted))
    begin_again(config.train.allocator)
    from budgetlm.search.ahead import load_ahead

    load_ahead(cache_folder(), config.train.allocator)
    from budgetlm.budget.clock import Clock
    from budgetlm.envelope import SEARCH_SHARE, enveloped, run_all
    from budgetlm.progress import make_watcher

    total = hours or config.budget.hours / SEARCH_SHARE
    if not total:
        raise ConfigError("how much may be spent on everything? Give `--hours`, e.g. `budgetlm run --hours 24`.")
    spent = run_all(enveloped(config, total), total, cache_folder(), Clock(), lambda: make_watcher(config.name))
    if spent.final is None:
        print(f"budgetlm: study {config.name!r} is interrupted and settled; the same command goes on.", file=sys.stderr)
        raise typer.Exit(spent.search.exit_code)
    _tell_final(config.name, spent.final)
    typer.echo(
        f"envelope: {spent.seconds:.0f} device-seconds; search {spent.search_seconds:.0f} ({spent.stopped_because}), "
        f"final {spent.final_seconds:.0f}"
    )
    typer.echo(f"report: {spent.report}")


@app.command()
def report(
    study: Annotated[str, typer.Option(help="Name of the study, or `best`; all of them if left out.")] = "",
    every: Annotated[bool, typer.Option("--all", help="One page for each study here, as without `--study`.")] = False,
    page: Annotated[
        Path | None, typer.Option("--from", help="Make it from a page that carries its study, which need not be here.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="A folder for the numbers behind the figures, a CSV file each.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="A file for all these numbers.")] = None,
    png: Annotated[Path | None, typer.Option(help="A folder for the figures as PNG and SVG; needs a browser.")] = None,
    watch: Annotated[bool, typer.Option(help="Serve the page on this machine alone; it follows the running study.")] = False,
    port: Annotated[int, typer.Option(help="Where it is served; 0 for any that is free.", min=0, max=65535)] = 8765,
    price_per_hour: Annotated[float, typer.Option(help="Of one device, in any currency.", min=0)] = 0.0,
) -> None:
    """Write one self-contained HTML file per study under reports/.

    budgetlm report --study demo        budgetlm report --watch        budgetlm report --from page.html --csv numbers/
    """
    if (study and every) or (page and (study or every or watch)):
        raise ConfigError("of `--study`, `--all` and `--from` only one can be meant, and `--watch` follows a study here.")
    from budgetlm.studies import begun_studies, newest_study, resolve

    if watch:
        _serve(resolve(study) if study else newest_study(), port)
        return
    from budgetlm.report.facts import collect
    from budgetlm.report.write import facts_of_page, write_csv, write_json, write_page

    names = [] if page else [resolve(study)] if study else begun_studies()
    if not names and not page:
        raise BudgetlmError("there is no study to report on. Run `budgetlm search --hours …` first.")
    if as_json and len(names) > 1:
        raise ConfigError(f"there are {len(names)} studies, and `--json` names one file. Name a study with `--study`.")
    for facts in [facts_of_page(page)] if page else (collect(name, price_per_hour) for name in names):
        written = write_page(facts)
        typer.echo(written)
        within = Path(facts.name) if len(names) > 1 else Path()
        if csv:
            typer.echo(f"{len(write_csv(facts, csv / within))} files in {csv / within}")
        if as_json:
            typer.echo(write_json(facts, as_json))
        if png:
            from budgetlm.report.pictures import write_pictures

            typer.echo(f"{len(write_pictures(written, png / within))} files in {png / within}")


def _serve(name: str, port: int) -> None:
    """Serve a study's page until Ctrl-C."""
    from budgetlm.report.live import HERE, make_server

    server = make_server(name, port)
    print(f"study {name}: http://{HERE}:{server.server_address[1]}/ follows it; Ctrl-C ends this.", file=sys.stderr)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


@app.command()
def forecast(
    runs: Annotated[
        Path, typer.Argument(help="Finished runs: params, tokens, loss, perhaps seed, and knobs (.csv, .csv.gz).")
    ],
    candidates: Annotated[Path, typer.Argument(help="The same columns without loss.")],
    prior: Annotated[str | None, typer.Option(help="A published law of the best knobs: steplaw. None if left out.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Forecast the loss of runs not yet made from a table of finished ones.

    Mean, 80 % interval, and the probability that a candidate is the best of them.
    """
    import dataclasses

    from budgetlm.forecast.table import describe, forecast_files

    found = forecast_files(runs, candidates, prior)
    typer.echo(json.dumps(dataclasses.asdict(found), indent=1) if as_json else describe(found))


@app.command()
def status(
    watch: Annotated[bool, typer.Option(help="Follow a running study on the terminal until Ctrl-C.")] = False,
    study: Annotated[str, typer.Option(help="Which one to follow; the newest if left out.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show all studies and how they stand."""
    import dataclasses

    from budgetlm.studies import newest_study, resolve, status_of, study_names
    from budgetlm.tell import describe_status

    if watch and sys.stdout.isatty():
        from budgetlm.view import follow

        follow(resolve(study) if study else newest_study())

    rows = [status_of(name) for name in study_names()]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    if not rows:
        typer.echo("no studies yet; `budgetlm search --hours 24` begins one")
    for row in rows:
        typer.echo(describe_status(row))


@app.command()
def receipts(
    study: Annotated[str, typer.Option(help="Name of the study, or `best`; all of them if left out.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show what was forecast of every final, and what came of it.

    Forecast and 80 % interval as they were before the final began, its outcome, and whether it is inside.
    """
    import dataclasses

    from budgetlm.receipts import describe
    from budgetlm.receipts import receipts as collect
    from budgetlm.studies import resolve

    found = collect([resolve(study)] if study else None)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=1))
    elif not found.finals:
        typer.echo("no finals yet; `budgetlm final --study best` trains one")
    else:
        typer.echo(describe(found))


@app.command()
def budget(
    study: StudyOption = "best",
    trials: Annotated[int, typer.Option(help="Show so many of the dearest trials; 0 for all.", min=0)] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show where a study's device-seconds went, and why it stopped.

    By purpose, and by trial for the dearest of them.
    """
    import dataclasses

    from budgetlm.studies import balance_as_dict, front_to_pick, ledger_of, resolve, trial_costs
    from budgetlm.tell import describe_accounts

    name = resolve(study)
    ledger, front = ledger_of(name), front_to_pick(name)
    search = balance_as_dict(name, ledger.balance())
    finals = {
        account: balance_as_dict(name, ledger.balance(account)) for account in ledger.accounts() if account != "search"
    }
    costs = trial_costs(name, ledger)
    if as_json:
        dear, points = ([dataclasses.asdict(one) for one in many] for many in (costs, front))
        typer.echo(json.dumps({**search, "trials": dear, "finals": finals, "front": points}, indent=1))
    else:
        typer.echo(describe_accounts({"search": search, **finals}, costs, trials, front))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to go on from; empty begins a new text.")] = "",
    study: StudyOption = "best",
    model: Annotated[Path | None, typer.Option(help="A model folder, instead of a study's newest final.")] = None,
    tokens: Annotated[int, typer.Option(help="At most so many tokens.", min=1)] = 200,
    temperature: Annotated[float, typer.Option(help="Higher is wilder; 0 takes the likeliest.", min=0)] = 0.8,
    top_k: Annotated[int, typer.Option(help="Choose among so many tokens; 0 for all.", min=0)] = 50,
    seed: Annotated[int, typer.Option(help="Another seed, another text.")] = 0,
) -> None:
    """Let a trained model go on from a prompt."""
    from budgetlm.studies import finals_of, open_config, resolve

    if model is None:
        folder = open_config(resolve(study)).folder
        finals = finals_of(folder)
        if not finals:
            raise BudgetlmError(
                f"study {folder.name!r} has no trained final. Run `budgetlm final --study {folder.name}` first."
            )
        model = folder / "finals" / finals[-1].run / "model"
    from budgetlm.compress.artefact import load_artefact
    from budgetlm.model.generate import generate as sample

    network, tokenizer, end = load_artefact(model)
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids or [end]
    shown = ""
    made: list[int] = []
    typer.echo(prompt, nl=False)
    for token in sample(network, ids, tokens, temperature=temperature, top_k=top_k, seed=seed, end_of_text=end):
        made.append(token)
        text = tokenizer.decode(made)
        if not text.endswith("\ufffd"):  # half a character: wait for its other bytes
            typer.echo(text[len(shown) :], nl=False)
            shown = text
    typer.echo()


def cache_folder() -> Path:
    """Where prepared data and calibrations are kept: `BUDGETLM_CACHE`, or the user's cache folder."""
    given = os.environ.get("BUDGETLM_CACHE")
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(root) / "budgetlm"
