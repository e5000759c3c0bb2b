"""What is known of the studies on disk: which there are, how they stand, which is best. Reads only; no torch, no optuna."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from budgetlm.budget.ledger import SEARCH, Balance, Ledger, read_ledger
from budgetlm.config import DATABASE, STUDIES, STUDY_FILE, StudyConfig, read_study_file
from budgetlm.errors import StudyError
from budgetlm.files import checked_name, read_json
from budgetlm.forecast.choose import Choice, choose
from budgetlm.forecast.front import FrontPoint
from budgetlm.forecast.worth import SAVED
from budgetlm.passport import Passport
from budgetlm.records import RunRecord, read_records

LOCK, PLAN, PLAN_TEXT, IMPORTANCE = "search.lock", "plan.json", "plan.txt", "importance.json"
"""Files of a study's folder, beside its records."""
UNFINISHED = "unfinished"
"""Runs that were begun (`search/unfinished.py`)."""
FINETUNE = "finetune-"
"""What accounts of fine-tunings begin with."""
FORECAST = "forecast.json"
"""In a final's folder: what was expected of it before it began."""
REPORTS = Path("reports")
BEST = "best"


@dataclass(frozen=True)
class StudyStatus:
    """How a study stands."""

    name: str
    state: str
    """`new`, `searching`, `stopped` (budget is left), `done` (likewise, but not worth spending) or `spent`."""
    trials: int
    best_forecast_bpb: float | None
    final_bpb: float | None
    """The best of its finals."""
    report: str | None
    """Path of its report, if one was written."""
    objectives: str
    """What its recipes are judged by."""
    max_model_mb: float
    """Most that its final may weigh; 0 for no limit."""
    front: list[FrontPoint]
    """Where more than the loss counts: what there is to pick from, the cheapest first."""


def study_names() -> list[str]:
    """Names of all studies here."""
    return sorted(p.parent.name for p in STUDIES.glob(f"*/{STUDY_FILE}"))


def begun_studies() -> list[str]:
    """Names of those that have settled their plan, so that there is something to report on."""
    return [name for name in study_names() if (STUDIES / name / PLAN).exists()]


def newest_study() -> str:
    """The study that was worked on last.

    Raises:
        StudyError: none has begun.
    """
    begun = begun_studies()
    if not begun:
        raise StudyError("no study here has begun. Run `budgetlm search --hours …` first.")
    touched = {name: [p.stat().st_mtime for p in (STUDIES / name).glob("*") if p.is_file()] for name in begun}
    return max(begun, key=lambda name: max(touched[name]))


def open_config(name: str) -> StudyConfig:
    """The configuration that a study was begun with.

    Raises:
        StudyError: there is no such study.
    """
    path = STUDIES / checked_name(name) / STUDY_FILE
    if not path.exists():
        known = ", ".join(study_names()) or "none yet"
        raise StudyError(
            f"there is no study {name!r} under {STUDIES}/ (known: {known}). `budgetlm search --study {name} --hours …` begins it."
        )
    return read_study_file(path)


def ledger_of(name: str) -> Ledger:
    """The ledger of an existing study, for reading.

    Raises:
        StudyError: there is no such study, or it has spent nothing yet.
    """
    config = open_config(name)
    if not has_ledger(config):
        raise StudyError(f"study {name!r} has no ledger yet: nothing was spent. Run `budgetlm search --study {name}`.")
    return read_ledger(config.database, config.scope)


def has_ledger(config: StudyConfig) -> bool:
    """Whether a study has a database; of one that lies on a server that is taken for granted."""
    return bool(config.search.storage) or (config.folder / DATABASE).exists()


@dataclass(frozen=True)
class TrialCost:
    """What one trial has cost, and what it came to."""

    trial: int
    seconds: float
    """Device-seconds charged, all of its rungs and attempts together."""
    by_purpose: dict[str, float]
    rungs: int
    """Rungs that it has finished."""
    attempts: int
    """Parts that its runs were done in; more than its runs where some were cut off and gone on with."""
    ended: str
    """State of its last run, with the cause where it is not done."""


def trial_costs(name: str, ledger: Ledger) -> list[TrialCost]:
    """What every trial of a study has cost, the dearest first; the ledger has the seconds, the records the rest."""
    records = [r for r in read_records(STUDIES / name) if r.kind == "rung"]
    trial_of = {r.run: r.trial for r in records}
    spent: dict[int, dict[str, float]] = {}
    for run, by_purpose in ledger.by_run(SEARCH).items():
        number = trial_of.get(run, _trial_named(run))
        if number is not None:
            total = spent.setdefault(number, {})
            for purpose, seconds in by_purpose.items():
                total[purpose] = total.get(purpose, 0.0) + seconds
    costs = []
    for number, purposes in spent.items():
        own = [r for r in records if r.trial == number]
        last = f"{own[-1].state}{f' ({own[-1].cause})' if own[-1].cause else ''}" if own else "running"
        done = len([r for r in own if r.state == "done"])
        costs.append(TrialCost(number, sum(purposes.values()), purposes, done, len(own), last))
    return sorted(costs, key=lambda cost: -cost.seconds)


def _trial_named(run: str) -> int | None:
    """The trial of a run that has no record yet, from its name."""
    found = re.fullmatch(r"trial(\d+)-rung\d+(-repeat\d+)?", run)
    return int(found[1]) if found else None


def balance_as_dict(name: str, balance: Balance) -> dict[str, Any]:
    """One account as `budgetlm budget --json` prints it. Seconds."""
    return {
        "study": name,
        "budget_seconds": balance.budget_seconds,
        "charged_seconds": balance.charged_seconds,
        "leased_seconds": balance.leased_seconds,
        "remaining_seconds": balance.remaining_seconds,
        "by_purpose": balance.by_purpose,
        "stopped_because": balance.stopped_because,
    }


@dataclass(frozen=True)
class RunningRun:
    """A run that was begun and has no outcome yet."""

    run: str
    trial: int
    rung: int
    """-1 for a final."""
    planned_seconds: float
    why: str
    recipe: dict[str, Any]


def running_runs(folder: Path, records: Sequence[RunRecord] | None = None) -> list[RunningRun]:
    """The runs under way in a study, or cut off and to be gone on with; finals too.

    Args:
        folder: of the study.
        records: of the study, where they are known already.
    """
    records = read_records(folder) if records is None else records
    ended = {r.run for r in records if r.state != "interrupted"}
    found = []
    for kept in sorted((folder / UNFINISHED).glob("*/run.json")):
        try:
            value = json.loads(kept.read_text())
            label, seconds = value["label"], float(value["config"]["seconds"])
            found.append(
                RunningRun(label["run"], label["trial"], label["rung"], seconds, label.get("why", ""), label["recipe"])
            )
        except (OSError, ValueError, KeyError, TypeError):  # it is being written, or ends this moment
            continue
    for home in sorted((folder / "finals").glob("final-trial*")):
        named = re.fullmatch(r"final-trial(\d+)-(\d+)s-seed\d+(-init\w+)?", home.name)
        if named and home.name not in ended and (home / "config.json").exists():
            trial = int(named[1])
            recipe = next((r.recipe for r in records if r.trial == trial), {})
            found.append(RunningRun(home.name, trial, -1, float(named[2]), "final", recipe))
    return [run for run in found if run.run not in ended]


def target_seconds(folder: Path) -> float | None:
    """The target of a study, if it has settled its plan."""
    return float(read_json(folder / PLAN)["target_seconds"]) if (folder / PLAN).exists() else None


def choice_of(folder: Path) -> Choice | None:
    """What a study would choose now."""
    if not (folder / PLAN).exists():
        return None
    plan = read_json(folder / PLAN)
    objectives = plan["world"].get("objectives", "loss")
    return choose(read_records(folder), float(plan["target_seconds"]), objectives=objectives)


def finals_of(folder: Path) -> list[RunRecord]:
    """The finished finals of a study, oldest first."""
    return [r for r in read_records(folder) if r.kind == "final" and r.state == "done"]


def newest_final(name: str) -> tuple[Path, RunRecord]:
    """The model folder of a study's newest finished final, and its record.

    Raises:
        StudyError: there is none.
    """
    folder = open_config(name).folder
    finals = finals_of(folder)
    if not finals:
        raise StudyError(f"study {name!r} has no trained final. Run `budgetlm final --study {name}` first.")
    return folder / "finals" / finals[-1].run / "model", finals[-1]


def forecast_kept(final: Path) -> dict[str, float] | None:
    """Mean and interval that were expected of a final before it began; None where nothing was.

    Args:
        final: its folder.
    """
    if not (final / FORECAST).exists():
        return None
    kept: dict[str, float] = read_json(final / FORECAST)
    return None if kept["mean"] is None else kept


def status_of(name: str) -> StudyStatus:
    """How a study stands."""
    folder = STUDIES / checked_name(name)
    choice, wanted = choice_of(folder), open_config(name).search
    finals = [r.bpb for r in finals_of(folder) if r.bpb is not None]
    report = REPORTS / f"{name}.html"
    return StudyStatus(
        name=name,
        state=state_of(open_config(name)),
        trials=len({r.trial for r in read_records(folder) if r.kind == "rung"}),
        best_forecast_bpb=choice.forecast.mean if choice and not choice.ranks_only else None,
        final_bpb=min(finals) if finals else None,
        report=str(report) if report.exists() else None,
        objectives=wanted.objectives,
        max_model_mb=wanted.max_model_mb,
        front=list(choice.front) if choice else [],
    )


def front_to_pick(name: str) -> list[FrontPoint]:
    """A study's front; where the loss is all that counts there is none, and nothing is forecast to say so."""
    config = open_config(name)
    choice = choice_of(config.folder) if config.search.objectives != "loss" else None
    return list(choice.front) if choice else []


def state_of(config: StudyConfig) -> str:
    """How a study stands, in the words of `StudyStatus.state`."""
    folder = config.folder
    try:
        with FileLock(folder / LOCK, timeout=0):
            pass
    except Timeout:
        return "searching"
    if not has_ledger(config) or not (folder / PLAN).exists():
        return "new"
    return ended_as(config)


def ended_as(config: StudyConfig) -> str:
    """How the search of a study that nobody is at has ended, by its account: `done`, `spent` or `stopped`."""
    balance = read_ledger(config.database, config.scope).balance(SEARCH)
    if balance.stopped_because.endswith(SAVED):
        return "done"
    return "spent" if balance.stopped_because.startswith("the budget is spent") else "stopped"


def resolve(name: str) -> str:
    """A study's name from what a person asked for.

    `best` is the one with the best final, or forecast, among those of the same data, machine, objective, objectives and limit as the newest.

    Raises:
        StudyError: there is no such study, or none with a finished trial.
    """
    if name != BEST or BEST in study_names():
        return open_config(name).folder.name
    candidates = []
    for known in study_names():
        folder = STUDIES / known
        choice = choice_of(folder)
        if choice is None:
            continue
        passport = Passport(**read_json(folder / PLAN)["passport"]).id
        config = open_config(known)
        group = json.dumps(
            [config.data.source, passport, config.search.objectives, config.search.max_model_mb, config.model.objective]
        )
        finals = [r.bpb for r in finals_of(folder) if r.bpb is not None]
        value = min(finals) if finals else choice.forecast.mean
        candidates.append((group, (folder / "runs.jsonl").stat().st_mtime, value, known))
    if not candidates:
        raise StudyError("no study here has a finished trial. Run `budgetlm search --hours …` first.")
    newest = max(candidates, key=lambda c: c[1])[0]
    return min((c for c in candidates if c[0] == newest), key=lambda c: c[2])[3]
