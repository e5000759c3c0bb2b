"""Workers as processes: forked from a server that has PyTorch loaded, watched from the search, ended when they must be.

The server is a fresh process of its own (`multiprocessing`, start method `forkserver`), so whatever the search has loaded or
opened, a CUDA context included, never reaches a worker. Where the system has no such server, workers are spawned.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection as channels
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from budgetlm.allocator import preloading
from budgetlm.budget.clock import Clock
from budgetlm.workers.child import Place, main
from budgetlm.workers.job import Ended, Event, Failure, Job, overdue

GOODBYE_SECONDS = 5.0
"""A process that has handed over its outcome may take so long to leave."""


@dataclass
class _Work:
    """A job at its place."""

    process: BaseProcess
    connection: Connection
    started: float
    heard: float
    most_seconds: float
    oom_kills: int
    ended_by: Failure | None = None
    """Why the search has ended it by force."""


class Processes:
    """One process per job, one job at a time per place.

    Args:
        places: where jobs may be done.
        hang_seconds: a job that nothing is heard of for so long is ended.
        preload: modules, by name, that jobs need and that hold no threads and no device.
    """

    def __init__(
        self, places: Sequence[Place], clock: Clock, *, hang_seconds: float = 300.0, preload: Sequence[str] = ()
    ) -> None:
        self.places = range(len(places))
        self._places, self._clock, self._hang_seconds = places, clock, hang_seconds
        self._work: dict[int, _Work] = {}
        self._context = _context(preload)

    def delay(self, place: int) -> float:  # noqa: ARG002
        """None worth mention."""
        return 0.0

    def start(self, place: int, job: Job, most_seconds: float) -> None:
        """Begin a job at a free place."""
        assert place not in self._work, f"place {place} is taken"
        ours, theirs = self._context.Pipe()
        arguments = (theirs, job, self._places[place], time.monotonic())
        # Not a daemon: those are ended with SIGTERM at exit, which workers take for a request to save first.
        process = self._context.Process(target=main, args=arguments, name=f"budgetlm-{place}")
        now = self._clock.now()
        process.start()
        theirs.close()
        self._work[place] = _Work(process, ours, now, now, most_seconds, _oom_kills())

    def wait(self, seconds: float) -> list[tuple[int, Event]]:
        """What the places have said; waits up to `seconds` for the first word."""
        if not self._work:
            return []
        waitable: list[Connection | int] = [w.connection for w in self._work.values()]
        channels.wait([*waitable, *(w.process.sentinel for w in self._work.values())], timeout=seconds)
        events: list[tuple[int, Event]] = []
        for place, work in list(self._work.items()):
            said = self._hear(work)
            if not (said and isinstance(said[-1], Ended)) and not work.process.is_alive():
                said += [*self._hear(work), Ended(_how_it_ended(work))]  # its last words may have come just before
            if said and isinstance(said[-1], Ended):
                self._bury(place)
            else:
                self._watch(work)
            events += [(place, event) for event in said]
        return events

    def stop(self) -> None:
        """Ask all jobs to save what they have and return."""
        for work in self._work.values():
            _send_stop(work.connection)

    def kill(self, place: int | None = None, why: str = "it was ended by the search") -> None:
        """End the job of a place, or all of them, at once; `wait` then says so."""
        for at, work in self._work.items():
            if place in (at, None):
                self._end(work, Failure("hang", why))

    def close(self) -> None:
        """Leave nothing running."""
        self.kill()
        for place in list(self._work):
            self._bury(place)

    def _hear(self, work: _Work) -> list[Event]:
        said: list[Event] = []
        try:
            while work.connection.poll():
                said.append(work.connection.recv())
                if isinstance(said[-1], Ended):
                    break
        except (EOFError, OSError):
            pass  # the process is gone, and the sentinel says so
        if said:
            work.heard = self._clock.now()
        return said

    def _watch(self, work: _Work) -> None:
        if why := overdue(self._clock.now(), work.started, work.heard, work.most_seconds, self._hang_seconds):
            self._end(work, why)

    def _end(self, work: _Work, why: Failure) -> None:
        work.ended_by = work.ended_by or why
        work.process.kill()

    def _bury(self, place: int) -> None:
        work = self._work.pop(place)
        work.process.join(GOODBYE_SECONDS)
        if work.process.is_alive():
            work.process.kill()
            work.process.join()
        work.connection.close()
        work.process.close()


def start_server(preload: Sequence[str], allocator: str = "off") -> None:
    """Start the server before there is work for it, so that it loads while its parent does something else.

    Args:
        preload: as for `Processes`; the first list counts.
        allocator: that workers are to have, in the words of `allocator.py`; the first one counts.

    Raises:
        ConfigError: that allocator is not there.
    """
    if isinstance(_context(preload), ForkServerContext):
        with preloading(allocator):
            forkserver.ensure_running()


def _context(preload: Sequence[str]) -> ForkServerContext | SpawnContext:
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*preload, "budgetlm.workers.preload"])
        return context
    return multiprocessing.get_context("spawn")


def _send_stop(connection: Connection) -> None:
    with suppress(OSError):  # it is leaving already
        connection.send("stop")


def _how_it_ended(work: _Work) -> Failure:
    """The failure of a process that left without a word."""
    if work.ended_by:
        return work.ended_by
    work.process.join(GOODBYE_SECONDS)
    code = work.process.exitcode or 0
    if code == -signal.SIGKILL and _oom_kills() > work.oom_kills:
        return Failure("memory", "out of memory: the system ended the process to free some")
    if code < 0:
        return Failure("killed", f"the process was ended by {signal.Signals(-code).name}")
    return Failure("killed", f"the process left with exit code {code} and without a word")


def _oom_kills() -> int:
    """How often this system has ended a process for want of memory, ever; 0 where it does not tell."""
    vmstat = Path("/proc/vmstat")
    lines = vmstat.read_text().splitlines() if os.access(vmstat, os.R_OK) else []
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
