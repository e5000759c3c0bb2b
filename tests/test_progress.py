import io
import time

from rich.console import Console

from budgetlm.progress import LiveWatcher, PlainWatcher
from budgetlm.records import CurvePoint

POINT = CurvePoint(step=7, seconds=3.0, tokens=100, loss=2.5, lr=0.1, tokens_per_second=1234.0)


def test_plain_lines_come_now_and_then_not_for_every_point():
    lines, seconds = [], [0.0]
    watcher = PlainWatcher(lines.append, lambda: seconds[0])
    watcher.budget(10, 100)
    watcher.run("trial 0, rung 0", 5.0)
    for _ in range(100):
        seconds[0] += 0.3
        watcher.point(POINT)
    watcher.best("trial 0: 1.5 bpb")
    watcher.best("trial 0: 1.5 bpb")
    assert lines[0] == "[10/100 s] trial 0, rung 0, 5.0 s"
    assert 2 <= len([line for line in lines if "step 7" in line]) <= 3
    assert lines.count("  best so far: trial 0: 1.5 bpb") == 1


def test_the_panel_shows_budget_run_and_best_as_text_even_if_it_looks_like_markup():
    watcher = LiveWatcher()
    watcher._spent, watcher._total = 30.0, 120.0
    watcher._title, watcher._planned, watcher._best, watcher._point = "trial [bold]1", 5.0, "trial 1: 1.4 bpb", POINT
    watcher._run_started = time.monotonic()
    console = Console(file=io.StringIO(), width=120)
    console.print(watcher._draw())
    shown = console.file.getvalue()
    for text in ("budget", "of 120 s", "left", "trial [bold]1", "step 7", "1,234 tokens/s", "best so far  trial 1: 1.4 bpb"):
        assert text in shown
