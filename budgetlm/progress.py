"""Long work on a terminal: a live panel where there is one, plain lines where there is not. All of it on stderr."""

import sys
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from budgetlm.records import CurvePoint
from budgetlm.view import StudyView, bar
from budgetlm.watch import Watcher

SECONDS_BETWEEN_LINES = 10.0


def make_watcher(study: str | None = None) -> Watcher:
    """The watcher that suits where stderr goes.

    Args:
        study: what is being worked on, where that is a study.
    """
    return LiveWatcher(study) if sys.stderr.isatty() else PlainWatcher()


class PlainWatcher(Watcher):
    """A line for what matters: for logs, pipes and CI."""

    def __init__(self, write: Callable[[str], None] | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._write = write or (lambda text: print(text, file=sys.stderr, flush=True))
        self._now, self._last = now, -SECONDS_BETWEEN_LINES
        self._best, self._budget = "", ""

    def note(self, text: str) -> None:
        """Print it."""
        self._write(text)

    def working(self, what: str, done: float, total: float) -> None:
        """Print it now and then."""
        if self._now() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = self._now()
            self._write(f"{what}: {done:.1f} MB" + (f" of {total:.1f}" if total else ""))

    def budget(self, spent_seconds: float, total_seconds: float) -> None:
        """Keep it for the next line."""
        self._budget = f"[{spent_seconds:.0f}/{total_seconds:.0f} s] "

    def run(self, title: str, planned_seconds: float) -> None:
        """Print it."""
        self._last = self._now()
        self._write(f"{self._budget}{title}, {planned_seconds:.1f} s")

    def point(self, point: CurvePoint) -> None:
        """Print one now and then."""
        if self._now() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = self._now()
            bpb = f", {point.bpb:.4f} bpb" if point.bpb is not None else ""
            self._write(
                f"  {point.seconds:.0f} s: step {point.step}, loss {point.loss:.3f}{bpb}, {point.tokens_per_second:,.0f} tokens/s"
            )

    def best(self, text: str) -> None:
        """Print it when it is new."""
        if text != self._best:
            self._best = text
            self._write(f"  best so far: {text}")


class LiveWatcher(Watcher):
    """A panel that is redrawn four times a second: what is being prepared, and the study as it stands once it has begun.

    Args:
        study: its name; None where there is none.
    """

    def __init__(self, study: str | None = None) -> None:
        self._console = Console(stderr=True)
        self._started = False
        self._done = self._amount = 0.0
        self._working = ""
        self._study = StudyView(study) if study else None
        self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._draw, transient=True)

    def note(self, text: str) -> None:
        """Print it above the panel."""
        self._console.print(Text(text, style="yellow" if text.startswith("warning") else ""), soft_wrap=True)

    def working(self, what: str, done: float, total: float) -> None:
        """Show it."""
        self._start()
        self._working, self._done, self._amount = what, done, total

    def run(self, title: str, planned_seconds: float) -> None:  # noqa: ARG002  # the study's own files say more
        """Preparation is over."""
        self._start()
        self._working = ""

    def close(self) -> None:
        """Take the panel away."""
        if self._started:
            self._live.stop()
            self._started = False

    def _start(self) -> None:
        if not self._started:
            self._live.start()
            self._started = True

    def _draw(self) -> Group:
        rows: list[RenderableType] = []
        if self._working:
            of = f" of {self._amount:.1f}" if self._amount else ""
            rows.append(bar(self._working, self._done, self._amount or None, f"{self._done:.1f}{of} MB"))
        elif self._study:
            rows.append(self._study.draw())
        return Group(*rows)
