"""Long work on a terminal: a live panel where there is one, plain lines where there is not. All of it on stderr."""

import sys
import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from budgetlm.records import CurvePoint
from budgetlm.watch import Watcher

SECONDS_BETWEEN_LINES = 10.0


def make_watcher() -> Watcher:
    """The watcher that suits where stderr goes."""
    return LiveWatcher() if sys.stderr.isatty() else PlainWatcher()


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
    """A panel that is redrawn four times a second."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._started = False
        self._spent = self._total = self._run_started = self._planned = self._done = self._amount = 0.0
        self._working = self._title = self._best = ""
        self._point: CurvePoint | None = None
        self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._draw, transient=True)

    def note(self, text: str) -> None:
        """Print it above the panel."""
        self._console.print(Text(text, style="yellow" if text.startswith("warning") else ""), soft_wrap=True)

    def working(self, what: str, done: float, total: float) -> None:
        """Show it."""
        self._start()
        self._working, self._done, self._amount = what, done, total

    def budget(self, spent_seconds: float, total_seconds: float) -> None:
        """Show it as a bar."""
        self._start()
        self._spent, self._total, self._run_started = spent_seconds, total_seconds, time.monotonic()

    def run(self, title: str, planned_seconds: float) -> None:
        """Show it as the current run."""
        self._start()
        self._working, self._title, self._planned, self._point = "", title, planned_seconds, None
        self._run_started = time.monotonic()

    def point(self, point: CurvePoint) -> None:
        """Show it beside the current run."""
        self._point = point

    def best(self, text: str) -> None:
        """Show it."""
        self._best = text

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
        rows: list[Table | Text] = []
        if self._working:
            of = f" of {self._amount:.1f}" if self._amount else ""
            rows.append(_bar(self._working, self._done, self._amount or None, f"{self._done:.1f}{of} MB"))
        running = time.monotonic() - self._run_started if self._title else 0.0
        if self._total:
            spent = min(self._total, self._spent + running)
            rows.append(
                _bar("budget", spent, self._total, f"{spent:.0f} of {self._total:.0f} s, {_clock(self._total - spent)} left")
            )
        if self._title:
            rows.append(Text(self._title, overflow="ellipsis", no_wrap=True))
            text = f"{running:.0f} of {self._planned:.0f} s"
            if point := self._point:
                text += f", step {point.step}, loss {point.loss:.3f}, {point.tokens_per_second:,.0f} tokens/s"
            rows.append(_bar("run", min(running, self._planned), self._planned, text))
        if self._best:
            rows.append(Text(f"best so far  {self._best}", style="bold"))
        return Group(*rows)


def _bar(name: str, done: float, total: float | None, text: str) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=12)
    table.add_column(width=30)
    table.add_column()
    table.add_row(name, ProgressBar(total=total, completed=done, width=30, pulse=total is None), text)
    return table


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
