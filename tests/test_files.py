import pytest

from budgetlm.errors import ConfigError, StudyError
from budgetlm.files import append_line, checked_name, digest, new_folder, read_json, read_lines, write_atomic, write_json


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 65, "a..b", "-flag", "a\n", "<script>"])
def test_names_that_could_leave_their_folder_are_refused(name):
    with pytest.raises(ConfigError, match="cannot name a study"):
        checked_name(name)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})

    def fails(temporary):
        temporary.write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_atomic(path, fails)
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "made") as new:
        (new / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "made") as new:
        (new / "whole").write_text("x")
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["whole"]


def test_a_full_disk_is_said_plainly_and_damages_nothing(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, 1)

    def full(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(StudyError, match="No space left.*MB free.*repeat the command"):
        write_atomic(path, full)
    assert read_json(path) == 1


def test_a_line_cut_by_a_crash_costs_that_line_alone(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2')
    assert read_lines(path) == [{"a": 1}]
    append_line(path, {"a": 3})
    assert read_lines(path) == [{"a": 1}, {"a": 3}]


def test_a_damaged_json_file_says_which(tmp_path):
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(StudyError, match=r"plan\.json is damaged"):
        read_json(tmp_path / "plan.json")


def test_fingerprints_depend_on_values_not_on_order():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
