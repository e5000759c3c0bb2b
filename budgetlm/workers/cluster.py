"""Workers of a Ray cluster: each job a task, placed by Ray where its device is free; or on this machine, where there is no cluster.

Ray places, watches and ends processes and loses nodes. Source: Ray 2, "Tasks", "Fault tolerance".
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from budgetlm.budget.clock import Clock, Meter, Purpose
from budgetlm.records import CurvePoint
from budgetlm.workers.child import Place, settle_in
from budgetlm.workers.job import Ended, Event, Failure, Job, Note, Spent, failure_of, overdue
from budgetlm.workers.raylink import (
    SAY_SECONDS,
    START_SECONDS,
    Speaker,
    as_options,
    check_node,
    connect,
    needs_of,
    open_line,
    room,
)

GRACE_SECONDS = 5.0
"""How long tasks may take to end when the search does."""
LOOK_SECONDS = 2.0
"""How often the cluster is asked how large it is."""
DELAY_SECONDS = 2 * SAY_SECONDS


class _Desk:
    """A job's line to its search."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker, clock = speaker, Clock()
        self.say: Callable[[CurvePoint | Note], None] = speaker.say
        self.should_stop: Callable[[], bool] = speaker.asked
        self.meter, self.began = Meter(clock, self._spent, flush_seconds=SAY_SECONDS, purpose="start"), clock.now()

    def close(self) -> None:
        self.meter.flush()
        self._speaker.close()

    def _spent(self, _run: str, by_purpose: Mapping[Purpose, float]) -> None:
        self._speaker.say(Spent(dict(by_purpose)))


def _do(job: Job, place: Place, line: Any, task: int, passport: str) -> Any:
    """A task: do one job, and return its outcome."""
    desk = _Desk(Speaker(line, task))
    try:
        settle_in(place)
        if passport:
            check_node(passport, getattr(job, "threads", 0))
        return job.work(desk)
    except Exception as error:  # noqa: BLE001  # it is handed over, whatever it is
        return failure_of(error)
    finally:
        desk.close()


@dataclass
class _Work:
    """A job that was handed over."""

    task: int
    reference: Any
    started: float
    """When it was begun; until then, when it was handed over."""
    heard: float
    most_seconds: float
    begun: bool = False
    ended_by: Failure | None = None


class Cluster:
    """As many places as the cluster has room for, now.

    Args:
        address: of the cluster, `auto` for the one that this machine belongs to; empty to begin one here.
        most: places at most; 0 for as many as there is room for.
        place: what every one of them is; `auto` for its device is a GPU where the cluster has any.
        clock: of the search.
        hang_seconds: a job that nothing is heard of for so long is ended.
        gpu_share: what each takes of a GPU, where places have one.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """

    def __init__(
        self,
        address: str,
        most: int,
        place: Place,
        clock: Clock,
        *,
        hang_seconds: float = 300.0,
        gpu_share: float = 1.0,
    ) -> None:
        ray = connect(address)
        self._ray, self._most, self._place, self._clock, self._hang_seconds = ray, most, place, clock, hang_seconds
        self._needs, self._line = needs_of(ray, place.device, place.threads, gpu_share), open_line(ray)
        self._task = ray.remote(max_retries=0, **as_options(self._needs))(_do)
        self._work: dict[int, _Work] = {}
        self._count, self._counted, self._tasks = 0, -LOOK_SECONDS, 0

    @property
    def places(self) -> Collection[int]:
        """As many as fit what the cluster has now, and those at which something is being done."""
        now = self._clock.now()
        if now - self._counted >= LOOK_SECONDS:
            there = room(self._ray, self._needs)
            self._count, self._counted = min(there, self._most) if self._most else there, now
        return sorted({*range(self._count), *self._work})

    def delay(self, place: int) -> float:  # noqa: ARG002
        """Of what a task says."""
        return DELAY_SECONDS

    def start(self, place: int, job: Job, most_seconds: float) -> None:
        """Hand a job over."""
        assert place not in self._work, f"place {place} is taken"
        self._tasks += 1
        now, passport = self._clock.now(), getattr(getattr(job, "label", None), "passport", "")
        reference = self._task.remote(job, self._place, self._line, self._tasks, passport)
        self._work[place] = _Work(self._tasks, reference, now, now, most_seconds)

    def wait(self, seconds: float) -> list[tuple[int, Event]]:
        """What the places have said; waits up to `seconds` for a job to end."""
        if not self._work:
            return []
        by_reference = {work.reference: place for place, work in self._work.items()}
        ready, _ = self._ray.wait(list(by_reference), num_returns=1, timeout=seconds, fetch_local=True)
        events = self._hear()
        for reference in ready:
            work = self._work.pop(by_reference[reference])
            events.append((by_reference[reference], Ended(self._outcome(work))))
        self._watch()
        return events

    def stop(self) -> None:
        """Ask all jobs to save what they have and return."""
        self._line.ask.remote([work.task for work in self._work.values()])

    def kill(self, place: int | None = None, why: str = "it was ended by the search") -> None:
        """End the job of a place, or all of them, at once; `wait` then says so."""
        for at, work in self._work.items():
            if place in (at, None):
                self._end(work, Failure("hang", why))

    def close(self) -> None:
        """Leave nothing running; the cluster stays for whoever comes next in this process."""
        self.kill()
        if self._work:
            self._ray.wait([w.reference for w in self._work.values()], num_returns=len(self._work), timeout=GRACE_SECONDS)
        self._work.clear()

    def _hear(self) -> list[tuple[int, Event]]:
        places, now = {work.task: place for place, work in self._work.items()}, self._clock.now()
        events: list[tuple[int, Event]] = []
        for task, event in self._ray.get(self._line.take.remote()):
            if task not in places:
                continue
            work = self._work[places[task]]
            work.heard = now
            if event is None:
                work.begun, work.started = True, now
            else:
                events.append((places[task], event))
        return events

    def _watch(self) -> None:
        now = self._clock.now()
        for work in self._work.values():
            if work.begun:
                why = overdue(now, work.started, work.heard, work.most_seconds, self._hang_seconds)
            else:
                waited = now - work.heard
                late = f"Ray had no place for it within {waited:.0f} s"
                why = Failure("killed", late) if waited > START_SECONDS else None
            if why:
                self._end(work, why)

    def _end(self, work: _Work, why: Failure) -> None:
        if not work.ended_by:
            work.ended_by = why
            self._ray.cancel(work.reference, force=True)

    def _outcome(self, work: _Work) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(work.reference)
        except errors.OutOfMemoryError as error:
            return Failure("memory", f"out of memory: {str(error).splitlines()[0]}")
        except errors.RayError as error:  # a crash of the process, a node that is gone, an end by force
            return work.ended_by or Failure("killed", f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
