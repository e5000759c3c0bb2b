"""budgetlm from Python: what the commands do, as functions, and searches whose trials a function of one's own trains.

    import budgetlm
    study = budgetlm.search(hours=1, target_hours=24, data="texts/")
    study.records(), study.forecasts(), study.choice()
    budgetlm.final(study.name)
    budgetlm.report(study.name)

Names and meanings are those of the commands and of a study file; studies are the same folders, so that both can go on with what the other began.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from budgetlm.budget.clock import Clock
from budgetlm.commands.options import cache_folder
from budgetlm.config import StudyConfig, study_config
from budgetlm.errors import StudyError
from budgetlm.forecast.choose import Choice, choose
from budgetlm.forecast.fit import fit
from budgetlm.inherit import inherited
from budgetlm.progress import make_watcher
from budgetlm.recipe.recipe import PARAMETERS
from budgetlm.records import read_records
from budgetlm.studies import open_config, resolve
from budgetlm.watch import Watcher

if TYPE_CHECKING:
    import optuna

    from budgetlm.final import FinalResult
    from budgetlm.search.study import Hire
    from budgetlm.train.config import RunConfig
    from budgetlm.workers.own import Training

UNASKED = ("schedule", "warmup", "cooldown", "optimizer", "weight_decay")
"""What a search varies without being asked to, beside size, batch and rate. A function of one's own has to be told of it, or it would be searched in vain."""
NO_TEXT = "a function of your own reads no text of budgetlm's\n"
"""What stands where a study has its text, of one whose trials a function trains that was given none."""


@dataclass(frozen=True)
class Study:
    """A study, looked at."""

    name: str

    @property
    def config(self) -> StudyConfig:
        """What it was asked to do."""
        return open_config(self.name)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.config.folder

    def records(self) -> pd.DataFrame:
        """A row for each run, rungs and finals; a recipe's parameters are columns `recipe.…`, its run's `config.…`."""
        return pd.json_normalize([dataclasses.asdict(record) for record in read_records(self.folder)])

    def forecasts(self) -> pd.DataFrame:
        """A row for each trial: what it is expected to reach at the target, and the central 80 % interval."""
        found = fit(read_records(self.folder), self._target_seconds)
        rows = [(trial, forecast.mean, *forecast.interval) for trial, forecast in sorted(found.items())]
        return pd.DataFrame(rows, columns=["trial", "mean", "low", "high"])

    def choice(self) -> Choice | None:
        """The chosen trial and why; None while no trial has finished a rung."""
        return choose(read_records(self.folder), self._target_seconds, objectives=self.config.search.objectives)

    def final_run(self) -> "RunConfig":
        """The chosen recipe as a run at the target, for a training function of one's own.

        Raises:
            StudyError: nothing is chosen yet.
        """
        from budgetlm.recipe.recipe import recipe_from
        from budgetlm.recipe.scale import at_target
        from budgetlm.search.plan import load_plan

        plan, choice = load_plan(self.folder), self.choice()
        if plan is None or choice is None:
            raise StudyError(f"study {self.name!r} has no finished trial to choose from. Give `search` more hours.")
        recipe = next(r.recipe for r in read_records(self.folder) if r.trial == choice.trial)
        return at_target(recipe_from(recipe), plan.target_seconds, plan.world, seed=self.config.search.seed)

    def optuna(self) -> "optuna.Study":
        """The same as Optuna knows it, to be read: every trial with its parameters, and its forecast as value."""
        import optuna

        return optuna.load_study(study_name=self.name, storage=self.config.database)

    @property
    def _target_seconds(self) -> float:
        return self.config.budget.target_seconds


def search(
    hours: float,
    target_hours: float = 24.0,
    *,
    study: str = "default",
    data: str | None = None,
    space: Mapping[str, Any] | None = None,
    train: "Training | None" = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    quiet: bool = False,
) -> Study:
    """Search for the best recipe until the hours are spent; call it again, with more, to go on.

    Args:
        hours: device-hours that the search may spend in total.
        target_hours: of the final that it searches for.
        study: its name.
        data: where the text comes from, as `--data`.
        space: what is searched, as `[space]` in a study file. With `train`, what it does not name stays as it is, but for size, batch and rate.
        train: trains a rung in place of budgetlm (`workers/own.py`): called with a run and a clock, returns its loss. It works in a
            thread of this process, and is charged by that clock, which it looks at every second or so. Text and speeds are budgetlm's guesses then.
        settings: other sections of a study file, e.g. `{"search": {"seed": 1}}`.
        quiet: whether nothing is shown on stderr.

    Raises:
        BudgetlmError: what the command would say in one line.
        KeyboardInterrupt: it was interrupted, and is settled; another call goes on.
    """
    from budgetlm.search.study import search as run_search

    sections: dict[str, dict[str, Any]] = {name: dict(values) for name, values in (settings or {}).items()}
    sections["budget"] = {"hours": hours, "target_hours": target_hours}
    source = data or (str(_no_text()) if train else None)
    if source:
        sections["data"] = {**({} if data else {"vocab_size": 257}), **sections.get("data", {}), "source": source}
    wanted = {**({name: PARAMETERS[name].default for name in UNASKED} if train else {}), **(space or {})}
    config = inherited(study_config({"name": study, **sections, "space": wanted}))
    watcher = Watcher() if quiet else make_watcher(config.name)
    result = run_search(config, cache_folder(), Clock(), watcher, _hire(train) if train else None, lends=train is None)
    if result.exit_code:
        raise KeyboardInterrupt(f"study {study!r} is interrupted and settled; the same call goes on")
    return Study(study)


def _no_text() -> Path:
    folder = cache_folder() / "no-text"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(100):
        (folder / f"{number:02}.txt").write_text(f"{number} {NO_TEXT}")
    return folder


def _hire(train: "Training") -> "Hire":
    from budgetlm.search.jobs import CalibrateJob, RungJob, ThreadsJob
    from budgetlm.search.world import guessed_calibration
    from budgetlm.workers.job import Desk, Job, Workers
    from budgetlm.workers.own import OwnJob, Threaded

    @dataclass(frozen=True)
    class Known:
        """What needs no measuring, where budgetlm trains nothing."""

        answer: Any

        def work(self, desk: Desk) -> Any:  # noqa: ARG002
            return self.answer

    def hire(config: StudyConfig, clock: Clock, _should_stop: object) -> Workers:
        def instead(job: Job) -> Job:
            if isinstance(job, RungJob):
                return OwnJob(train, job.label, job.config)
            if isinstance(job, ThreadsJob):
                return Known(job.passport)
            if isinstance(job, CalibrateJob):
                return Known(guessed_calibration(config, job.passport))
            return job

        return Threaded(clock, instead)

    return hire


def final(
    study: str = "best",
    hours: float = 0.0,
    *,
    trial: int | None = None,
    seed: int = 0,
    init: str | Path | None = None,
    train: "Training | None" = None,
    quiet: bool = False,
) -> "FinalResult":
    """Train the chosen recipe for the full target; call it again to resume.

    Args:
        study: its name, or `best`.
        hours: device-hours; 0 for the study's target.
        trial: whose recipe, instead of the chosen one.
        seed: initialisation and data order.
        init: folder of a model whose weights this final alone begins from.
        train: trains it in place of budgetlm, as in `search`; it keeps what it has trained itself, and an interrupted one begins again. Needed where such a
            function trained the study's rungs, whose recipes mean something to it alone.
        quiet: whether nothing is shown on stderr.

    Raises:
        BudgetlmError: what the command would say in one line.
    """
    from budgetlm.final import final as run_final

    name = resolve(study)
    watcher = Watcher() if quiet else make_watcher(name)
    return run_final(
        name,
        cache_folder(),
        Clock(),
        watcher,
        config=open_config(name),
        hours=hours,
        trial=trial,
        seed=seed,
        init=Path(init) if init else None,
        train_it=train,
    )


def report(study: str = "best", price_per_hour: float = 0.0) -> Path:
    """Write the study's page, and return where it is.

    Raises:
        BudgetlmError: what the command would say in one line.
    """
    from budgetlm.report.write import report as write_report

    return write_report(resolve(study), price_per_hour)


def load_study(name: str = "best") -> Study:
    """A study by its name, or the best of all.

    Raises:
        StudyError: there is none.
    """
    return Study(resolve(name))
