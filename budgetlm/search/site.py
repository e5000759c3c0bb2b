"""Where a search takes place: what all its trials share, the places that are held, and what is to be done at one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from budgetlm.budget.clock import Clock, Meter, Purpose
from budgetlm.budget.ledger import HEARTBEAT_SECONDS, SEARCH, Lease, Ledger
from budgetlm.data.tokens import Tokens
from budgetlm.forecast.fit import Forecast, Forecaster
from budgetlm.forecast.front import costs_of
from budgetlm.recipe.recipe import Recipe
from budgetlm.records import Records, RunRecord
from budgetlm.search.copies import Shared, Tidier
from budgetlm.search.plan import Plan
from budgetlm.search.trunks import trunks_of
from budgetlm.search.unfinished import Unfinished
from budgetlm.watch import Watcher


@dataclass
class Site:
    """What is the same for all trials of a search."""

    folder: Path
    plan: Plan
    tokens: Tokens
    ledger: Ledger
    clock: Clock
    watcher: Watcher
    should_stop: Callable[[], bool]
    seed: int
    max_restarts: int
    checkpoint_seconds: float = 0.0
    """Between checkpoints of a run; 0 for the interval that costs least."""
    stops_early: bool = True
    """Whether the search ends when going on is worth less than its seconds."""
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    """How often the ledger hears of what is being spent; what is leased counts as spent meanwhile, so that only a crash could tell."""
    shared: Shared | None = None
    """The bucket in which runs leave copies of their checkpoints, if there is one."""
    tidier: Tidier | None = None
    """Who removes them from there again."""
    _fitted: tuple[int, dict[int, Forecast]] = (-1, {})

    def __post_init__(self) -> None:
        self._records = Records(self.folder)
        self.trunks = trunks_of(self.folder, self.plan.world.proxy)
        self._forecaster = Forecaster(self.plan.target_seconds)

    def records(self) -> list[RunRecord]:
        """All runs so far."""
        return self._records.all()

    def finish(self, run: Unfinished) -> None:
        """Forget a run that has its record, weights and all, here and in the bucket."""
        run.finish()
        if self.tidier:
            self.tidier.forget_run(run.label.run)

    def forecasts(self) -> dict[int, Forecast]:
        """Forecasts of all trials from all runs so far."""
        records = self.records()
        if self._fitted[0] != len(records):
            self._fitted = len(records), self._forecaster.fit(records)
        return self._fitted[1]

    def costs(self) -> dict[int, float]:
        """Of the trials' artefacts, where more than the loss counts."""
        return costs_of(self.records(), self.plan.world.objectives)

    def remaining(self) -> float:
        """Device-seconds that nobody has used or leased."""
        balance = self.ledger.balance(SEARCH)
        self.watcher.budget(balance.charged_seconds, balance.budget_seconds)
        return balance.remaining_seconds


@dataclass(frozen=True)
class Step:
    """A rung that a trial is to climb."""

    trial: int
    recipe: Recipe
    rung: int
    run: Unfinished | None = None
    """Set where it was begun before."""
    repeat: int = 0
    """How often the trial was on this rung before: its seed is another one each time."""
    why: str = "new"
    """What it is paid for (`records.REASONS`)."""


@dataclass
class Seat:
    """A place that is held: its lease, its meter, and what is being done there."""

    lease: Lease
    meter: Meter
    place: int = 0
    held_seconds: float = 0.0
    """What the lease was last made to hold, and when."""
    held_at: float = 0.0
    step: Step | None = None
    run: Unfinished | None = None
    began_at: float = 0.0
    """The clock when the run was begun."""
    before: dict[Purpose, float] = field(default_factory=dict)

    def hold(self, seconds: float) -> bool:
        """Make the lease hold `seconds` from now on."""
        self.meter.flush()
        if not self.lease.hold(seconds):
            return False
        self.held_seconds, self.held_at = seconds, self.meter.clock.now()
        return True

    def spent(self) -> dict[Purpose, float]:
        """What the run at this place has spent, by purpose."""
        return {purpose: seconds - self.before[purpose] for purpose, seconds in self.meter.spent.items()}

    def leave(self) -> None:
        """Free the device, and give back what was leased and not used."""
        self.meter.flush()
        self.lease.settle()
