"""How a study stands at this moment, from its files alone: what the terminal shows of it while it goes on.

Reads what was added since the last look; the ledger is read without ever keeping its writers waiting.
"""

from dataclasses import dataclass, field
from pathlib import Path

from budgetlm.budget.ledger import SEARCH, Balance
from budgetlm.config import STUDIES
from budgetlm.errors import StudyError
from budgetlm.files import read_json
from budgetlm.forecast.history import HISTORY, Moment, read_moments
from budgetlm.records import Records, RunRecord, read_curve
from budgetlm.studies import PLAN, RunningRun, ledger_of, running_runs


@dataclass(frozen=True)
class Rung:
    """One rung, and who is on it."""

    seconds: float
    done: int
    running: int
    lost: int
    """Runs that did not come to a measured end."""
    best_bpb: float | None


@dataclass(frozen=True)
class Running:
    """A run under way."""

    run: RunningRun
    seconds: float
    """Device time up to its newest curve point."""
    losses: list[float]
    """Training loss at its curve points."""
    tokens_per_second: float
    bpb: float | None
    """The newest that was measured."""


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment."""

    study: str
    target_seconds: float
    balance: Balance
    devices: list[str]
    """What each device that is held is doing: the name of its run."""
    rungs: list[Rung] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)
    best: Moment | None = None
    final: RunRecord | None = None
    """The newest finished final."""

    @property
    def left_seconds(self) -> float | None:
        """Until the budget is spent at the latest, as time on the wall; None where no device is held."""
        balance = self.balance
        left = balance.budget_seconds - balance.charged_seconds
        return max(0.0, left) / len(self.devices) if self.devices else None


class Camera:
    """Takes snapshots of a study, reading each time what is new.

    Args:
        study: its name.
    """

    def __init__(self, study: str) -> None:
        self.study, self.folder = study, STUDIES / study
        self._records = Records(self.folder)
        self._history = (0, list[Moment]())

    def take(self) -> Snapshot | None:
        """How the study stands; None until it has a plan and a budget."""
        if not (self.folder / PLAN).exists():
            return None
        try:
            plan, ledger, records = read_json(self.folder / PLAN), ledger_of(self.study), self._records.all()
            running = [self._running(run) for run in running_runs(self.folder, records)]
            leases = ledger.open_leases()
            account = next((lease.account for lease in leases if lease.account != SEARCH), SEARCH)
            return Snapshot(
                self.study,
                plan["target_seconds"],
                ledger.balance(account),
                [lease.run for lease in leases for _ in range(lease.devices)],
                [_rung(i, seconds, records, running) for i, seconds in enumerate(plan["rungs"])],
                running,
                self._best(),
                next((r for r in reversed(records) if r.kind == "final" and r.state == "done"), None),
            )
        except StudyError:  # it is only just beginning
            return None

    def _running(self, run: RunningRun) -> Running:
        points = read_curve(self.folder, run.run)
        last = points[-1] if points else None
        bpb = next((p.bpb for p in reversed(points) if p.bpb is not None), None)
        speed = last.tokens_per_second if last else 0.0
        return Running(run, last.seconds if last else 0.0, [p.loss for p in points], speed, bpb)

    def _best(self) -> Moment | None:
        path: Path = self.folder / HISTORY
        size = path.stat().st_size if path.exists() else 0
        if size != self._history[0]:
            self._history = size, read_moments(self.folder)[-1:]
        return self._history[1][-1] if self._history[1] else None


def _rung(place: int, seconds: float, records: list[RunRecord], running: list[Running]) -> Rung:
    own = [r for r in records if r.kind == "rung" and r.rung == place]
    losses = [r.bpb for r in own if r.state == "done" and r.bpb is not None]
    lost = len([r for r in own if r.state in ("failed", "diverged")])
    return Rung(seconds, len(losses), len([r for r in running if r.run.rung == place]), lost, min(losses, default=None))
