"""Kill a search at random instants, go on with the same command, and count what was lost.

The command is the real one, on real tiny trainings. Victims are the search itself and its workers; the instant is random, from
the first import on. A second process watches from outside how long workers were alive, which is what should have been charged.

    python -m tests.benchmarks.bench_faults --kills 200
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path

from budgetlm.budget.ledger import HEARTBEAT_SECONDS
from budgetlm.files import read_json
from budgetlm.records import read_curve, read_records
from budgetlm.search.unfinished import unfinished_runs
from budgetlm.train.checkpoint import STATE, TENSORS, _checksum

ROOT = Path(__file__).parents[2]
STUDY = """
name = "faults"
[budget]
hours = {hours}
target_hours = {target}
[data]
vocab_size = 512
[model]
context_length = 64
[train]
threads = 1
devices = {workers}
eval_tokens = 2048
checkpoint_seconds = 0.3
[search]
least_rung_seconds = 0.5
max_restarts = 20
[space]
depth = {{ low = 1, high = 2 }}
width = {{ low = 16, high = 48, step = 16 }}
batch_tokens = 512
"""


@dataclass
class Tally:
    """What a campaign has counted."""

    parent_kills: int = 0
    worker_kills: int = 0
    commands: int = 0
    budget_seconds: float = 0.0
    charged_seconds: float = 0.0
    alive_seconds: float = 0.0
    overspent_times: int = 0
    most_overspent_seconds: float = 0.0
    longest_orphan_seconds: float = 0.0
    trials: int = 0
    runs_done: int = 0
    runs_resumed: int = 0
    trials_lost: int = 0
    told_twice: int = 0
    running_zombies: int = 0
    corrupt_databases: int = 0
    checkpoints_seen: int = 0
    unreadable_checkpoints: int = 0
    unreadable_lines: int = 0
    commands_that_failed: list[str] = field(default_factory=list)


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def workers_of(pid: int) -> list[int]:
    """Worker processes of a search: grandchildren, through the server that they are forked from."""
    return [grandchild for child in children(pid) for grandchild in children(child) if not _is_dead(grandchild)]


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


class Observer(threading.Thread):
    """Adds up, from outside, how long the workers of a search are alive; the first one only looks at the device, free."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.seconds, self.seen = pid, 0.0, []
        self.known: set[int] = set()

    def run(self) -> None:
        last = time.monotonic()
        while True:
            alive = set(workers_of(self.pid)) | {p for p in self.known if not _is_dead(p)}
            for pid in alive - self.known:
                self.seen.append(pid)
                self.known.add(pid)
            now = time.monotonic()
            self.seconds += (now - last) * len([p for p in alive if p != self.seen[0]])
            last = now
            if _is_dead(self.pid) and not alive:
                return
            time.sleep(0.01)


def campaign(workers: int, kills: int, chance: random.Random, folder: Path, tally: Tally) -> None:
    """Kill so often, then let the search come to its end, and check everything."""
    folder.mkdir(parents=True)
    budget = 60.0 + kills * 4.0 * workers
    (folder / "faults.toml").write_text(STUDY.format(hours=budget / 3600, target=8 / 3600, workers=workers))
    command = [sys.executable, "-m", "budgetlm", "search", "--file", "faults.toml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    study, left = folder / "studies" / "faults", kills
    tally.budget_seconds += budget
    while True:
        with (folder / "log.txt").open("ab") as log:
            search = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        tally.commands += 1
        observer = Observer(search.pid)
        observer.start()
        killed = False
        while left and search.poll() is None and not killed:
            wait_for_an_instant(search, chance)
            victims = workers_of(search.pid)
            if search.poll() is not None:
                break
            if victims and chance.random() < 0.5:
                victim, tally.worker_kills = chance.choice(victims), tally.worker_kills + 1
            else:
                victim, killed, tally.parent_kills = search.pid, True, tally.parent_kills + 1
            try:
                os.kill(victim, signal.SIGKILL)
                left -= 1
            except ProcessLookupError:
                tally.worker_kills -= 1
        code = search.wait()
        died = time.monotonic()
        observer.join()
        tally.alive_seconds += observer.seconds
        if killed:
            tally.longest_orphan_seconds = max(tally.longest_orphan_seconds, time.monotonic() - died)
        elif code:
            tally.commands_that_failed.append(f"{code}: {(folder / 'log.txt').read_text().splitlines()[-1]}")
        check_what_is_left(study, workers, tally)
        print(
            f"  workers {workers}: {kills - left} of {kills} kills, {tally.commands} commands", file=sys.stderr, flush=True
        )
        if not killed and (code == 0 or len(tally.commands_that_failed) > 5):
            break
    if left:
        print(f"  the budget was spent {left} kills early", file=sys.stderr)
    check_the_end(study, tally)


def wait_for_an_instant(search: subprocess.Popen, chance: random.Random) -> None:
    """Any instant from the first import on, but mostly one at which there is work to lose."""
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0.0, 6.0))
        return
    while search.poll() is None and not workers_of(search.pid):
        time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 5.0))


def check_what_is_left(study: Path, workers: int, tally: Tally) -> None:
    """After each kill: the database is whole, checkpoints can be read, the budget is kept."""
    if (study / "study.db").exists():
        with closing(sqlite3.connect(study / "study.db")) as database:
            whole = database.execute("pragma integrity_check").fetchone() == ("ok",)
            tally.corrupt_databases += not whole
            tables = {name for (name,) in database.execute("select name from sqlite_master")}
            if whole and "budgetlm_charges" in tables:
                charged = database.execute("select coalesce(sum(seconds), 0) from budgetlm_charges").fetchone()[0]
                budget = database.execute("select max(budget_seconds) from budgetlm_accounts").fetchone()[0] or charged
                over = charged - budget
                tally.most_overspent_seconds = max(tally.most_overspent_seconds, over)
                tally.overspent_times += over > HEARTBEAT_SECONDS * workers
    for run in unfinished_runs(study):
        for checkpoint in run.checkpoints.glob("step-*"):
            try:
                intact = read_json(checkpoint / STATE)["checksum"] == _checksum(checkpoint / TENSORS)
            except Exception:  # noqa: BLE001  # whatever is wrong with it
                intact = False
            tally.checkpoints_seen += 1
            tally.unreadable_checkpoints += not intact
    for file in [study / "runs.jsonl", *study.glob("curves/*.jsonl")]:
        lines = file.read_text().splitlines() if file.exists() else []
        tally.unreadable_lines += sum(not _is_json(line) for line in lines[:-1])


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def check_the_end(study: Path, tally: Tally) -> None:
    """Once the budget is spent: every trial has come to one end, and every second is in the ledger."""
    import optuna

    records = read_records(study)
    storage = optuna.load_study(study_name="faults", storage=f"sqlite:///{study / 'study.db'}")
    trials = storage.get_trials(deepcopy=False)
    ends = [r.run for r in records if r.state != "interrupted"]
    begun = {p.stem for p in study.glob("curves/*.jsonl")}
    told = {t.number for t in trials if t.value is not None}
    measured = {r.trial for r in records if r.state == "done"}
    tally.trials += len(trials)
    tally.runs_done += len([r for r in records if r.state == "done"])
    tally.runs_resumed += len({r.run for r in records if r.state == "interrupted"} & set(ends))
    tally.told_twice += len(ends) - len(set(ends))
    # A run that was begun has an end; a trial that was measured has its value.
    tally.trials_lost += len(begun - set(ends)) + len(measured - told) + len(unfinished_runs(study))
    tally.running_zombies += len([t for t in trials if t.state == optuna.trial.TrialState.RUNNING])
    for run in {r.run for r in records}:
        steps = [p.step for p in read_curve(study, run)]
        assert steps == sorted(set(steps)), run
    with closing(sqlite3.connect(study / "study.db")) as database:
        tally.charged_seconds += database.execute("select sum(seconds) from budgetlm_charges").fetchone()[0]
        assert database.execute("select count(*) from budgetlm_leases").fetchone() == (0,)


def main() -> None:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="shared out between one and two workers")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder to leave the studies in")
    options = parser.parse_args()
    home = options.keep or Path(tempfile.mkdtemp(prefix="budgetlm-faults-"))
    tallies = []
    for workers in options.workers:
        tallies.append(Tally())
        chance = random.Random(options.seed + workers)
        campaign(workers, options.kills // len(options.workers), chance, home / f"workers{workers}", tallies[-1])
    if not options.keep:
        shutil.rmtree(home)
    print(f"{'':26}" + "".join(f"{f'{w} worker' + 's' * (w > 1):>14}" for w in options.workers))
    for item in fields(Tally):
        values = [getattr(tally, item.name) for tally in tallies]
        shown = [len(v) if isinstance(v, list) else v for v in values]
        print(
            f"{item.name.replace('_', ' '):26}" + "".join(f"{v:14.2f}" if isinstance(v, float) else f"{v:14}" for v in shown)
        )
    unaccounted = [tally.alive_seconds - tally.charged_seconds for tally in tallies]
    print(f"{'unaccounted seconds':26}" + "".join(f"{max(0.0, v):14.2f}" for v in unaccounted))
    print(f"{'charged beyond alive':26}" + "".join(f"{max(0.0, -v):14.2f}" for v in unaccounted))
    for tally in tallies:
        for failure in tally.commands_that_failed:
            print("failed:", failure)


if __name__ == "__main__":
    main()
