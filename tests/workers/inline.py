"""Workers without processes: each job is done where it is waited for. For debugging, and for clocks that are not real."""

from collections.abc import Callable, Mapping
from typing import Any

from budgetlm.budget.clock import Clock, Meter, Purpose
from budgetlm.records import CurvePoint
from budgetlm.workers.job import Ended, Event, Job, Spent, failure_of


class _Desk:
    def __init__(self, clock: Clock, should_stop: Callable[[], bool]) -> None:
        self.said: list[Event] = []
        self.meter, self.began = Meter(clock, self._spent, purpose="start"), clock.now()
        self.should_stop = should_stop

    def say(self, event: CurvePoint) -> None:
        self.said.append(event)

    def _spent(self, _run: str, by_purpose: Mapping[Purpose, float]) -> None:
        self.said.append(Spent(dict(by_purpose)))


class Inline:
    """One place in this process."""

    places = (0,)

    def __init__(self, clock: Clock, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._clock, self._should_stop, self._asked = clock, should_stop, False
        self._job: Job | None = None

    def delay(self, place: int) -> float:
        """None."""
        return 0.0

    def start(self, place: int, job: Job, most_seconds: float) -> None:  # no force is used here
        """Take a job."""
        assert self._job is None
        self._job = job

    def wait(self, seconds: float) -> list[tuple[int, Event]]:
        """Do the job that was taken."""
        if self._job is None:
            return []
        job, self._job = self._job, None
        desk = _Desk(self._clock, lambda: self._asked or self._should_stop())
        outcome: Any
        try:
            outcome = job.work(desk)
        except Exception as error:  # noqa: BLE001  # as a process would
            outcome = failure_of(error)
        desk.meter.flush()
        return [(0, event) for event in [*desk.said, Ended(outcome)]]

    def stop(self) -> None:
        """Ask the job to save what it has and return."""
        self._asked = True

    def kill(self, place: int | None = None, why: str = "") -> None:
        """Drop a job that was taken and not begun."""
        self._job = None

    def close(self) -> None:
        """Nothing is left running in any case."""
