"""A final on a Ray of this machine: its members are tasks, which Ray places and the account pays for."""

import os
import signal
from pathlib import Path

import pytest

from budgetlm.errors import ConfigError
from tests.train.parallel.test_together import Notes, ask_to_stop, charged, run

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray leaves sockets open


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray = pytest.importorskip("ray")
    yield ray
    ray.shutdown()


def members():
    """Processes of members, as Ray names them."""
    lines = {path.parent.name: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()}
    return [int(pid) for pid, line in lines.items() if line.startswith(b"ray::_work")]


def kill_a_member():
    os.kill(members()[0], signal.SIGKILL)


def test_a_final_of_two_ray_tasks_outlives_one_of_them_and_is_charged_for_both(searched, cache, cluster):
    watcher = Notes(kill_a_member)
    result = run(searched, cache, watcher, seconds=90.0, engine="ray", final_devices=2, checkpoint_seconds=0.2, threads=1)
    record = result.record
    assert (record.state, record.devices) == ("done", 2)
    assert any("2 on the Ray cluster, ddp" in note for note in watcher.said)
    assert any("all 2 began again from the newest checkpoint" in note for note in watcher.said)
    assert record.seconds == pytest.approx(charged(searched, record.run), rel=0.02)
    assert 0.9 * 90.0 < record.seconds < 90.0 + 0.5
    assert (result.folder / "model" / "model.safetensors").exists()
    assert not members()
    assert not [group for group in cluster.util.placement_group_table().values() if group["state"] == "CREATED"]


def test_a_final_on_ray_that_is_stopped_goes_on_here(searched, cache):
    parts = [
        run(searched, cache, Notes(ask_to_stop), seconds=300.0, threads=1, **train)
        for train in ({"engine": "ray", "final_devices": 2}, {})
    ]
    for part in parts:
        assert (part.record.state, part.exit_code) == ("interrupted", 75)
    assert [part.record.devices for part in parts] == [2, 1]
    assert parts[0].record.steps < parts[1].record.steps


def test_more_devices_than_the_cluster_has_are_refused(searched, cache):
    with pytest.raises(ConfigError, match="1000 devices are asked for, but the Ray cluster has places for"):
        run(searched, cache, engine="ray", final_devices=1000, threads=1)
