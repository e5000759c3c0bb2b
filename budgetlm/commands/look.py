"""Look at studies: reports, how they stand, what they spent, what came of their forecasts."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from budgetlm.commands.options import JsonOption, StudyOption
from budgetlm.errors import BudgetlmError, ConfigError


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
    typer.echo(f"study {name}: http://{HERE}:{server.server_address[1]}/ follows it; Ctrl-C ends this.", err=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


def status(
    watch: Annotated[bool, typer.Option(help="Follow a running study on the terminal until Ctrl-C.")] = False,
    study: Annotated[str, typer.Option(help="Which one to follow; the newest if left out.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show all studies and how they stand.

    budgetlm status        budgetlm status --watch --study demo
    """
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


def receipts(
    study: Annotated[str, typer.Option(help="Name of the study, or `best`; all of them if left out.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show what was forecast of every final, and what came of it.

    Forecast and 80 % interval as they were before the final began, its outcome, and whether it is inside.

    budgetlm receipts        budgetlm receipts --study demo --json
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


def budget(
    study: StudyOption = "best",
    trials: Annotated[int, typer.Option(help="Show so many of the dearest trials; 0 for all.", min=0)] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show where a study's device-seconds went, and why it stopped.

    By purpose, and by trial for the dearest of them.

    budgetlm budget --study demo --trials 0
    """
    import dataclasses

    from budgetlm.studies import FINETUNE, balance_as_dict, front_to_pick, ledger_of, resolve, trial_costs
    from budgetlm.tell import describe_accounts

    name = resolve(study)
    ledger, front = ledger_of(name), front_to_pick(name)
    search = balance_as_dict(name, ledger.balance())
    others = {
        account: balance_as_dict(name, ledger.balance(account)) for account in ledger.accounts() if account != "search"
    }
    costs = trial_costs(name, ledger)
    if as_json:
        dear, points = ([dataclasses.asdict(one) for one in many] for many in (costs, front))
        taught = {account: others.pop(account) for account in list(others) if account.startswith(FINETUNE)}
        said = {**search, "trials": dear, "finals": others, "finetuned": taught, "front": points}
        typer.echo(json.dumps(said, indent=1))
    else:
        typer.echo(describe_accounts({"search": search, **others}, costs, trials, front))


def track(
    to: Annotated[list[str], typer.Option(help="tensorboard, mlflow, wandb or trackio; may be repeated.")],
    study: StudyOption = "best",
) -> None:
    """Tell other tools of a study's runs, each run once.

    budgetlm track --to mlflow        budgetlm track --study demo --to tensorboard --to wandb
    """
    from budgetlm.studies import resolve
    from budgetlm.track import Tracking

    name = resolve(study)
    typer.echo(f"study {name}: {Tracking(name, to).send()} runs told")
