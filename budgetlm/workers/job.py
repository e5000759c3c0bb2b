"""What a worker is given, what it says while it works, and how it can end. Data only; no torch."""

import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from budgetlm.budget.clock import Meter, Purpose
from budgetlm.errors import BudgetlmError, CheckpointError, ConfigError
from budgetlm.records import CurvePoint
from budgetlm.train.memory import is_want_of_memory

GRACE_SECONDS, MOST_TIMES = 5.0, 1.5
"""A job may be so much longer than so many times what it was to be, before it is ended by force."""
TRACEBACK_LINES = 8
"""So much of the end of a traceback is kept."""

Cause = Literal["configuration", "memory", "exception", "study", "killed", "hang", "device"]
"""Why a job failed. Of its own making: `configuration` (asked for the impossible), `memory` (did not fit), `exception` (looks
like a bug). Not of its making: `killed` (a signal, a crash of the process), `hang` (silent, or past its deadline), `device`
(the accelerator or its driver gave up). `study`: the disk or the data, so that no other job would fare better."""

TRANSIENT: tuple[Cause, ...] = ("killed", "hang", "device")
"""Causes that another attempt may not meet again."""


@dataclass(frozen=True)
class Spent:
    """Seconds that the worker has spent since it last said so, by purpose."""

    by_purpose: Mapping[Purpose, float]


@dataclass(frozen=True)
class Note:
    """Something that whoever watches the search is to know."""

    text: str


@dataclass(frozen=True)
class Failure:
    """A job that did not end well."""

    cause: Cause
    message: str
    """What happened, and for an exception the end of its traceback."""


@dataclass(frozen=True)
class Ended:
    """The worker is gone, and its device is free."""

    outcome: Any
    """What the job returned, or a `Failure`."""


Event = Spent | CurvePoint | Note | Ended


class Desk(Protocol):
    """What a job finds where it works."""

    meter: Meter
    """Told what every moment is for; its time began with the job's process."""
    began: float
    """The meter's clock when the device began to be held for this job."""
    should_stop: Callable[[], bool]
    """Whether the job is to save what it has and return."""

    def say(self, event: CurvePoint | Note) -> None:
        """Let the search know how it goes."""


class Job(Protocol):
    """Something to be done on a device. It and what it returns travel between processes."""

    def work(self, desk: Desk) -> Any:
        """Do it."""


class Workers(Protocol):
    """Places, each with a device, at which jobs are done."""

    @property
    def places(self) -> Collection[int]:
        """The numbers of those that there are now; they may come and go where they are other processes' own."""

    def delay(self, place: int) -> float:
        """Seconds that it may take, beside the job itself, until a place has it and is heard of."""

    def start(self, place: int, job: Job, most_seconds: float) -> None:
        """Begin a job at a free place. It is ended by force well beyond `most_seconds`."""

    def wait(self, seconds: float) -> list[tuple[int, Event]]:
        """What the places have said; waits up to `seconds` for the first word."""

    def stop(self) -> None:
        """Ask all jobs to save what they have and return."""

    def kill(self, place: int | None = None, why: str = "") -> None:
        """End the job of a place, or all of them, at once; `wait` then says so."""

    def close(self) -> None:
        """Leave nothing running."""


def overdue(now: float, started: float, heard: float, most_seconds: float, hang_seconds: float) -> Failure | None:
    """Why a job is to be ended by force, where it is: it is silent, or goes on well beyond its time. Seconds of one clock.

    Args:
        heard: when it last said something.
        most_seconds: that it was to take.
        hang_seconds: for which it may be silent.
    """
    silent, over = now - heard, now - started - MOST_TIMES * most_seconds - GRACE_SECONDS
    if silent > hang_seconds:
        return Failure("hang", f"nothing was heard of it for {silent:.0f} s, so it was ended")
    if over > 0:
        return Failure("hang", f"it went on for {now - started:.0f} s instead of {most_seconds:.0f}, so it was ended")
    return None


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception in a job stands for, with the end of its traceback where that says more than it does."""
    name, text = type(error).__name__, str(error)
    tail = "\n".join("".join(traceback.format_exception(error)).strip().splitlines()[-TRACEBACK_LINES:])
    if isinstance(error, ConfigError | CheckpointError):
        return Failure("configuration", text)
    if isinstance(error, BudgetlmError):
        return Failure("study", text)
    if is_want_of_memory(error):
        return Failure("memory", f"out of memory: {text.splitlines()[0] if text else name}")
    if name == "AcceleratorError" or "CUDA error" in text:
        return Failure("device", tail)
    return Failure("exception", tail)
