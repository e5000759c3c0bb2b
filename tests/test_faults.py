"""A real search, on the real clock, and what machines do to it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from budgetlm.budget.clock import Clock
from budgetlm.budget.ledger import HEARTBEAT_SECONDS
from budgetlm.cli import main
from budgetlm.errors import StudyError
from budgetlm.records import read_curve, read_records
from budgetlm.search.study import search as second_search
from budgetlm.search.unfinished import unfinished_runs
from budgetlm.studies import ledger_of, open_config
from budgetlm.watch import Watcher
from tests.benchmarks.bench_faults import workers_of
from tests.conftest import small_study

ROOT = Path(__file__).parent.parent
STUDY = Path("studies/small")


@pytest.fixture
def search(home, corpus_folder, cache):
    """Starts the command on a study of seconds, in a process group of its own."""
    started = []

    def start(folder=home, **changes):
        (folder / "small.toml").write_text(small_study(corpus_folder, **changes))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "BUDGETLM_CACHE": str(cache), "COLUMNS": "200"}
        process = subprocess.Popen(
            [sys.executable, "-m", "budgetlm", "search", "--file", "small.toml"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def finished(process, workers=1):
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    check_the_books(workers)
    return output


def check_the_books(workers):
    """What must hold after every search that has spent its budget, whatever was done to it."""
    config = open_config("small")
    balance, records = ledger_of("small").balance(), read_records(STUDY)
    assert balance.charged_seconds <= balance.budget_seconds + workers * HEARTBEAT_SECONDS
    assert balance.leased_seconds == 0
    assert all(seconds > -0.05 for r in records for seconds in r.by_purpose.values())
    assert not unfinished_runs(STUDY)
    assert not list(STUDY.glob("**/step-*"))  # no weights are left of what cannot be gone on with
    trials = optuna.load_study(study_name=config.name, storage=f"sqlite:///{STUDY / 'study.db'}").trials
    assert not [t for t in trials if t.state == optuna.trial.TrialState.RUNNING]
    ends = [r.run for r in records if r.state != "interrupted"]
    assert len(ends) == len(set(ends))
    return records


def test_a_worker_that_is_shot_is_replaced_and_costs_its_trial_nothing_but_time(search):
    process = search(hours=9 / 3600)
    shot = [wait_for(lambda: workers_of(process.pid))[0]]  # while the device is looked at
    os.kill(shot[0], signal.SIGKILL)
    wait_for(lambda: len(read_records(STUDY)) >= 1)
    for number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL):
        before = len(read_records(STUDY))
        victim = wait_for(lambda: [p for p in workers_of(process.pid) if p not in shot])[0]
        shot.append(victim)
        os.kill(victim, number)
        wait_for(lambda before=before: len(read_records(STUDY)) > before)
    finished(process)
    cut = [r for r in read_records(STUDY) if r.state == "interrupted"]
    assert {r.cause for r in cut} == {"killed"}
    assert {"SIGABRT", "SIGSEGV", "SIGKILL"} >= {r.error.rpartition(" ")[2] for r in cut} != set()
    done = {r.run for r in read_records(STUDY) if r.state == "done"}
    assert {r.run for r in cut} <= done


def test_time_for_which_all_or_only_the_search_was_stopped_is_charged_as_far_as_a_worker_worked(search):
    process = search(hours=9 / 3600)
    wait_for(lambda: len(read_records(STUDY)) >= 1 and workers_of(process.pid))
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGSTOP)
    before = ledger_of("small").balance().charged_seconds
    time.sleep(4.0)
    assert ledger_of("small").balance().charged_seconds == before
    os.killpg(process.pid, signal.SIGCONT)
    stopped = time.monotonic() - began
    wait_for(lambda: ledger_of("small").balance().charged_seconds > before)
    assert ledger_of("small").balance().charged_seconds < before + 0.5 * stopped
    seen = len(read_records(STUDY))
    wait_for(lambda: len(read_records(STUDY)) > seen and workers_of(process.pid))
    os.kill(process.pid, signal.SIGSTOP)  # its worker works on
    time.sleep(3.0)
    os.kill(process.pid, signal.SIGCONT)
    finished(process)
    records = read_records(STUDY)
    assert not [r for r in records if r.state != "done"]  # nothing was lost
    charged = {run: sum(spent.values()) for run, spent in ledger_of("small").by_run().items()}
    for record in records:
        assert record.seconds == pytest.approx(charged[record.run], abs=0.05)
        assert record.seconds > read_curve(STUDY, record.run)[-1].seconds - 0.05  # which is the worker's own account


def test_two_workers_share_one_budget_and_a_second_search_is_sent_away_unnoticed(search, cache):
    process = search(devices=2, hours=12 / 3600)
    assert wait_for(lambda: len(workers_of(process.pid)) == 2)
    with pytest.raises(StudyError, match="another search is running on study 'small'"):
        second_search(open_config("small"), cache, Clock(), Watcher())
    finished(process, workers=2)
    assert {r.place for r in read_records(STUDY)} == {0, 1}
    assert len(read_records(STUDY)) > 6


def test_in_a_space_most_of_which_is_too_large_for_the_memory_no_run_fails_for_want_of_it(search):
    process = search(hours=90 / 3600, memory_gb=0.06, width="{ low = 16, high = 784, step = 384 }")

    def trials(state):
        if not (STUDY / "study.db").exists():
            return []
        known = optuna.study.get_all_study_names(f"sqlite:///{STUDY / 'study.db'}")
        study = optuna.load_study(study_name="small", storage=f"sqlite:///{STUDY / 'study.db'}") if known else None
        return [t.number for t in study.get_trials(states=[state])] if study else []

    wait_for(lambda: trials(optuna.trial.TrialState.PRUNED))
    after = len(read_records(STUDY))
    wait_for(lambda: len(read_records(STUDY)) > after + 1)  # it goes on with others
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    charged = ledger_of("small").balance().charged_seconds
    finished(search(hours=(charged + 4) / 3600, memory_gb=0.06, width="{ low = 16, high = 784, step = 384 }"))
    records = read_records(STUDY)
    assert {r.state for r in records if r.cause != "stopped"} == {"done"}
    assert not set(trials(optuna.trial.TrialState.PRUNED)) & {r.trial for r in records}


def test_a_full_disk_stops_the_search_cleanly_and_it_goes_on_when_there_is_room(search, home):
    with SmallDisk(home / "disk", megabytes=8):
        os.chdir(home / "disk")
        ballast = home / "disk" / "ballast"
        process = search(folder=home / "disk")
        wait_for(lambda: len(read_records(STUDY)) >= 1)
        fill(ballast)
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 1, output
        assert "Traceback" not in output
        assert "budgetlm: " in output.splitlines()[-1]
        before = [r.run for r in read_records(STUDY) if r.state == "done"]
        ballast.unlink()
        finished(search(folder=home / "disk"))
        assert [r.run for r in read_records(STUDY) if r.state == "done"][: len(before)] == before
        os.chdir(home)


def test_a_folder_that_cannot_be_written_is_said_in_a_line(home, corpus_folder, cache, monkeypatch, capsys):
    with SmallDisk(home / "disk", megabytes=20):
        (home / "disk" / "studies").mkdir()
        (home / "disk" / "small.toml").write_text(small_study(corpus_folder))
        subprocess.run(["mount", "-o", "remount,ro", str(home / "disk")], check=True)
        monkeypatch.chdir(home / "disk")
        monkeypatch.setenv("BUDGETLM_CACHE", str(cache))
        monkeypatch.setattr("budgetlm.search.ahead.load_ahead", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["budgetlm", "search", "--file", "small.toml"])
        with pytest.raises(SystemExit) as left:
            main()
        monkeypatch.chdir(home)
        assert left.value.code == 1
        said = capsys.readouterr().err
        assert "Read-only file system" in said
        assert "Traceback" not in said


class SmallDisk:
    """A file system of a few megabytes, where the system lets us make one."""

    def __init__(self, path, megabytes):
        self.path, self.megabytes = path, megabytes

    def __enter__(self):
        self.path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={self.megabytes}m", "tmpfs", str(self.path)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", str(self.path)], check=True)


def fill(path):
    """Write until nothing fits any more."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
