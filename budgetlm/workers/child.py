"""The inside of a worker's process: set the device up, do the job, say how it ended.

The process leaves at once when the search that it works for is gone, so that no device is used that nobody pays for.
"""

import os
import resource
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from budgetlm.budget.clock import STOPPED_SECONDS, Clock, Meter, Purpose
from budgetlm.records import CurvePoint
from budgetlm.workers.job import Ended, Failure, Job, Note, Spent, failure_of

SECONDS_BETWEEN_WORDS = 0.25
ORPHANED = 3


@dataclass(frozen=True)
class Place:
    """Where a worker works."""

    device: str
    """`cpu`, or `cuda`."""
    index: str = ""
    """Which GPU it may see, as `CUDA_VISIBLE_DEVICES` wants it; empty for all."""
    threads: int = 0
    """CPU threads; 0 for one per core that the process may use."""
    memory_bytes: int = 0
    """Most memory that a job may take beyond what PyTorch itself holds; 0 for all there is."""


class _Desk:
    """A job's line to the search."""

    def __init__(self, connection: Connection, started: float) -> None:
        self._connection, self._asked, self.began = connection, threading.Event(), started
        self.meter = Meter(_ClockFrom(started), self._spent, flush_seconds=SECONDS_BETWEEN_WORDS, purpose="start")
        self.should_stop = self._asked.is_set

    def say(self, event: CurvePoint | Note) -> None:
        self._connection.send(event)

    def ask_to_stop(self, *_: object) -> None:
        self._asked.set()

    def _spent(self, _run: str, by_purpose: Mapping[Purpose, float]) -> None:
        self._connection.send(Spent(dict(by_purpose)))


class _ClockFrom(Clock):
    """A clock whose first reading is the moment at which the search asked for the process."""

    def __init__(self, started: float) -> None:
        super().__init__()
        self._first: float | None = started

    def now(self) -> float:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return super().now()


def main(connection: Connection, job: Job, place: Place, started: float) -> None:
    """Do one job and leave.

    Args:
        started: the search's monotonic clock when it asked for this process.
    """
    born = time.monotonic()
    # Longer than this takes no birth: everything was stopped meanwhile, or the server was still loading PyTorch.
    desk = _Desk(connection, started if born - started < STOPPED_SECONDS else born)
    signal.signal(signal.SIGTERM, desk.ask_to_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the search decides what becomes of it
    threading.Thread(target=_listen, args=(connection, desk), daemon=True).start()
    try:
        settle_in(place)
        outcome = job.work(desk)
    except Exception as error:  # noqa: BLE001  # it is handed over, whatever it is
        outcome = failure_of(error)
    with suppress(OSError):  # nobody listens any more
        desk.meter.flush()
        try:
            connection.send(Ended(outcome))
        except Exception as error:  # noqa: BLE001  # an outcome that cannot travel
            connection.send(Ended(Failure("exception", f"what the job returned cannot be sent: {error!r}")))
    os._exit(0)  # nothing is left to tidy, and the device is waited for


def _listen(connection: Connection, desk: _Desk) -> None:
    """Hear a request to stop; notice that the search is gone."""
    try:
        while True:
            connection.recv()
            desk.ask_to_stop()
    except (EOFError, OSError):
        os._exit(ORPHANED)


def settle_in(place: Place) -> None:
    """Pin the device, the threads and the memory."""
    if place.index:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.index
    with suppress(OSError):  # where memory runs out, the worker goes before the search
        Path("/proc/self/oom_score_adj").write_text("800")
    import torch

    torch.set_num_threads(place.threads or len(os.sched_getaffinity(0)))
    if place.memory_bytes and place.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, place.memory_bytes / total))
    elif place.memory_bytes:
        most = _data_bytes() + place.memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _data_bytes() -> int:
    """What counts towards RLIMIT_DATA now: private memory that can be written."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return 1024 * int(line.split()[1])
    return 0
