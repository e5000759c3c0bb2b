import io

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


def test_the_panel_shows_what_is_being_prepared_and_then_the_study(searched):
    watcher = LiveWatcher(searched.name)
    try:
        watcher.working("reading text", 3.0, 12.0)
        assert "3.0 of 12.0 MB" in shown(watcher._draw())
        watcher.run("trial 0, rung 0", 5.0)
        assert "study tiny" in shown(watcher._draw())
    finally:
        watcher.close()


def shown(panel) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(panel)
    return console.file.getvalue()
