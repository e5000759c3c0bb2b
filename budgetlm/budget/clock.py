"""Monotonic time that a test can move by hand, and the meter that gives every moment to exactly one purpose."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

Purpose = Literal["start", "calibrate", "compile", "train", "evaluate", "compress", "checkpoint", "other", "lost", "teacher"]
"""What a device-second was for. `train` is optimisation steps and nothing else; `start` is a process on its way to the
first of them; `compress` makes what would be deployed; `lost` is time of a process that was gone before it could say what it had been doing; `teacher` was spent before the study, on training its teacher."""

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)

STOPPED_SECONDS, STOPPED_SHARE = 3.0, 0.25
"""A gap this long between two readings, in which the process had less than this share of one processor, means that it was
stopped, not working."""
ATTEND_SECONDS = 0.5
"""How often a thread reads a clock that it attends to."""
SAMPLE_SECONDS = 0.2
"""How often the processor time is looked at, which takes longer than to look at the clock."""


def duration(seconds: float) -> str:
    """A length of time for people: `80 s`, `10 min`, `24 h`."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.4g} h"


class Clock:
    """Seconds of running: they only move forward, whatever happens to the date, and stand still while the process does.

    A process that is stopped (Ctrl-Z, SIGSTOP, a frozen container) uses no processor time, and that is how it is told from
    one that works or waits: callers read the clock at least every second or so. A suspended machine needs no such care,
    because Linux's monotonic clock stands still with it.
    """

    def __init__(self) -> None:
        self._stopped = 0.0
        self._last = self._sampled = time.monotonic()
        self._worked = time.process_time()

    def now(self) -> float:
        """Seconds since some fixed instant, those left out in which the process was stopped."""
        now = time.monotonic()
        gap, self._last = now - self._last, now
        if now - self._sampled > SAMPLE_SECONDS:
            worked = time.process_time()
            if gap > STOPPED_SECONDS and worked - self._worked < STOPPED_SHARE * gap:
                self._stopped += gap
            self._sampled, self._worked = now, worked
        return now - self._stopped


class AttendedClock(Clock):
    """The same for who waits for others, longer than a second and without working: a thread reads it all the time, until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self._reading, self._closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._attend, name="budgetlm-clock", daemon=True).start()

    def now(self) -> float:
        """As of any clock."""
        with self._reading:
            return super().now()

    def close(self) -> None:
        """Read it no more."""
        self._closed.set()

    def _attend(self) -> None:
        while not self._closed.wait(ATTEND_SECONDS):
            self.now()


class ManualClock(Clock):
    """A clock that stands still until it is moved: for tests and for replays."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        """Seconds moved so far."""
        return self.seconds

    def move(self, seconds: float) -> None:
        """Let `seconds` pass."""
        assert seconds >= 0, "time does not run backwards"
        self.seconds += seconds


Charge = Callable[[str, Mapping[Purpose, float]], None]
"""Takes a run and what it has spent since the last time, in seconds by purpose."""


class Meter:
    """Charges the time that a device is held, every moment to exactly one run and purpose.

    The meter runs from its making to the last `flush`. `during(purpose)` says what the time inside is for, `bill(run)`
    whose it is from now on. What has run up is handed to `charge` about once a second, so that a process killed at any
    instant leaves at most that much unaccounted. Where another process does the work, its own account arrives through
    `explain`, and moves time from `other`, where it ran up, to what it was for. The sum is what this clock has seen, and
    beyond it what only the other process has: it may have worked on while this one was stopped.
    """

    def __init__(
        self,
        clock: Clock,
        charge: Charge | None = None,
        *,
        flush_seconds: float = 1.0,
        run: str = "study",
        purpose: Purpose = "other",
    ) -> None:
        self.clock = clock
        self.spent: dict[Purpose, float] = dict.fromkeys(PURPOSES, 0.0)
        self._charge = charge
        self._flush_seconds = flush_seconds
        self._pending: dict[Purpose, float] = {}
        self._unexplained = 0.0  # of `other`, since the bill began
        self._purpose, self._run = purpose, run
        self._since = self._flushed = clock.now()

    @contextmanager
    def during(self, purpose: Purpose) -> Iterator[None]:
        """Charge the time inside the block to `purpose`."""
        outer = self._purpose
        self.switch(purpose)
        try:
            yield
        finally:
            self.switch(outer)

    def switch(self, purpose: Purpose) -> None:
        """Charge the time from now on to `purpose`."""
        self._account()
        self._purpose = purpose
        self.tick()

    def bill(self, run: str) -> None:
        """Charge the time from now on to `run`; all of the time before is handed over."""
        self.flush()
        self._run, self._unexplained = run, 0.0

    def explain(self, spent: Mapping[Purpose, float]) -> None:
        """Take seconds, by purpose, that have run up here as `other` for what they really were; any beyond are added."""
        self._account()
        for purpose, seconds in spent.items():
            seen = min(seconds, self._unexplained)
            self._unexplained -= seen
            self._add("other", -seen)
            self._add(purpose, seconds)

    def tick(self) -> None:
        """Hand over what has run up if that was not done for a while."""
        self._account()
        if self._since - self._flushed >= self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Hand over all that has run up so far."""
        self._account()
        pending, self._pending = self._pending, {}
        self._flushed = self._since
        if self._charge and pending:
            self._charge(self._run, pending)

    def _account(self) -> None:
        now = self.clock.now()
        seconds, self._since = now - self._since, now
        if seconds > 0:
            self._add(self._purpose, seconds)
            if self._purpose == "other":
                self._unexplained += seconds

    def _add(self, purpose: Purpose, seconds: float) -> None:
        self.spent[purpose] += seconds
        self._pending[purpose] = self._pending.get(purpose, 0.0) + seconds
