import subprocess

import pytest

import budgetlm
from budgetlm import passport
from budgetlm.errors import StudyError
from budgetlm.passport import cgroup_limits, take_passport


def written(folder, files: dict[str, str]):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_memory_is_limited_by_a_containers_control_groups_and_those_above(tmp_path):
    root = written(tmp_path / "v2", {"a/b/memory.max": "max\n", "a/memory.max": "3000\n", "other/memory.max": "1\n"})
    membership = written(tmp_path, {"cgroup2": "0::/a/b\n"}) / "cgroup2"
    assert cgroup_limits(root, membership) == [3000]

    root = written(tmp_path / "v1", {"memory/job/memory.limit_in_bytes": "5000\n", "memory/memory.limit_in_bytes": "9000\n"})
    membership = written(tmp_path, {"cgroup1": "8:cpu,memory:/job\n3:cpuset:/job\n0::/\n"}) / "cgroup1"
    assert cgroup_limits(root, membership) == [5000, 9000]


def test_a_container_that_does_not_see_its_own_path_is_limited_by_the_roots_file(tmp_path):
    root = written(tmp_path / "fs", {"memory/memory.limit_in_bytes": "7000\n"})
    membership = written(tmp_path, {"cgroup": "4:memory:/docker/0123abc\n"}) / "cgroup"
    assert cgroup_limits(root, membership) == [7000]


def test_where_there_are_no_control_groups_there_is_no_limit(tmp_path):
    assert cgroup_limits(tmp_path / "fs", tmp_path / "cgroup") == []


def test_the_highest_ceiling_ever_measured_counts_so_that_a_busy_moment_changes_no_plan(tmp_path, monkeypatch):
    measured = {"float32": [100.0, 60.0, 105.0, 150.0], "bfloat16": [1.0, 1.2, 1.0, 1.0]}
    monkeypatch.setattr(passport, "_ceiling", lambda _device, dtype: measured[dtype].pop(0))
    taken = [take_passport("cpu", tmp_path) for _ in range(4)]
    assert [p.fp32_gflops for p in taken] == [100.0, 100.0, 100.0, 150.0]  # 5 % more is no other machine
    assert [p.bf16_gflops for p in taken] == [1.0, 1.2, 1.2, 1.2]


def test_ceilings_that_were_kept_and_cannot_be_read_are_an_error_that_names_the_file(tmp_path):
    take_passport("cpu", tmp_path)
    (kept,) = (tmp_path / "ceilings").iterdir()
    kept.write_text("{")
    with pytest.raises(StudyError, match=f"{kept.name} is damaged"):
        take_passport("cpu", tmp_path)


def test_results_say_which_commit_they_were_made_at(tmp_path, monkeypatch):
    def git(*words):
        return subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True, text=True).stdout

    (tmp_path / "budgetlm").mkdir()
    code = tmp_path / "budgetlm/passport.py"
    code.write_text("")
    monkeypatch.setattr(passport, "__file__", str(code))
    assert passport.version.__wrapped__() == budgetlm.__version__
    git("init", "-q")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "one")
    commit = git("rev-parse", "--short=7", "HEAD").strip()
    assert passport.version.__wrapped__() == f"{budgetlm.__version__}+{commit}"
    code.write_text("changed")
    assert passport.version.__wrapped__() == f"{budgetlm.__version__}+{commit}-dirty"
