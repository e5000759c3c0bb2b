from budgetlm.passport import cgroup_limits


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
