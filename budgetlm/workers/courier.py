"""A courier: one thread that does errands at a bucket beside whatever its process does, so that a slow or lost network keeps nobody waiting.

Where there is nothing to be done meanwhile, `beside` lets time be seen to pass.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from budgetlm.errors import BudgetlmError

TICK_SECONDS = 0.25
T = TypeVar("T")


@dataclass(frozen=True)
class Errand:
    """Something to be done at a bucket."""

    do: Callable[[], None]
    drop: Callable[[], None] = lambda: None
    """Lets go of what it holds; called once, whether or not it was done."""


class Courier:
    """Does errands one after the other. Of those of one name that wait, only the last is done.

    Args:
        tell: told, from the thread, when an errand has failed and the one before had not. Nothing else comes of a failure.
        now: a clock in seconds.
    """

    def __init__(self, tell: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._now = tell, now
        self._waiting: dict[str, Errand] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._at_work = self._over = self._failing = False
        self.seconds = 0.0
        """What the last errand took that was done."""

    def give(self, name: str, errand: Errand) -> None:
        """Have an errand done, in place of one of that name that waits."""
        with self._changed:
            before = self._waiting.pop(name, None)
            self._waiting[name] = errand
            if not self._thread:
                self._thread = threading.Thread(target=self._work, name="budgetlm-courier", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        if before:
            before.drop()

    def finish(self, seconds: float) -> bool:
        """Wait, at most so long, until nothing is left to do; returns whether all of it was done, and the last of it well."""
        with self._changed:
            idle = self._changed.wait_for(lambda: not self._waiting and not self._at_work, seconds)
            return idle and not self._failing

    def goes_on(self) -> bool:
        """Whether it was not closed; for errands that can be left in the middle."""
        return not self._over

    def close(self) -> None:
        """Drop what waits, and do not wait for what is being done."""
        with self._changed:
            self._over = True
            waiting, self._waiting = self._waiting, {}
            self._changed.notify_all()
        for errand in waiting.values():
            errand.drop()

    def _work(self) -> None:
        while errand := self._next():
            began, fault = self._now(), ""
            try:
                errand.do()
                self.seconds = self._now() - began
            except BudgetlmError as error:
                fault = str(error)
            except Exception as error:  # noqa: BLE001  # a bug must not end the thread that others rely on
                fault = f"{type(error).__name__}: {error}"
            errand.drop()
            if fault and not self._failing and not self._over:
                self._tell(fault)
            with self._changed:
                self._failing, self._at_work = bool(fault), False
                self._changed.notify_all()

    def _next(self) -> Errand | None:
        """The errand that waits longest, once there is one; None when it was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over)
            if self._over:
                return None
            self._at_work = True
            return self._waiting.pop(next(iter(self._waiting)))


def beside(tick: Callable[[], None], work: Callable[[], T]) -> T:
    """Do something that may wait for a network long, in a thread of its own.

    Args:
        tick: called here all the time meanwhile: a clock that is not read takes a process that only waits for one that was stopped.
    """
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(work)
        while not wait([done], TICK_SECONDS).done:
            tick()
        return done.result()
