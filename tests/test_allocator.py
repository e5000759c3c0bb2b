import os
import subprocess
import sys
from pathlib import Path

import pytest

from budgetlm import allocator
from budgetlm.allocator import (
    LIBRARIES,
    PRELOAD,
    begin_again,
    find_allocator,
    keep_freed_memory,
    loaded_allocator,
    preloading,
)
from budgetlm.errors import ConfigError

ROOT = Path(__file__).parents[1]
HERE = {
    name: any((f / file).exists() for f in (Path("/usr/lib"), *Path("/usr/lib").glob("*-linux-gnu*")) for file in files)
    for name, files in LIBRARIES.items()
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The only place where a system's libraries lie, as Debian has it, with nothing in it."""
    libraries = tmp_path / "x86_64-linux-gnu"
    libraries.mkdir()
    monkeypatch.setattr(allocator, "FOLDERS", (tmp_path / "none", tmp_path))
    monkeypatch.delenv(PRELOAD, raising=False)
    return libraries


def python(code: str, *arguments: str, **environment: str) -> str:
    """What a program prints that is nobody's test."""
    clean = {k: v for k, v in os.environ.items() if k != PRELOAD}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_the_first_that_there_is_is_taken_and_one_that_is_asked_for_must_be_there(folder):
    assert find_allocator("auto") is None
    with pytest.raises(ConfigError, match="apt install libtcmalloc-minimal4"):
        find_allocator("tcmalloc")
    (folder / "libjemalloc.so.2").touch()
    assert find_allocator("auto") == find_allocator("jemalloc") == folder / "libjemalloc.so.2"
    (folder / "libtcmalloc_minimal_debug.so.4").touch()
    assert find_allocator("auto") == folder / "libjemalloc.so.2"
    (folder / "libtcmalloc_minimal.so.4").touch()
    assert find_allocator("auto") == find_allocator("tcmalloc") == folder / "libtcmalloc_minimal.so.4"
    assert find_allocator("off") is None


def test_the_environment_has_it_for_new_processes_only_and_keeps_what_a_person_has_there(folder, monkeypatch):
    before = dict(os.environ)
    with preloading("auto"):
        assert os.environ == before
    library = folder / "libjemalloc.so.2"
    library.touch()
    with preloading("off"):
        assert os.environ == before
    with preloading("auto"):
        assert os.environ[PRELOAD] == str(library)
        with preloading("auto"):
            assert os.environ[PRELOAD] == str(library)
    assert os.environ == before
    monkeypatch.setenv(PRELOAD, "theirs.so")
    with preloading("auto"):
        assert os.environ[PRELOAD] == f"{library} theirs.so"
    assert os.environ[PRELOAD] == "theirs.so"


@pytest.mark.parametrize("name", [name for name, there in HERE.items() if there])
def test_it_is_in_place_in_workers_and_in_a_program_that_begins_again_and_gives_memory_back_when_told(name):
    worker = f"""
from budgetlm.budget.clock import Clock
from budgetlm.workers.child import Place
from budgetlm.workers.job import Ended
from budgetlm.workers.processes import Processes, start_server
from tests.workers import jobs
from budgetlm.allocator import loaded_allocator
if __name__ == "__main__":
    start_server((), {name!r})
    workers = Processes([Place("cpu", threads=1)], Clock())
    workers.start(0, jobs.Look(), 60.0)
    heard = []
    while not any(isinstance(event, Ended) for event in heard): heard += [event for _, event in workers.wait(1.0)]
    print(loaded_allocator() or "libc", heard[-1].outcome["allocator"])
"""
    assert python(worker) == f"libc {name}"
    again = f"""
import sys
from budgetlm.allocator import begin_again, keep_freed_memory, loaded_allocator
begin_again({name!r})
print(loaded_allocator(), sys.argv[1:], keep_freed_memory(keep=False), keep_freed_memory(keep=True))
"""
    assert python(again, "a", "b c") == f"{name} ['a', 'b c'] True True"


def test_one_that_cannot_be_loaded_is_tried_once(tmp_path):
    code = f"""
import pathlib
from budgetlm import allocator
allocator.FOLDERS = (pathlib.Path({str(tmp_path)!r}),)
allocator.begin_again("tcmalloc")
print("went on with", allocator.loaded_allocator() or "libc")
"""
    (tmp_path / "libtcmalloc.so.4").write_text("no library")
    assert python(code, "x").splitlines()[-1] == "went on with libc"


def test_a_program_of_others_is_not_begun_again(folder, monkeypatch):
    (folder / "libjemalloc.so.2").touch()
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it was"))
    monkeypatch.setattr(sys, "argv", ["budgetlm", "final", "--study", "x"])
    begin_again("auto")


def test_without_one_the_c_librarys_is_left_to_others(monkeypatch, tmp_path):
    monkeypatch.setattr(allocator, "MAPS", tmp_path / "none")
    assert loaded_allocator() == ""
    assert not keep_freed_memory(keep=True)
