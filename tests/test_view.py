import io
import json

import pytest
from rich.console import Console

from budgetlm.records import append_point
from budgetlm.snapshot import Camera
from budgetlm.studies import UNFINISHED
from budgetlm.view import StudyView, drawn, spark
from tests.conftest import record
from tests.report.made import curve


def begin(folder, run: str, trial: int) -> None:
    """A run under way, as the scheduler keeps it."""
    home = folder / UNFINISHED / run
    home.mkdir(parents=True)
    label = {"run": run, "trial": trial, "rung": 1, "why": "climb", "recipe": {"depth": 1}}
    (home / "run.json").write_text(json.dumps({"label": label, "config": {"seconds": 60.0}}))
    for point in curve(30.0, None, points=10):
        append_point(folder, run, point)


def text(panel, width=120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(panel)
    return console.file.getvalue()


def test_the_view_shows_budget_ladder_runs_and_the_best_forecast(searched):
    begin(searched.folder, "trial0999-rung1", 999)
    said = text(drawn(Camera("tiny").take()))
    for part in (
        "study tiny",
        "budget",
        "rung 0",
        "rung 1",
        "1 running",
        "trial 999",
        "30 of 60 s",
        "climb",
        "tokens/s",
        "bits per byte",
    ):
        assert part in said


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_view_fits_terminals_of_any_width(searched, width):
    begin(searched.folder, "trial0999-rung1", 999)
    assert max(len(line) for line in text(drawn(Camera("tiny").take()), width).splitlines()) <= width


def test_names_that_look_like_markup_show_as_text(searched):
    begin(searched.folder, "trial0999-rung1", 999)
    path = searched.folder / UNFINISHED / "trial0999-rung1" / "run.json"
    path.write_text(path.read_text().replace("climb", "[bold]x"))
    assert "[bold]x" in text(drawn(Camera("tiny").take()))


def test_a_study_is_looked_at_once_a_second_however_often_it_is_drawn(searched):
    seconds, looks = [10.0], []
    view = StudyView("tiny", lambda: seconds[0])
    take = view._camera.take
    view._camera.take = lambda: looks.append(seconds[0]) or take()
    for _ in range(8):
        view.draw()
        seconds[0] += 0.25
    assert looks == [10.0, 11.0]


def test_what_has_not_begun_is_said_to(home):
    assert "has not begun" in text(StudyView("nothing").draw())


def test_a_look_counts_what_came_since_the_last_one(searched):
    camera = Camera("tiny")
    before = camera.take().rungs[0].done
    from budgetlm.records import append_record

    append_record(searched.folder, record(900, 0, 1.0, 1.5))
    assert camera.take().rungs[0].done == before + 1


def test_a_sparkline_is_as_high_as_its_values():
    assert spark([1.0, 2.0, 3.0, 8.0]) == "▁▂▃█"
    assert spark([]) == ""
    assert spark([2.0, 2.0]) == "▁▁"
    assert len(spark(list(range(1000)))) == 24
