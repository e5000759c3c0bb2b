import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from budgetlm.budget.clock import Clock
from budgetlm.records import CurvePoint
from budgetlm.workers.child import Place
from budgetlm.workers.job import Ended, Failure, Spent
from budgetlm.workers.processes import Processes
from tests.workers import jobs


@pytest.fixture
def hire():
    hired = []

    def make(*places, **options):
        hired.append(Processes(places or (Place("cpu", threads=1),), Clock(), **options))
        return hired[-1]

    yield make
    for workers in hired:
        workers.close()


def run(workers, job, place=0, most_seconds=60.0):
    workers.start(place, job, most_seconds)
    return hear(workers)[1]


def hear(workers):
    """All that is said until a job has ended, and its outcome."""
    said = []
    while True:
        for _, event in workers.wait(1.0):
            said.append(event)
            if isinstance(event, Ended):
                return said, event.outcome


def test_every_job_has_a_process_of_its_own_with_its_device_and_threads(hire):
    workers = hire(Place("cpu", threads=1), Place("cuda", index="3", threads=2))
    first, again, other = run(workers, jobs.Look()), run(workers, jobs.Look()), run(workers, jobs.Look(), place=1)
    assert len({first["pid"], again["pid"], other["pid"], os.getpid()}) == 4
    assert (first["threads"], other["threads"]) == (1, 2)
    assert other["gpu"] == "3"
    assert first["oom"] > int(Path("/proc/self/oom_score_adj").read_text())


def test_what_a_job_says_arrives_and_its_time_is_explained(hire):
    workers = hire()
    workers.start(0, jobs.Talk(), 60.0)
    said, outcome = hear(workers)
    assert outcome == "done"
    assert [type(e) for e in said if isinstance(e, CurvePoint)] == [CurvePoint]
    spent = {}
    for event in said:
        if isinstance(event, Spent):
            for purpose, seconds in event.by_purpose.items():
                spent[purpose] = spent.get(purpose, 0.0) + seconds
    assert 0.5 < spent["train"] < 3.0
    assert spent["start"] > 0


@pytest.mark.parametrize(
    ("how", "cause", "message"),
    [
        ("abort", "killed", "SIGABRT"),
        ("segfault", "killed", "SIGSEGV"),
        ("kill", "killed", "SIGKILL"),
        ("exit", "killed", "exit code 7"),
        ("bug", "exception", "ZeroDivisionError: ours"),
        ("config", "configuration", "no such shape"),
        ("disk", "study", "the disk is full"),
        ("cuda", "device", "CUDA error"),
        ("lambda", "exception", "cannot be sent"),
    ],
)
def test_however_a_job_ends_the_search_hears_of_it_and_goes_on(hire, how, cause, message):
    workers = hire()
    outcome = run(workers, jobs.Break(how))
    assert isinstance(outcome, Failure)
    assert outcome.cause == cause
    assert message in outcome.message
    assert isinstance(run(workers, jobs.Look()), dict)


def test_a_traceback_keeps_the_place_where_it_happened(hire):
    assert "tests/workers/jobs.py" in run(hire(), jobs.Break("bug")).message


def test_a_job_that_wants_more_memory_than_its_place_has_fails_for_that_reason(hire):
    workers = hire(Place("cpu", threads=1, memory_bytes=500_000_000))
    assert run(workers, jobs.Grow(0.2)) == 5e7
    outcome = run(workers, jobs.Grow(1.0))
    assert outcome.cause == "memory"


def test_a_job_is_asked_to_stop_by_the_search_or_by_sigterm(hire):
    workers = hire()
    workers.start(0, jobs.Wait(), 60.0)
    workers.stop()
    assert hear(workers)[1] == "stopped"
    workers.start(0, jobs.Wait(), 60.0)
    while not any(isinstance(event, CurvePoint) for _, event in workers.wait(1.0)):
        pass  # it is on its way
    os.kill(workers._work[0].process.pid, signal.SIGTERM)
    assert hear(workers)[1] == "stopped"


def test_a_job_that_is_silent_or_never_ends_is_ended(hire):
    silent = hire(hang_seconds=0.5)
    assert "nothing was heard" in run(silent, jobs.Wait(listens=False)).message
    endless = hire()
    endless.start(0, jobs.Wait(listens=False), most_seconds=-6.0)
    outcome = hear(endless)[1]
    assert outcome.cause == "hang"
    assert "instead of" in outcome.message


def test_workers_do_not_outlive_a_search_that_is_killed(tmp_path):
    code = f"""
import os, signal, time
from budgetlm.budget.clock import Clock
from budgetlm.workers.child import Place
from budgetlm.workers.processes import Processes
from budgetlm.workers.job import Ended
from tests.workers import jobs
if __name__ == "__main__":
    workers = Processes([Place("cpu", threads=1)], Clock())
    workers.start(0, jobs.Look(), 60.0)
    while not any(isinstance(event, Ended) for _, event in workers.wait(1.0)): pass
    workers.start(0, jobs.Forget({str(tmp_path / "mark")!r}), 60.0)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    script = tmp_path / "search.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, script], env=environment).returncode == -signal.SIGKILL
    time.sleep(3.5)  # the job would be done by now
    assert not (tmp_path / "mark").exists()


def test_a_worker_finds_what_it_runs_imported_already():
    code = """
import sys
import budgetlm.workers.preload
from budgetlm.search.ahead import PRELOAD
for name in PRELOAD:
    __import__(name)
before = set(sys.modules)
from budgetlm.train.loop import train
print(sorted(set(sys.modules) - before))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"  # a device waits for whatever is imported after a fork
