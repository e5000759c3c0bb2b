"""A study's folder -> everything that its page is told. Reads files and the ledger; never a live study, neither torch nor optuna."""

from dataclasses import dataclass, field
from typing import Any

from budgetlm.budget.ledger import Ledger
from budgetlm.config import STUDIES, STUDY_FILE
from budgetlm.errors import StudyError
from budgetlm.files import read_json
from budgetlm.forecast.history import Moment, read_moments
from budgetlm.passport import version
from budgetlm.receipts import Receipt, receipts
from budgetlm.records import CurvePoint, RunRecord, read_curve, read_records
from budgetlm.studies import IMPORTANCE, PLAN, PLAN_TEXT, RunningRun, forecast_kept, ledger_of, running_runs

MOST_POINTS, LEAST_POINTS, ALL_POINTS = 120, 10, 150_000
"""Of a curve at most, of a curve at least, and of all curves together."""


@dataclass(frozen=True)
class Account:
    """One account of the study's ledger. Device-seconds."""

    budget_seconds: float
    by_purpose: dict[str, float]
    stopped_because: str


@dataclass(frozen=True)
class Facts:
    """A study as its page knows it: plain values, so that they can be carried in the page itself (`embedded.py`)."""

    name: str
    records: list[RunRecord]
    curves: dict[str, list[CurvePoint]]
    """Of every run, thinned where there are many (`points_for_each`)."""
    plan: dict[str, Any]
    """`plan.json` without what only a scheduler needs."""
    plan_text: str
    study_file: str
    accounts: dict[str, Account]
    importance: dict[str, Any]
    """`trials`, `importance` and `intervals`, as the search has left them."""
    moments: list[Moment]
    forecasts_kept: dict[str, dict[str, float]]
    """Final -> what was expected of it before it began."""
    samples: dict[str, list[dict[str, str]]]
    """Final -> beginnings and how the model goes on."""
    receipts: list[Receipt]
    """Of all studies beside this one, its own included."""
    written_by: str
    """The versions of budgetlm that made the page and that searched, with their commits where they are known."""
    price_per_hour: float = 0.0
    """Of one device; 0 where nobody said."""
    running: list[RunningRun] = field(default_factory=list)
    """Begun and not ended."""

    @property
    def target_seconds(self) -> float:
        """Device-seconds of the final that is searched for."""
        return float(self.plan["target_seconds"])

    @property
    def objectives(self) -> str:
        """What the study is about: the loss alone, or what is weighed against it."""
        return str(self.plan["world"].get("objectives", "loss"))

    @property
    def ceiling_flops(self) -> float:
        """Operations a second that the device's matrix products reach in the precision that was trained in, as its passport measured; 0 if it did not."""
        name = "fp32_gflops" if self.plan["world"]["precision"] == "fp32" else "bf16_gflops"
        return 1e9 * float(self.plan["passport"].get(name, 0.0))

    @property
    def finals(self) -> list[RunRecord]:
        """The finished finals, oldest first."""
        return [r for r in self.records if r.kind == "final" and r.state == "done"]


def points_for_each(curves: int) -> int:
    """How many points each of so many curves may have in a page."""
    return max(LEAST_POINTS, min(MOST_POINTS, ALL_POINTS // max(1, curves)))


def collect(name: str, price_per_hour: float = 0.0) -> Facts:
    """The facts of a study.

    Args:
        price_per_hour: of one device, in any currency; 0 where it is not known.

    Raises:
        StudyError: there is no such study, or it has not begun.
    """
    folder = STUDIES / name
    ledger = ledger_of(name)
    if not (folder / PLAN).exists():
        raise StudyError(f"study {name!r} has not begun its search. Run `budgetlm search --study {name}` first.")
    records = read_records(folder)
    running = running_runs(folder, records)
    finals = {r.run: folder / "finals" / r.run for r in records if r.kind == "final"}
    kept = {run: forecast_kept(home) for run, home in finals.items()}
    samples = {run: home / "samples.json" for run, home in finals.items() if (home / "samples.json").exists()}
    plan = read_json(folder / PLAN)
    names = dict.fromkeys([*(r.run for r in records), *(r.run for r in running)])
    return Facts(
        name=name,
        records=records,
        curves={run: read_curve(folder, run, points_for_each(len(names))) for run in names},
        plan={key: plan[key] for key in ("passport", "world", "rungs", "target_seconds", "space", "default", "data")},
        plan_text=(folder / PLAN_TEXT).read_text(),
        study_file=(folder / STUDY_FILE).read_text(),
        accounts={account: _account(ledger, account) for account in ledger.accounts()},
        importance=read_json(folder / IMPORTANCE) if (folder / IMPORTANCE).exists() else {"trials": 0, "importance": {}},
        moments=read_moments(folder),
        forecasts_kept={run: forecast for run, forecast in kept.items() if forecast},
        samples={run: read_json(path) for run, path in samples.items()},
        receipts=receipts().finals,
        written_by=f"budgetlm {version()}; the search by budgetlm {plan['passport'].get('budgetlm', '')}",
        price_per_hour=price_per_hour,
        running=running,
    )


def _account(ledger: Ledger, name: str) -> Account:
    balance = ledger.balance(name)
    return Account(balance.budget_seconds, {p: s for p, s in balance.by_purpose.items() if s}, balance.stopped_because)
