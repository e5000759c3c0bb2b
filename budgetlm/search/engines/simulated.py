"""The real search on a clock moved by hand: scheduler, ledger, ladder, forecast and sampler as ever, only nothing is trained."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna

from budgetlm.budget.clock import ManualClock
from budgetlm.budget.database import file_address
from budgetlm.budget.ledger import SEARCH, open_ledger
from budgetlm.config import DATABASE
from budgetlm.data.tokens import Tokens
from budgetlm.records import RunRecord, curve_path
from budgetlm.search.jobs import RungJob
from budgetlm.search.plan import Plan
from budgetlm.search.scheduler import Scheduler
from budgetlm.search.site import Site
from budgetlm.search.trials import Trials
from budgetlm.watch import Watcher
from budgetlm.workers.job import Ended, Event, Job, Spent

BETWEEN_SECONDS = 0.15
"""What a run's process and the asking and telling around it take (`python -m tests.benchmarks.bench_share` measures it)."""

Outcome = Callable[[RungJob], RunRecord]
"""The record that a run would leave."""


@dataclass(frozen=True)
class Simulation:
    """What a search came to."""

    records: list[RunRecord]
    """Of its runs, in the order in which they ended."""
    refused: int
    """Trials that the oracle refused: their finals would not fit the memory, or their artefacts not keep the limit."""
    stopped_because: str


def simulate(
    plan: Plan,
    tokens: Tokens,
    seconds: float,
    outcome: Outcome,
    seed: int,
    places: int = 1,
    sampler: str = "tpe",
    stops_early: bool = True,
) -> Simulation:
    """Run a search without training anything.

    Args:
        plan: of the study.
        tokens: that it would train on; none are read.
        seconds: device-seconds that it may spend.
        outcome: says what every run would come to.
        seed: decides what is sampled.
        places: devices that are used at once.
        sampler: a name that `make_sampler` knows.
        stops_early: whether it ends when going on is worth less than its seconds.

    Raises:
        StudyError: hardly any recipe of the plan's space fits the memory.
        ConfigError: there is no such sampler.
    """
    with tempfile.TemporaryDirectory(prefix="budgetlm-plan-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        folder = Path(name)
        curve_path(folder, "none").parent.mkdir()
        clock, ledger = ManualClock(), open_ledger(file_address(folder / DATABASE), durable=False)
        ledger.set_budget(SEARCH, seconds)
        site = Site(folder, plan, tokens, ledger, clock, Watcher(), lambda: False, seed, 0, stops_early=stops_early)
        trials = Trials(optuna.storages.InMemoryStorage(), "simulated", plan.space, seed, sampler, plan.world.objectives)
        because = Scheduler(site, trials, Simulated(clock, places, outcome)).run()
        return Simulation(site.records(), trials.infeasible(), because)


class Simulated:
    """Workers that take nobody's time: a job ends when its device-seconds have passed on a clock moved by hand."""

    def __init__(self, clock: ManualClock, places: int, outcome: Outcome) -> None:
        self.places = range(places)
        self._clock, self._outcome = clock, outcome
        self._ends: dict[int, tuple[float, RungJob]] = {}

    def delay(self, place: int) -> float:  # noqa: ARG002
        """None."""
        return 0.0

    def start(self, place: int, job: Job, most_seconds: float) -> None:
        """Take a job; it will last `most_seconds`."""
        assert isinstance(job, RungJob)
        self._ends[place] = (self._clock.now() + most_seconds + BETWEEN_SECONDS, job)

    def wait(self, seconds: float) -> list[tuple[int, Event]]:  # noqa: ARG002
        """Let time pass until the next job ends."""
        if not self._ends:
            return []
        place = min(self._ends, key=lambda p: self._ends[p][0])
        end, job = self._ends.pop(place)
        self._clock.move(max(0.0, end - self._clock.now()))
        return [(place, Spent({"train": job.config.seconds})), (place, Ended(self._outcome(job)))]

    def stop(self) -> None:
        """Nothing has to be saved."""

    def kill(self, place: int | None = None, why: str = "") -> None:  # noqa: ARG002
        """Drop what was taken."""
        for at in [at for at in self._ends if place in (at, None)]:
            del self._ends[at]

    def close(self) -> None:
        """Nothing is left running."""
        self._ends.clear()
