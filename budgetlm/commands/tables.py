"""What serves anybody's table of runs: forecasts, and searches replayed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from budgetlm.commands.options import JsonOption, cache_folder
from budgetlm.errors import ConfigError

if TYPE_CHECKING:
    from budgetlm.search.replay import TableReplay
    from budgetlm.search.replay_study import StudyReplay


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

    budgetlm forecast runs.csv candidates.csv --json
    """
    import dataclasses

    from budgetlm.forecast.table import describe, forecast_files

    found = forecast_files(runs, candidates, prior)
    typer.echo(json.dumps(dataclasses.asdict(found), indent=1) if as_json else describe(found))


def replay(
    table: Annotated[
        Path | None, typer.Argument(help="A CSV file of finished runs: params, tokens, loss and knobs, perhaps seed.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Of a table: params=1.07e9,tokens=1e11, or flops=6e20.")] = None,
    study: Annotated[str | None, typer.Option(help="Replay this study's own search instead, or `best`.")] = None,
    budget: Annotated[float | None, typer.Option(help="What a search may spend, in runs of the target, e.g. 0.25.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many searches (30 of a table, 10 of a study).", min=1)] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Who proposes: forecast (of a table the default), or Optuna's tpe (of a study), gp, cmaes, qmc, random."
        ),
    ] = None,
    prior: Annotated[str | None, typer.Option(help="`steplaw`: believe a published law of the best lr and batch.")] = None,
    devices: Annotated[int, typer.Option(help="Of a study: so many devices at once.", min=1)] = 1,
    failures: Annotated[
        str, typer.Option(help="Of a study: how often a device fails: llama3, opt175b, spot, or every so many hours.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Replay searches on recorded or modelled losses, in seconds.

    On a table a run costs 6 x params x tokens, and only runs cheaper than the target's are seen. On a study its own search runs on a
    simulated clock, with losses modelled from its runs, on as many devices as you like, which fail as often as published ones do.

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
    if table and (devices > 1 or failures):
        raise ConfigError("`--devices` and `--failures` are for a study: a table's runs are looked up, one after the other.")
    from budgetlm.progress import make_watcher

    watcher = make_watcher()
    try:
        if table and target and budget is not None:
            from budgetlm.search.replay import replay_table

            result: TableReplay | StudyReplay = replay_table(
                table, target, budget, seeds or 30, sampler or "forecast", prior
            )
        else:
            from budgetlm.search.replay_study import replay_study
            from budgetlm.studies import open_config, resolve

            config = open_config(resolve(study or "best"))
            result = replay_study(config, cache_folder(), watcher, budget, seeds or 10, sampler or "tpe", devices, failures)
    finally:
        watcher.close()
    typer.echo(json.dumps(dataclasses.asdict(result), indent=1) if as_json else result.summary())
