"""A search and its final on a Ray cluster of two nodes on this machine: a worker's process is killed, a node is removed, and all ends as it should.

    python -m tests.benchmarks.bench_ray               # needs `pip install 'budgetlm[ray]'`

The final is trained by both nodes together; one of them is removed in the middle, and another takes its place. Prints what is wrong with the study
(all should be 0), how the final ended, and what surrounds a run beside its own seconds, on Ray and in processes of our own: its start, and what its place is held for
while the search asks, tells, forecasts and keeps its account.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from budgetlm.records import read_curve, read_records
from budgetlm.studies import ledger_of
from tests.benchmarks.bench_cluster import judge

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

COMMAND = "search --study {study} --data stdlib --hours {hours} --target-hours 0.0222 --threads 1 --device cpu"
TASK = b"ray::_do"
AWAY_SECONDS = 5.0
"""How long a cluster has a node less."""


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hours", type=float, default=0.05, help="device-hours of each search")
    parser.add_argument("--final-hours", type=float, default=0.1, help="device-hours of the final")
    options = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="bench-ray-"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    command = COMMAND.format(study="ray", hours=options.hours) + f" --engine ray --ray-address {cluster.address}"
    with (folder / "log.txt").open("w") as log:
        search = subprocess.Popen([sys.executable, "-m", "budgetlm", *command.split()], cwd=folder, stdout=log, stderr=log)
        _wait_for(lambda: len(_records(folder, "ray")) >= 2, search)
        killed = _wait_for(_tasks, search)[0]
        os.kill(killed, signal.SIGKILL)
        _wait_for(lambda: any(r.cause == "killed" for r in _records(folder, "ray")), search)
        cluster.remove_node(second)
        code = search.wait()
    print(f"Ray, two nodes of one CPU: process {killed} killed, a node removed; exit code {code}; log: {folder / 'log.txt'}")
    print(json.dumps(judge(folder, "ray", 2), indent=1))
    _final(folder, cluster, options.final_hours)
    cluster.shutdown()
    local = COMMAND.format(study="local", hours=options.hours).split()
    with (folder / "local.txt").open("w") as log:
        subprocess.run([sys.executable, "-m", "budgetlm", *local], cwd=folder, stdout=log, stderr=log, check=True)
    for study in ("ray", "local"):
        own = [r for r in _records(folder, study) if r.state == "done"]
        for purpose, what in (
            ("start", "a task's or process's start"),
            ("other", "asking, telling, forecasts and the ledger"),
        ):
            seconds = [r.by_purpose.get(purpose, 0.0) for r in own]
            print(
                f"{study}: {len(own)} runs, {what} {statistics.median(seconds):.2f} s a run (median), {max(seconds):.2f} at most"
            )


def _final(folder: Path, cluster: "Cluster", hours: float) -> None:
    """Train the final on two nodes, of which one goes away in the middle, and say how it ended."""
    second = cluster.add_node(num_cpus=1)
    command = f"final --study ray --hours {hours} --devices 2 --engine ray --ray-address {cluster.address}"
    with (folder / "final.txt").open("w") as log:
        final = subprocess.Popen([sys.executable, "-m", "budgetlm", *command.split()], cwd=folder, stdout=log, stderr=log)
        _wait_for(lambda: any(read_curve(folder / "studies/ray", p.stem) for p in _curves(folder)), final)
        cluster.remove_node(second)
        time.sleep(AWAY_SECONDS)
        cluster.add_node(num_cpus=1)
        code = final.wait()
    (record,) = (r for r in _records(folder, "ray") if r.kind == "final")
    began_again = (folder / "final.txt").read_text().count("began again")
    with contextlib.chdir(folder):
        charged = ledger_of("ray").balance(record.run).charged_seconds
    print(
        f"final on both: a node removed, another {AWAY_SECONDS:.0f} s later; exit code {code}, {record.state}, begun again {began_again} times, "
        f"{record.bpb:.3f} bits per byte, {charged:.1f} of {3600 * hours:.1f} device-seconds charged"
    )


def _curves(folder: Path) -> list[Path]:
    return list((folder / "studies/ray/curves").glob("final-*"))


def _records(folder: Path, study: str) -> list:
    return read_records(folder / "studies" / study)


def _tasks() -> list[int]:
    """Processes of Ray that do a job just now."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(TASK):
                found.append(int(process.name))
    return found


def _wait_for(what, search: subprocess.Popen):
    while not (found := what()):
        assert search.poll() is None, "the search has ended before its time"
        time.sleep(0.5)
    return found


if __name__ == "__main__":
    main()
