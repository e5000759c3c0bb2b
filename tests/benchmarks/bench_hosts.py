"""Two hosts with addresses of their own, as network namespaces of this machine, one study, a PostgreSQL server, and a link that is cut.

    sudo python -m tests.benchmarks.bench_hosts --cut 40        # Linux, root, iproute2, PostgreSQL
    sudo python -m tests.benchmarks.bench_hosts --shared        # the hosts have folders and caches of their own, and a bucket

The leader is on one host, a worker on the other. While the worker is at a run its link is cut for longer than the leader waits for it; then the link
comes back. Prints what became of that run, and what is wrong with the study (all should be 0).
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from budgetlm.records import read_curve, read_records
from budgetlm.workers.board import Board
from budgetlm.workers.bucket import MANIFEST
from tests.benchmarks.bench_cluster import STUDY_FILE, judge
from tests.postgres import server

HOSTS = {"leader": "10.77.1", "worker": "10.77.2"}
"""Names, and the first three numbers of their networks; the server is .1 of each, the host .2."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """A namespace for each host, and a pair of interfaces from each to here."""
    try:
        for host, net in HOSTS.items():
            _ip("netns", "add", f"bl-{host}")
            _ip("link", "add", f"bl-{host}", "type", "veth", "peer", "name", "eth0", "netns", f"bl-{host}")
            _ip("addr", "add", f"{net}.1/24", "dev", f"bl-{host}")
            _ip("link", "set", f"bl-{host}", "up")
            for words in (
                ("addr", "add", f"{net}.2/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", f"bl-{host}", *words)
            _ip("-n", f"bl-{host}", "route", "add", "default", "via", f"{net}.1")
        _ip("addr", "add", "10.77.0.1/32", "dev", "lo")
        yield
    finally:
        subprocess.run(["ip", "addr", "del", "10.77.0.1/32", "dev", "lo"], check=False)
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", f"bl-{host}"], check=False)
            subprocess.run(["ip", "link", "del", f"bl-{host}"], check=False, stderr=subprocess.DEVNULL)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cut", type=float, default=40.0, help="seconds for which the link is away")
    parser.add_argument("--hours", type=float, default=0.06)
    parser.add_argument("--shared", action="store_true", help="what the hosts have in common is a bucket, a third folder")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-hosts-"))
    home, bucket = (folder / "home of leader" if options.shared else folder), folder / "bucket"
    home.mkdir(exist_ok=True)
    with network(), server("10.77.0.1") as database:
        (home / "hosts.toml").write_text(_study(options.hours, database.storage, bucket if options.shared else None))
        leader = _start(folder, home, "leader", "search --file hosts.toml")
        join = f"worker --study hosts --storage {database.storage} --shared {bucket.as_uri()}"
        there = folder / "home of worker" if options.shared else folder
        there.mkdir(exist_ok=True)
        worker = _start(folder, there, "worker", join if options.shared else "worker --study hosts")
        while not (run := _at_work(database.storage)) or (options.shared and not _sent(bucket, run)):
            assert leader.poll() is None, "the search has ended before its time"
            time.sleep(0.5)
        last = _sent(bucket, run)
        _ip("link", "set", "bl-worker", "down")
        print(f"the worker is at {run}; its link is cut for {options.cut:.0f} s")
        time.sleep(options.cut)
        _ip("link", "set", "bl-worker", "up")
        codes = leader.wait(), worker.wait()
        faults = judge(home, "hosts", 2)
    for part in [r for r in read_records(home / "studies/hosts") if r.run == run]:
        print(
            f"{run}: {part.state} at place {part.place} after {part.seconds:.1f} s charged of {part.planned_seconds:.1f}; {part.error}"
        )
    if options.shared:
        steps = [point.step for point in read_curve(home / "studies/hosts", run)]
        print(f"it was at step {last} in the bucket when the link was cut; steps of its curve: {steps}")
        left = [path for path in (*bucket.rglob("*"), *there.rglob("*")) if path.name == "tensors.safetensors"]
        print(f"checkpoints left in the bucket and with the worker: {len(left)}")
    last = (folder / "worker.txt").read_text().strip().splitlines()[-1]
    print(f"exit codes {codes}; the worker's last line: {last}; logs: {folder}")
    print(json.dumps(faults, indent=1))


def _at_work(storage: str) -> str:
    """The run that the worker is at; empty where it is at none."""
    jobs = [json.loads(hand.document) for hand in Board(storage, "hosts").hands() if hand.job]
    return jobs[0]["job"]["label"]["run"] if jobs else ""


def _sent(bucket: Path, run: str) -> int:
    """The step of the newest checkpoint of a run that is whole in the bucket; 0 if there is none."""
    whole = bucket.glob(f"hosts/runs/{run}/*/{MANIFEST}")
    return max((int(path.parent.name.split("-")[0]) for path in whole), default=0)


def _study(hours: float, storage: str, bucket: Path | None) -> str:
    """The study's file; with a bucket, runs write a checkpoint every second."""
    text = STUDY_FILE.format(hours=hours, storage=storage)
    if bucket:
        text = text.replace("[search]", f'checkpoint_seconds = 1.0\n[search]\nshared = "{bucket.as_uri()}"')
    return text


def _start(folder: Path, home: Path, host: str, command: str) -> subprocess.Popen:
    log = (folder / f"{host}.txt").open("w")
    own = {"BUDGETLM_CACHE": str(home / "cache")} if home != folder else {}
    program = ["ip", "netns", "exec", f"bl-{host}", sys.executable, "-m", "budgetlm", *command.split()]
    return subprocess.Popen(program, cwd=home, stdout=log, stderr=log, env=os.environ | own)


if __name__ == "__main__":
    main()
