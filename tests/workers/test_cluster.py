"""On a Ray of this machine, which takes a while to start: one for all tests."""

import os

import pytest

from budgetlm.budget.clock import Clock
from budgetlm.config import TrainSettings
from budgetlm.errors import ConfigError
from budgetlm.records import CurvePoint
from budgetlm.workers.child import Place
from budgetlm.workers.cluster import Cluster
from budgetlm.workers.job import Failure, Spent
from budgetlm.workers.raylink import as_options, needs_of, room
from tests.workers import jobs
from tests.workers.test_processes import hear, run

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray leaves sockets open


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    workers = Cluster("", 2, Place("cpu", threads=1), Clock())
    yield workers
    workers.close()
    ray.shutdown()


def test_jobs_are_done_by_ray_and_what_they_say_arrives(cluster):
    assert 0 in cluster.places
    assert run(cluster, jobs.Look())["pid"] != os.getpid()
    cluster.start(0, jobs.Talk(), 60.0)
    said, outcome = hear(cluster)
    assert outcome == "done"
    assert any(isinstance(event, CurvePoint) for event in said)
    assert sum(event.by_purpose.get("train", 0.0) for event in said if isinstance(event, Spent)) >= 0.6


def test_a_job_that_is_asked_to_stop_returns(cluster):
    cluster.start(0, jobs.Wait(), 60.0)
    while not any(isinstance(event, CurvePoint) for _, event in cluster.wait(0.2)):
        pass
    cluster.stop()
    assert hear(cluster)[1] == "stopped"


def test_a_crash_is_a_failure_of_its_machine_and_a_bug_one_of_ours(cluster):
    crash, bug = run(cluster, jobs.Break("kill")), run(cluster, jobs.Break("bug"))
    assert isinstance(crash, Failure)
    assert crash.cause == "killed"
    assert bug.cause == "exception"
    assert "ZeroDivisionError" in bug.message


def test_a_job_can_be_ended_by_force(cluster):
    cluster.start(0, jobs.Wait(listens=False), 60.0)
    while not any(isinstance(event, CurvePoint) for _, event in cluster.wait(0.2)):
        pass
    cluster.kill(0, "the budget was spent")
    assert hear(cluster)[1] == Failure("hang", "the budget was spent")


@pytest.mark.parametrize(("share", "places"), [(1.0, 3), (0.5, 6), (0.6, 3), (0.1, 30)])
def test_runs_that_share_a_gpu_are_as_many_as_fit_each_of_them(share, places):
    class Ray:
        cluster_resources = staticmethod(lambda: {"GPU": 3.0, "CPU": 8.0})

    needs = needs_of(Ray, "auto", 1, share)
    assert as_options(needs) == {"num_gpus": share}
    assert room(Ray, needs) == places
    assert room(Ray, needs_of(Ray, "cpu", 3, share)) == 2


def test_a_share_of_a_gpu_is_for_ray_and_no_more_than_all_of_it():
    assert TrainSettings(engine="ray", gpu_share=0.25).gpu_share == 0.25
    with pytest.raises(ConfigError, match="for Ray, which places several"):
        TrainSettings(gpu_share=0.5)
    with pytest.raises(ConfigError, match="above 0, and at most 1"):
        TrainSettings(engine="ray", gpu_share=1.5)


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"budgetlm\[ray\]"):
        Cluster("", 1, Place("cpu"), Clock())
