"""Workers of a Ray cluster: each job a task, placed by Ray where its device is free; or on this machine, where there is no cluster.

Ray places, watches and ends processes and loses nodes; what is said between a job and the search goes through one small actor beside the
search, which is gone with it, and so are the tasks. Source: Ray 2, "Tasks", "Fault tolerance", "Scheduling".
"""

import logging
import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from budgetlm.budget.clock import Clock, Meter, Purpose
from budgetlm.errors import ConfigError, StudyError
from budgetlm.records import CurvePoint
from budgetlm.workers.child import Place, settle_in
from budgetlm.workers.job import Ended, Event, Failure, Job, Spent, failure_of, overdue

SAY_SECONDS = 0.5
"""How often a task says what it has to say, and hears whether it is to stop."""
START_SECONDS = 60.0
"""A task that has not begun after so long has no place: a node is gone, or others use the cluster."""
GRACE_SECONDS = 5.0
"""How long tasks may take to end when the search does."""
LOOK_SECONDS = 2.0
"""How often the cluster is asked how large it is."""
DELAY_SECONDS = 2 * SAY_SECONDS


class Line:
    """What tasks and their search have to say to each other; an actor."""

    def __init__(self) -> None:
        self._said: list[tuple[int, Event | None]] = []
        self._asked: set[int] = set()

    def say(self, task: int, events: list[Event | None]) -> bool:
        """Keep what a task says, None for that it has begun; returns whether it is to stop."""
        self._said += [(task, event) for event in events]
        return task in self._asked

    def take(self) -> list[tuple[int, Event | None]]:
        """All that was said since the last time."""
        said, self._said = self._said, []
        return said

    def ask(self, tasks: list[int]) -> None:
        """Ask tasks to stop."""
        self._asked.update(tasks)


class _Desk:
    """A job's line to its search, which is spoken to now and then, by a thread of its own."""

    def __init__(self, line: Any, task: int) -> None:
        self._line, self._task, self._said, self._lock = line, task, list[Event | None]([None]), threading.Lock()
        self._asked, self._over = threading.Event(), threading.Event()
        self.should_stop: Callable[[], bool] = self._asked.is_set
        clock = Clock()
        self.meter, self.began = Meter(clock, self._spent, flush_seconds=SAY_SECONDS, purpose="start"), clock.now()
        self._thread = threading.Thread(target=self._speak, daemon=True)
        self._thread.start()

    def say(self, event: CurvePoint) -> None:
        with self._lock:
            self._said.append(event)

    def close(self) -> None:
        self.meter.flush()
        self._over.set()
        self._thread.join()
        self._once()

    def _spent(self, _run: str, by_purpose: Mapping[Purpose, float]) -> None:
        with self._lock:
            self._said.append(Spent(dict(by_purpose)))

    def _speak(self) -> None:
        while not self._over.is_set():
            self._once()
            self._over.wait(SAY_SECONDS)

    def _once(self) -> None:
        import ray

        with self._lock:
            said, self._said = self._said, []
        try:
            if ray.get(self._line.say.remote(self._task, said)):
                self._asked.set()
        except ray.exceptions.RayError:  # the search is gone
            self._asked.set()


def _do(job: Job, place: Place, line: Any, task: int, passport: str) -> Any:
    """A task: do one job, and return its outcome."""
    desk = _Desk(line, task)
    try:
        settle_in(place)
        _check_device(job, passport)
        return job.work(desk)
    except Exception as error:  # noqa: BLE001  # it is handed over, whatever it is
        return failure_of(error)
    finally:
        desk.close()


def _check_device(job: Job, passport: str) -> None:
    """Refuse a run on another kind of machine than its study is made for: a cluster may have several."""
    if not passport:
        return
    import torch

    from budgetlm.passport import identify

    torch.set_num_threads(getattr(job, "threads", 0) or torch.get_num_threads())
    here = identify("cuda" if torch.cuda.is_available() else "cpu")
    if here.id != passport:
        raise StudyError(
            f"Ray put a run on {here.name} with {here.threads} threads and torch {here.torch}, which is not what the study was begun on. "
            "Device-seconds of the two cannot be compared. Give the search nodes of one kind."
        )


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

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str, most: int, place: Place, clock: Clock, *, hang_seconds: float = 300.0) -> None:
        ray = _ray()
        try:
            if not ray.is_initialized():
                ray.init(
                    address=address or None,
                    log_to_driver=False,
                    include_dashboard=None if address else False,
                    logging_level=logging.ERROR,
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"there is no Ray cluster at {address!r}: {str(error).splitlines()[0]}. Start one with `ray start --head`, or leave "
                "`--ray-address` out to use this machine alone."
            ) from None
        self._ray, self._most, self._place, self._clock, self._hang_seconds = ray, most, place, clock, hang_seconds
        on_gpus = place.device == "cuda" or (place.device == "auto" and ray.cluster_resources().get("GPU", 0.0) >= 1)
        self._needs = {"num_gpus": 1.0} if on_gpus else {"num_cpus": float(place.threads or 1)}
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._line = ray.remote(num_cpus=0)(Line).options(scheduling_strategy=here).remote()
        self._task = ray.remote(max_retries=0, **self._needs)(_do)
        self._work: dict[int, _Work] = {}
        self._count, self._counted, self._tasks = 0, -LOOK_SECONDS, 0

    @property
    def places(self) -> Collection[int]:
        """As many as fit what the cluster has now, and those at which something is being done."""
        now = self._clock.now()
        if now - self._counted >= LOOK_SECONDS:
            name, amount = (
                ("GPU", self._needs["num_gpus"]) if "num_gpus" in self._needs else ("CPU", self._needs["num_cpus"])
            )
            room = int(self._ray.cluster_resources().get(name, 0.0) / amount)
            self._count, self._counted = min(room, self._most) if self._most else room, now
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


def _ray() -> Any:
    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # 15 otherwise: what a run learns in its seconds must not hang on who else computes
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise ConfigError("Ray is not installed: `pip install 'budgetlm[ray]'`.") from None
    return ray
