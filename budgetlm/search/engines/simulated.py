"""The real search on a clock moved by hand: scheduler, ledger, ladder, forecast and sampler as ever, only nothing is trained."""

import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna

from budgetlm.budget.clock import ManualClock, Purpose
from budgetlm.budget.database import file_address
from budgetlm.budget.ledger import SEARCH, open_ledger
from budgetlm.config import DATABASE
from budgetlm.data.tokens import Tokens
from budgetlm.forecast.history import Moment, read_moments
from budgetlm.records import RunRecord, curve_path
from budgetlm.search.engines.faults import Faults, Tally, Toll, checkpoint_interval
from budgetlm.search.jobs import RungJob
from budgetlm.search.plan import Plan
from budgetlm.search.scheduler import Scheduler
from budgetlm.search.site import Site
from budgetlm.search.trials import Trials
from budgetlm.search.unfinished import unfinished_runs
from budgetlm.watch import Watcher
from budgetlm.workers.job import Ended, Event, Failure, Job, Spent

BETWEEN_SECONDS = 0.15
"""What a run's process and the asking and telling around it take (`python -m tests.benchmarks.bench_share` measures it)."""
NOTICED, WATCHED = 0.5, 0.7
"""A run that lasts so much longer than its rung is looked after, and from then on this often: when its leases have just run out."""

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
    toll: Toll
    moments: list[Moment]
    """What would have been chosen, at each end of a run."""


def simulate(
    plan: Plan,
    tokens: Tokens,
    seconds: float,
    outcome: Outcome,
    seed: int,
    places: int = 1,
    sampler: str = "tpe",
    stops_early: bool = True,
    faults: Faults | None = None,
    max_restarts: int = 0,
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
        faults: what happens to the devices; nothing if left out.
        max_restarts: how often a run that a device has cut off is gone on with.

    Raises:
        StudyError: hardly any recipe of the plan's space fits the memory.
        ConfigError: there is no such sampler.
    """
    with tempfile.TemporaryDirectory(prefix="budgetlm-plan-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        folder, faults, tally = Path(name), faults or Faults(), Tally()
        curve_path(folder, "none").parent.mkdir()
        clock, ledger = ManualClock(), open_ledger(file_address(folder / DATABASE), durable=False)
        ledger.set_budget(SEARCH, seconds)
        workers = Simulated(clock, places, outcome, faults, tally)
        site = Site(
            folder,
            plan,
            tokens,
            ledger,
            clock,
            Watcher(),
            workers.asked,
            seed,
            max_restarts,
            stops_early=stops_early,
            heartbeat_seconds=math.inf,  # nobody reads this ledger in the middle of a run
        )
        storage, stops = optuna.storages.InMemoryStorage(), -1
        while stops < 0 or workers.asked():  # repeated as often as it was asked to stop
            workers.begin()
            trials = _Counted(storage, "simulated", plan.space, seed, sampler, plan.world.objectives)
            trials.tally, stops = tally, stops + 1
            because = Scheduler(site, trials, workers).run()
        balance, open_ones = ledger.balance(SEARCH), len(ledger.open_leases()) + len(unfinished_runs(folder))
        running, given_up = len(trials.running()), trials.failed()
        last = {r.trial: r.cause for r in site.records() if r.state != "done"}
        toll = Toll(
            devices=places,
            wall_seconds=clock.now(),
            charged=balance.charged_seconds,
            useful=sum(r.planned_seconds for r in site.records() if r.state == "done"),
            redone=tally.redone,
            restarting=tally.restarting,
            failures=tally.failures,
            stops=stops,
            overspent=max(0.0, balance.charged_seconds - seconds),
            lost_trials=running + sum(last.get(number) == "device" for number in given_up),
            unpaid_trials=sum(last.get(number) != "device" for number in given_up),
            told_twice=sum(times > 1 for times in tally.told.values()),
            zombies=open_ones + running,
        )
        return Simulation(site.records(), trials.infeasible(), because, toll, read_moments(folder))


class _Counted(Trials):
    """Trials that count how often they are told of."""

    tally: Tally

    def tell(self, number: int, bpb: float, *cost: float) -> None:
        self._count(number)
        super().tell(number, bpb, *cost)

    def tell_infeasible(self, number: int, violations: Mapping[str, float]) -> None:
        self._count(number)
        super().tell_infeasible(number, violations)

    def tell_failed(self, number: int) -> None:
        self._count(number)
        super().tell_failed(number)

    def failed(self) -> list[int]:
        """Those that came to nothing by no fault of their recipes."""
        return [t.number for t in self._study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.FAIL])]

    def _count(self, number: int) -> None:
        self.tally.told[number] = self.tally.told.get(number, 0) + 1


@dataclass
class _Work:
    """A job at its place, and when and how its time there will end."""

    job: RungJob
    taken: float
    begins: float
    """When the device works (again)."""
    done: float
    """Seconds of the run that were trained and kept before."""
    ends: float
    wakes: float
    """When somebody has to look after it, because it lasts longer than was expected."""
    failure: Failure | None = None
    asked: bool = False

    def progress(self, now: float) -> float:
        """Seconds of the run that are trained by now."""
        return min(self.done + max(0.0, now - self.begins), self.job.config.seconds)


class Simulated:
    """Workers that take nobody's time: a job ends when its device-seconds have passed on a clock moved by hand, or its device fails.

    A run that was cut off goes on from where its last checkpoint would be.
    """

    def __init__(
        self, clock: ManualClock, places: int, outcome: Outcome, faults: Faults | None = None, tally: Tally | None = None
    ) -> None:
        self.places = range(places)
        self._clock, self._outcome = clock, outcome
        self._faults, self._tally = faults or Faults(), tally or Tally()
        self._chance = np.random.default_rng(self._faults.seed)
        self._work: dict[int, _Work] = {}
        self._works_at = [0.0] * places
        self._kept: dict[str, float] = {}
        self._stop_at = math.inf

    def begin(self) -> None:
        """Count the time to the next stop from now on."""
        self._stop_at = self._clock.now() + self._faults.stop_seconds

    def asked(self) -> bool:
        """Whether the search has been asked to stop."""
        return self._clock.now() >= self._stop_at

    def delay(self, place: int) -> float:
        """Until a device that has failed works again."""
        return max(0.0, self._works_at[place] - self._clock.now())

    def start(self, place: int, job: Job, most_seconds: float) -> None:
        """Take a job; it will last `most_seconds`, or what of them is not kept from before."""
        assert isinstance(job, RungJob)
        now, done = self._clock.now(), self._kept.get(job.label.run, 0.0)
        begins = max(now, self._works_at[place])
        ends, wakes = begins + BETWEEN_SECONDS + most_seconds - done, begins + most_seconds + NOTICED
        work = _Work(job, now, begins, done, ends, wakes)
        if math.isfinite(self._faults.mean_seconds):
            fails = now + float(self._chance.exponential(self._faults.mean_seconds))
            if fails < work.ends:
                work.ends, work.failure = fails, Failure("device", "the device failed")
        self._work[place] = work

    def wait(self, seconds: float) -> list[tuple[int, Event]]:  # noqa: ARG002
        """Let time pass until jobs end, somebody has to look after one, or the search is asked to stop."""
        if not self._work:
            return []
        now = self._clock.now()
        stop = self._stop_at if now < self._stop_at else math.inf
        then = max(now, min(stop, *(min(w.ends, w.wakes) for w in self._work.values())))
        self._clock.move(then - now)
        for work in self._work.values():
            if work.wakes <= then:
                work.wakes = then + WATCHED
        over = [place for place, work in self._work.items() if work.ends <= then]
        return [event for place in over for event in self._ended(place, self._work.pop(place))]

    def _ended(self, place: int, work: _Work) -> list[tuple[int, Event]]:
        now, run = self._clock.now(), work.job.label.run
        progress, restarting = work.progress(now), max(0.0, min(now, work.begins) - work.taken)
        self._tally.restarting += restarting
        spent: dict[Purpose, float] = {"start": restarting, "train": progress - work.done}
        outcome: RunRecord | Failure
        if work.failure:
            interval = checkpoint_interval(work.job.config)
            self._kept[run] = work.done + interval * math.floor((progress - work.done) / interval)
            self._tally.redone += progress - self._kept[run]
            if work.failure.cause == "device":
                self._tally.failures += 1
                self._works_at[place] = now + self._faults.restart_seconds
            outcome = work.failure
        elif work.asked:
            self._kept[run] = progress
            outcome = replace(self._outcome(work.job), state="interrupted", cause="stopped", bpb=None)
        else:
            self._kept.pop(run, None)
            outcome = self._outcome(work.job)
        return [(place, Spent(spent)), (place, Ended(outcome))]

    def stop(self) -> None:
        """Ask all jobs to save what they have and return."""
        for work in self._work.values():
            work.ends, work.asked, work.failure = self._clock.now(), True, None

    def kill(self, place: int | None = None, why: str = "") -> None:
        """End jobs at once; `wait` then says so."""
        for at, work in self._work.items():
            if place in (at, None):
                work.ends, work.failure = self._clock.now(), Failure("hang", why)

    def close(self) -> None:
        """Nothing is left running."""
        self._work.clear()
