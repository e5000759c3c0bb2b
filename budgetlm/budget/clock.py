"""Monotonic time that a test can move by hand, and the meter that gives every moment to exactly one purpose."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Purpose = Literal["calibrate", "compile", "train", "evaluate", "other"]
"""What a device-second was for. `train` is optimisation steps and nothing else."""

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


def duration(seconds: float) -> str:
    """A length of time for people: `80 s`, `10 min`, `24 h`."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.4g} h"


class Clock:
    """Seconds that only move forward, whatever happens to the date."""

    def now(self) -> float:
        """Seconds since some fixed instant."""
        return time.monotonic()


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


class Meter:
    """Charges the time that a device is held, every moment to exactly one run and purpose.

    The meter runs from its making to the last `flush`. `during(purpose)` says what the time inside is for, `paying(run)`
    whose it is; time outside of both is `other`, of `study`. What has run up is handed to `charge` about once a second, so
    that a process killed at any instant leaves at most that much unaccounted.
    """

    def __init__(
        self, clock: Clock, charge: Callable[[str, Purpose, float], None] | None = None, flush_seconds: float = 1.0
    ) -> None:
        self.clock = clock
        self.spent: dict[Purpose, float] = dict.fromkeys(PURPOSES, 0.0)
        self._charge = charge
        self._flush_seconds = flush_seconds
        self._pending: dict[Purpose, float] = {}
        self._purpose: Purpose = "other"
        self._run = "study"
        self._since = self._flushed = clock.now()

    @contextmanager
    def during(self, purpose: Purpose) -> Iterator[None]:
        """Charge the time inside the block to `purpose`."""
        outer = self._purpose
        self._switch(purpose)
        try:
            yield
        finally:
            self._switch(outer)

    @contextmanager
    def paying(self, run: str) -> Iterator[None]:
        """Charge the time inside the block to `run`; all of it is handed over when the block ends."""
        outer = self._run
        self.flush()
        self._run = run
        try:
            yield
        finally:
            self.flush()
            self._run = outer

    def flush(self) -> None:
        """Hand over all that has run up so far."""
        self._account()
        pending, self._pending = self._pending, {}
        self._flushed = self._since
        if self._charge:
            for purpose, seconds in pending.items():
                self._charge(self._run, purpose, seconds)

    def _switch(self, purpose: Purpose) -> None:
        self._account()
        self._purpose = purpose
        if self._since - self._flushed >= self._flush_seconds:
            self.flush()

    def _account(self) -> None:
        now = self.clock.now()
        seconds, self._since = now - self._since, now
        if seconds > 0:
            self.spent[self._purpose] += seconds
            self._pending[self._purpose] = self._pending.get(self._purpose, 0.0) + seconds
