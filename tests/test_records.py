import json

from budgetlm.files import append_line
from budgetlm.records import RUNS, Records, append_record, read_records
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
