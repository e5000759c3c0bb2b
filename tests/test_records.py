import json
import math
import random

from budgetlm.files import append_line
from budgetlm.records import (
    RUNS,
    CurvePoint,
    Records,
    append_point,
    append_record,
    curve_path,
    places_of_most_interest,
    read_curve,
    read_records,
)
from tests.conftest import record


def test_a_growing_study_is_read_as_it_grows(tmp_path):
    growing = Records(tmp_path)
    assert growing.all() == []
    for trial in range(3):
        append_record(tmp_path, record(trial, 0, 10, 2.0))
        assert growing.all() == read_records(tmp_path) == [record(t, 0, 10, 2.0) for t in range(trial + 1)]


def test_what_was_read_is_not_read_again(tmp_path):
    growing = Records(tmp_path)
    append_record(tmp_path, record(0, 0, 10, 2.0))
    growing.all()
    path = tmp_path / RUNS
    path.write_bytes(b"x" * (path.stat().st_size - 1) + b"\n")  # unreadable by now
    append_record(tmp_path, record(1, 0, 10, 2.0))
    assert [r.trial for r in growing.all()] == [0, 1]
    assert [r.trial for r in read_records(tmp_path)] == [1]


def test_a_line_still_being_written_is_read_once_it_is_whole(tmp_path):
    growing = Records(tmp_path)
    append_record(tmp_path, record(0, 0, 10, 2.0))
    path = tmp_path / RUNS
    line = path.read_bytes()
    path.write_bytes(line[:40])
    assert growing.all() == []
    path.write_bytes(line)
    assert growing.all() == [record(0, 0, 10, 2.0)]


def test_a_line_cut_by_a_crash_costs_a_growing_study_that_line_alone(tmp_path):
    growing = Records(tmp_path)
    with (tmp_path / RUNS).open("w") as file:
        file.write('{"run": "tri')
    assert growing.all() == []
    append_record(tmp_path, record(1, 0, 10, 2.0))
    assert growing.all() == [record(1, 0, 10, 2.0)]


def test_what_a_caller_does_with_its_list_stays_with_the_caller(tmp_path):
    growing = Records(tmp_path)
    append_record(tmp_path, record(0, 0, 10, 2.0))
    growing.all().clear()
    assert len(growing.all()) == 1


def test_records_of_old_are_read_without_what_they_could_not_know(tmp_path):
    append_record(tmp_path, record(0, 0, 10, 2.0))
    line = json.loads((tmp_path / RUNS).read_text())
    newer = ("why", "inherited_seconds", "inherited_from")
    (tmp_path / RUNS).unlink()
    append_line(tmp_path / RUNS, {name: value for name, value in line.items() if name not in newer})
    assert read_records(tmp_path) == [record(0, 0, 10, 2.0)]


def test_fields_of_a_newer_version_are_left_out(tmp_path):
    append_record(tmp_path, record(0, 0, 10, 2.0))
    line = json.loads((tmp_path / RUNS).read_text())
    append_line(tmp_path / RUNS, line | {"mood": "good"})
    assert read_records(tmp_path) == [record(0, 0, 10, 2.0)] * 2


def point(step, chance):
    loss = math.nan if chance.random() < 0.01 else 3 * chance.random()
    return CurvePoint(step=step, seconds=step / 7, tokens=64 * step, loss=loss, lr=1e-7, tokens_per_second=500.0)


def test_of_a_curve_some_points_are_those_that_all_of_it_would_give(tmp_path):
    chance = random.Random(0)
    for run in ("straight", "resumed", "cut short"):
        curve_path(tmp_path, run).parent.mkdir(exist_ok=True)
        steps = list(range(1, 60)) + (list(range(40, 90)) if run == "resumed" else [])
        for step in steps:
            append_point(tmp_path, run, point(step, chance))
        if run == "cut short":
            with curve_path(tmp_path, run).open("ab") as file:
                file.write(b'{"step": 60, "seconds": 8.5, "tokens": 3840, "loss": 0.1')
            append_point(tmp_path, run, point(61, chance))
        whole = read_curve(tmp_path, run)
        places = places_of_most_interest([p.loss for p in whole], 12)
        assert repr(read_curve(tmp_path, run, 12)) == repr([whole[place] for place in places])  # nan is not equal to itself
