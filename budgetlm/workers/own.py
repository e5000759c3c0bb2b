"""A training function of somebody's own, as a worker: a thread of this process, whose time is charged like any other."""

import math
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from budgetlm.budget.clock import Clock, Meter, Purpose
from budgetlm.records import OWN, CurvePoint, RunRecord
from budgetlm.train.config import Label, RunConfig, bare_record
from budgetlm.workers.job import Desk, Ended, Event, Job, Note, Spent, failure_of


class Stopped(BaseException):
    """The search wants the function to end: raised where it looks at its clock, and nothing that it should catch."""


class Training(Protocol):
    """What may stand in for budgetlm's own training."""

    def __call__(self, run: RunConfig, clock: Clock) -> float | RunRecord:
        """Train as `run` says, for `run.seconds` by `clock.now()`, and return the loss, which is to be small and is positive; or a whole record."""


class TickingClock(Clock):
    """A clock that charges what has passed whenever it is looked at, and is where a function learns that it is to stop."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk

    def now(self) -> float:
        """Seconds since some fixed instant."""
        self._desk.meter.tick()
        if self._desk.should_stop():
            raise Stopped
        return self._desk.meter.clock.now()


@dataclass(frozen=True)
class OwnJob:
    """Lets a function train a rung."""

    train: Training
    label: Label
    config: RunConfig

    def work(self, desk: Desk) -> RunRecord:
        """The function's record, or one made of its loss; `interrupted` if it was asked to stop."""
        try:
            with desk.meter.during("train"):
                outcome = self.train(self.config, TickingClock(desk))
        except Stopped:
            return self._record(desk, state="interrupted", cause="stopped")
        if isinstance(outcome, RunRecord):
            return replace(outcome, unit=OWN)
        loss = float(outcome)
        if not (math.isfinite(loss) and loss > 0):
            said = f"the function returned {loss}, and a loss is a positive number"
            return self._record(desk, state="diverged", cause="diverged", error=said)
        return self._record(desk, state="done", bpb=loss)

    def _record(self, desk: Desk, **outcome: Any) -> RunRecord:
        spent = {str(purpose): seconds for purpose, seconds in desk.meter.spent.items() if seconds}
        return replace(
            bare_record(self.label, self.config), seconds=sum(spent.values()), by_purpose=spent, unit=OWN, **outcome
        )


class _Desk:
    def __init__(self, clock: Clock, tell: Callable[[Event], None], should_stop: Callable[[], bool]) -> None:
        self.say: Callable[[CurvePoint | Note], None] = tell
        self._tell, self.should_stop = tell, should_stop
        self.meter, self.began = Meter(clock, self._spent, purpose="start"), clock.now()

    def _spent(self, _run: str, by_purpose: Mapping[Purpose, float]) -> None:
        self._tell(Spent(dict(by_purpose)))


class Threaded:
    """One place in this process, at which a thread works; the search goes on charging meanwhile.

    Args:
        clock: that time is charged by.
        instead: what is done in place of a job.
    """

    places = (0,)

    def __init__(self, clock: Clock, instead: Callable[[Job], Job]) -> None:
        self._clock, self._instead = clock, instead
        self._said: queue.Queue[Event] = queue.Queue()
        self._asked, self._over = threading.Event(), False
        self._thread: threading.Thread | None = None

    def delay(self, place: int) -> float:  # noqa: ARG002
        """None."""
        return 0.0

    def start(self, place: int, job: Job, most_seconds: float) -> None:  # noqa: ARG002
        """Begin a job; a thread cannot be ended by force, only asked."""
        self._asked = threading.Event()
        if self._over:
            self._asked.set()
        self._thread = threading.Thread(target=self._work, args=(self._instead(job), self._asked), daemon=True)
        self._thread.start()

    def _work(self, job: Job, asked: threading.Event) -> None:
        desk = _Desk(self._clock, self._said.put, asked.is_set)
        outcome: Any
        try:
            outcome = job.work(desk)
        except Exception as error:  # noqa: BLE001  # it is told as a process's would be
            outcome = failure_of(error)
        desk.meter.flush()
        self._said.put(Ended(outcome))

    def wait(self, seconds: float) -> list[tuple[int, Event]]:
        """What was said; waits up to `seconds` for the first word."""
        try:
            events = [self._said.get(timeout=max(0.0, seconds))]
        except queue.Empty:
            return []
        while not self._said.empty():
            events.append(self._said.get())
        return [(0, event) for event in events]

    def stop(self) -> None:
        """Ask the function to end, which it hears of when it looks at its clock."""
        self._over = True
        self._asked.set()

    def kill(self, place: int | None = None, why: str = "") -> None:  # noqa: ARG002
        """Ask, which is all that can be done."""
        self._asked.set()

    def close(self) -> None:
        """Ask, and wait a little."""
        self.stop()
        if self._thread:
            self._thread.join(timeout=10.0)
