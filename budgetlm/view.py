"""A study's snapshot as a terminal shows it: budget, devices, ladder, runs with their losses, the best forecast, the end."""

import threading
import time
from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from budgetlm.budget.clock import duration
from budgetlm.snapshot import Camera, Rung, Running, Snapshot

BLOCKS = "▁▂▃▄▅▆▇█"
SPARK, MOST_SHOWN = 24, 8
"""Characters of a sparkline, and runs that are shown."""
SECONDS_BETWEEN_LOOKS = 1.0


class StudyView:
    """The view of a study, looked at anew once a second however often it is drawn.

    Args:
        study: its name.
        now: a monotonic clock.
    """

    def __init__(self, study: str, now: Callable[[], float] = time.monotonic) -> None:
        self._camera, self._now, self._lock = Camera(study), now, threading.Lock()
        self._seen: Snapshot | None = None
        self._looked = -SECONDS_BETWEEN_LOOKS

    def draw(self) -> RenderableType:
        """What is to be shown now."""
        with self._lock:
            if self._now() - self._looked >= SECONDS_BETWEEN_LOOKS:
                self._seen, self._looked = self._camera.take() or self._seen, self._now()
        return drawn(self._seen) if self._seen else Text(f"study {self._camera.study} has not begun yet")


def follow(study: str) -> None:
    """Show a study on the terminal until Ctrl-C."""
    view = StudyView(study)
    with Live(get_renderable=view.draw, refresh_per_second=2, screen=False):
        while True:
            time.sleep(SECONDS_BETWEEN_LOOKS)


def drawn(seen: Snapshot) -> RenderableType:
    """A snapshot for a terminal of any width."""
    balance = seen.balance
    left = seen.left_seconds
    ends = f", at most {_clock(left)} to go" if left is not None else f"; {balance.stopped_because or 'nobody is at work'}"
    spent = f"{duration(balance.charged_seconds)} of {duration(balance.budget_seconds)}{ends}"
    rows: list[RenderableType] = [
        bar("budget", min(balance.charged_seconds, balance.budget_seconds), balance.budget_seconds or None, spent),
        _pair("devices", f"{len(seen.devices)} at work" + (f": {', '.join(seen.devices[:4])}" if seen.devices else "")),
        _pair("purposes", _purposes(balance.by_purpose)),
        _ladder(seen.rungs, seen.target_seconds),
    ]
    if seen.running:
        rows.append(_runs(seen.running))
    if best := seen.best:
        interval = f" ({best.low:.4f} to {best.high:.4f}, 80 %)" if best.low is not None and best.high is not None else ""
        what = "forecast" if interval else "on its rung"
        rows.append(
            _pair("best", f"trial {best.trial} of {best.trials}: {what} {best.mean:.4f} bits per byte{interval}", "bold")
        )
    if seen.final and seen.final.bpb is not None:
        rows.append(_pair("final", f"{seen.final.bpb:.4f} bits per byte, {seen.final.run}", "green"))
    return Panel(Group(*rows), title=Text(f"study {seen.study}"), title_align="left", expand=False)


def spark(values: Sequence[float], width: int = SPARK) -> str:
    """A line of blocks, the higher the larger: the last of the values that fall on each."""
    if not values:
        return ""
    kept = [values[int((i + 1) * len(values) / min(width, len(values))) - 1] for i in range(min(width, len(values)))]
    low, high = min(kept), max(kept)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in kept)


def bar(name: str, done: float, total: float | None, text: str) -> Table:
    """A row with a bar; it moves to and fro where the total is not known."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=12)
    table.add_column(width=30)
    table.add_column(overflow="fold")
    table.add_row(name, ProgressBar(total=total, completed=done, width=30, pulse=total is None), Text(text))
    return table


def _pair(name: str, text: str, style: str = "") -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=12)
    table.add_column(overflow="fold")
    table.add_row(name, Text(text, style=style))
    return table


def _purposes(by_purpose: dict[str, float]) -> str:
    total = sum(by_purpose.values())
    ordered = sorted(by_purpose.items(), key=lambda item: -item[1])
    return ", ".join(f"{purpose} {seconds / total:.0%}" for purpose, seconds in ordered if seconds >= 0.005 * total > 0)


def _ladder(rungs: Sequence[Rung], target_seconds: float) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=12)
    for _ in range(4):
        table.add_column(justify="right")
    table.add_column()
    for place, rung in reversed(list(enumerate(rungs))):
        share = f"1/{target_seconds / rung.seconds:.0f} of the target" if rung.seconds else ""
        best = f"best {rung.best_bpb:.4f}" if rung.best_bpb is not None else ""
        lost = f"{rung.lost} lost" if rung.lost else ""
        row = (
            f"rung {place}",
            duration(rung.seconds),
            f"{rung.done} done",
            f"{rung.running} running",
            lost,
            f"{best}  {share}",
        )
        table.add_row(*row)
    return table


def _runs(running: Sequence[Running]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=12)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for run in running[:MOST_SHOWN]:
        loss = f"loss {run.losses[-1]:.3f}" if run.losses else "begins"
        measured = f", {run.bpb:.4f} bpb" if run.bpb is not None else ""
        said = f"{loss}{measured}, {run.tokens_per_second:,.0f} tokens/s, {run.run.why}".removesuffix(", ")
        time_of = f"{run.seconds:.0f} of {run.run.planned_seconds:.0f} s"
        name = f"trial {run.run.trial}" if run.run.rung >= 0 else "final"
        table.add_row(name, time_of, spark(run.losses), Text(said))
    if len(running) > MOST_SHOWN:
        table.add_row("", f"and {len(running) - MOST_SHOWN} more", "", "")
    return table


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
