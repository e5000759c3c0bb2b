"""Many workers, one study, a PostgreSQL server, and a bad day: processes killed at random, and the server restarted in the middle.

    python -m tests.benchmarks.bench_cluster --workers 8 --kills 12 --hours 0.25

Says, when the study has come to its end: device-seconds overspent, trials lost, told twice, left running, runs done twice, processes left.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import optuna

from budgetlm.budget.ledger import HEARTBEAT_SECONDS, SEARCH, read_ledger
from budgetlm.config import read_study_file
from budgetlm.records import read_records
from budgetlm.search.trials import open_storage
from budgetlm.studies import open_config
from tests.postgres import Server, server

STUDY_FILE = """
[budget]
hours = {hours}
target_hours = 0.0222
[data]
source = "stdlib"
max_bytes = 2000000
[train]
threads = 1
[search]
storage = "{storage}"
stop_early = false
"""


TELLINGS = """
create table tellings (trial integer not null);
create function note_telling() returns trigger language plpgsql as $$
begin
    if new.state in ('COMPLETE', 'PRUNED', 'FAIL') then insert into tellings values (new.trial_id); end if;
    return new;
end $$;
create trigger tellings after update of state on trials for each row execute function note_telling();
"""
"""Has the server itself count how often Optuna is told of each trial, whoever tells, and whoever is killed."""


class Cluster:
    """Workers of one study on this machine, each a process of its own."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.log = folder, (folder / "log.txt").open("w")
        search = "search --file cluster.toml"
        self._workers = [self._start(search if n == 0 else "worker --study cluster") for n in range(count)]

    def _start(self, command: str) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "budgetlm", *command.split()]
        return subprocess.Popen(
            program, cwd=self.folder, stdout=self.log, stderr=self.log, text=True, start_new_session=True
        )

    def alive(self) -> list[int]:
        """Places of workers that are at work."""
        return [n for n, worker in enumerate(self._workers) if worker.poll() is None]

    def kill(self, place: int) -> None:
        """Kill a worker, with no time for a word, and put another in its place."""
        os.kill(self._workers[place].pid, signal.SIGKILL)
        self._workers[place].wait()
        self._workers[place] = self._start("worker --study cluster")

    def left(self) -> int:
        """Processes of this folder that are still there."""
        found = 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                found += (process / "cwd").readlink() == self.folder
            except OSError:
                continue
        return found

    def exit_codes(self) -> Counter[int | None]:
        """How the workers ended that were not killed."""
        return Counter(worker.poll() for worker in self._workers)


def torment(cluster: Cluster, database: Server, options: argparse.Namespace) -> tuple[int, int]:
    """Kill and restart until the study is over; returns how often each was done."""
    chance, kills, restarts = random.Random(options.seed), 0, 0
    config = read_study_file(cluster.folder / "cluster.toml")
    began = time.monotonic()
    while alive := cluster.alive():
        time.sleep(chance.uniform(0.5, 1.5) * options.every)
        assert time.monotonic() - began < options.most_seconds, "it takes too long"
        if (cluster.folder / "studies/cluster/runs.jsonl").exists() and kills < options.kills and (alive := cluster.alive()):
            cluster.kill(chance.choice(alive))
            kills += 1
        charged = read_ledger(config.database, config.scope).balance(SEARCH).charged_seconds if kills else 0.0
        if not restarts and charged > 0.5 * config.budget.seconds:
            database.stop()
            time.sleep(options.outage)
            database.start()
            restarts += 1
    return kills, restarts


def watch_tellings(storage: str) -> None:
    """Have a server count tellings; Optuna's tables are made first."""
    with open_storage(storage).engine.begin() as connection:
        connection.exec_driver_sql(TELLINGS)


def told_twice(storage: str) -> int:
    """Trials that Optuna was told of more than once."""
    with open_storage(storage).engine.connect() as connection:
        twice = "select count(*) from (select trial from tellings group by trial having count(*) > 1) as twice"
        return int(connection.exec_driver_sql(twice).scalar_one())


def judge(folder: Path, study: str, workers: int) -> dict[str, float]:
    """What is wrong with a study that has come to its end; all should be 0."""
    with contextlib.chdir(folder):
        config = open_config(study)
        ledger, records = read_ledger(config.database, config.scope), read_records(config.folder)
        trials = optuna.load_study(study_name=study, storage=config.database).get_trials(deepcopy=False)
        unfinished = len(list((config.folder / "unfinished").glob("*")))
    spent = ledger.balance(SEARCH).charged_seconds
    ended = Counter(r.run for r in records if r.state in ("done", "diverged", "failed"))
    measured, known = {r.trial for r in records if r.state == "done"}, {r.trial for r in records}
    state = optuna.trial.TrialState
    return {
        "overspent beyond a heartbeat a worker, s": max(0.0, spent - config.budget.seconds - workers * HEARTBEAT_SECONDS),
        "leases left": len(ledger.open_leases()),
        "trials left running": sum(t.state == state.RUNNING for t in trials),
        "trials measured and not told": sum(t.state == state.FAIL and t.number in measured for t in trials),
        "trials told and without a record": sum(t.state == state.COMPLETE and t.number not in known for t in trials),
        "runs with two ends": sum(n > 1 for n in ended.values()),
        "runs left unfinished": unfinished,
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--every", type=float, default=8.0, help="seconds between kills, about")
    parser.add_argument("--outage", type=float, default=4.0, help="seconds for which the server is away")
    parser.add_argument("--hours", type=float, default=0.25, help="device-hours of the search")
    parser.add_argument("--most-seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-cluster-"))
    with server() as database:
        text = STUDY_FILE.format(hours=options.hours, storage=database.storage)
        (folder / "cluster.toml").write_text(text)
        watch_tellings(database.storage)
        began = time.monotonic()
        cluster = Cluster(folder, options.workers)
        kills, restarts = torment(cluster, database, options)
        seconds = time.monotonic() - began
        faults = judge(folder, "cluster", options.workers) | {"trials told twice": told_twice(database.storage)}
        balance = read_ledger(database.storage, "cluster").balance(SEARCH)
        records = read_records(folder / "studies/cluster")
    print(
        f"{options.workers} workers, {kills} killed, {restarts} restart of the server, {seconds:.0f} s; exit codes {dict(cluster.exit_codes())}"
    )
    print(f"charged {balance.charged_seconds:.1f} of {balance.budget_seconds:.1f} device-seconds; {balance.stopped_because}")
    print(
        f"{len({r.trial for r in records})} trials, {sum(r.state == 'done' for r in records)} runs done in {len(records)} parts"
    )
    print(f"processes left: {cluster.left()}; log: {folder / 'log.txt'}")
    print(json.dumps(faults, indent=1))


if __name__ == "__main__":
    main()
