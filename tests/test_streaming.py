"""Real commands on a source that is larger than what they wait for."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from budgetlm.budget.holder import _started
from budgetlm.records import read_records
from tests.benchmarks.bench_faults import children
from tests.conftest import sentences, small_study
from tests.test_faults import ROOT, wait_for

STUDY = Path("studies/small")
PATIENCE = 300.0
"""Seconds: a process of low priority may have to wait long on a machine at which others are at work."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """So much text that no command here gets to its end: 40 MB."""
    path = tmp_path_factory.mktemp("large") / "texts.jsonl"
    with path.open("w") as file:
        for copy in range(40):
            file.writelines(json.dumps({"text": f"copy {copy}\n{text}"}) + "\n" for text in sentences(2_000))
    return path


@pytest.fixture
def command(home, source):
    """Runs commands on it, in a process group of their own."""
    text = small_study(source, hours=10 / 3600).replace(
        "vocab_size = 320", 'vocab_size = 320\nstream = "on"\nhead_bytes = 200_000'
    )
    (home / "small.toml").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BUDGETLM_CACHE": str(home / "cache"), "COLUMNS": "200"}
    begun = []

    def run(*arguments):
        line = [sys.executable, "-m", "budgetlm", *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        begun.append(subprocess.Popen(line, cwd=home, env=environment, start_new_session=True, **streams))
        return begun[-1]

    yield run
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def writer_of(process):
    """The process that reads the rest: workers are forked, it alone is spawned."""
    return next((pid for pid in children(process.pid) if b"spawn_main" in _command_line(pid)), 0)


def _command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def shards(home):
    return list(home.glob("cache/tokens/*/rest/*.bin"))


def complete(home):
    return list(home.glob("cache/tokens/*/rest/complete.json"))


def test_search_and_final_train_while_the_rest_is_read_and_leave_nobody_behind(command, home):
    search = command("search", "--file", "small.toml")
    writer = wait_for(lambda: writer_of(search), PATIENCE)
    wait_for(lambda: read_records(STUDY), PATIENCE)
    assert not complete(home)  # training did not wait for it
    output = search.communicate(timeout=PATIENCE)[0]
    assert search.returncode == 0, output
    assert "the rest is read beside training" in output
    assert "warning   the rest" not in output
    assert wait_for(lambda: _started(writer) is None, PATIENCE)
    before = len(shards(home))
    final = command("final", "--study", "small")
    output = final.communicate(timeout=PATIENCE)[0]
    assert final.returncode == 0, output
    assert len(shards(home)) >= before
    assert ("was not all read" in output) == (not complete(home))  # its writer is gone by the time that it says so


def test_a_writer_that_is_killed_is_a_line_and_the_search_goes_on(command):
    search = command("search", "--file", "small.toml")
    os.kill(wait_for(lambda: writer_of(search), PATIENCE), signal.SIGKILL)
    output = search.communicate(timeout=PATIENCE)[0]
    assert search.returncode == 0, output
    lines = [line for line in output.splitlines() if line.startswith("warning   the rest of")]
    assert len(lines) == 1
    assert "was ended (exit code -9). Repeat the command to go on." in lines[0]
    assert "Traceback" not in output
    assert [r.state for r in read_records(STUDY)].count("done") >= 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_ctrl_c_and_sigterm_end_the_writer_too(command, number, code):
    search = command("search", "--file", "small.toml")
    writer = wait_for(lambda: writer_of(search), PATIENCE)
    os.killpg(search.pid, number)
    output = search.communicate(timeout=PATIENCE)[0]
    assert search.returncode == code, output
    assert wait_for(lambda: _started(writer) is None, PATIENCE)
    assert "Traceback" not in output
