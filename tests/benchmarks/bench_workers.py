"""One worker against two with the same device-seconds: real training, in turns, on a machine of two cores or more.

    python -m tests.benchmarks.bench_workers --hours 0.05 --seeds 2

Every worker has one thread. Printed for each search: trials, runs, how long it took on the wall, what was charged of its budget, and what the chosen recipe is
foretold to reach at the target, which is not trained.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from budgetlm.budget.ledger import SEARCH
from budgetlm.forecast.choose import choose
from budgetlm.records import read_records
from budgetlm.search.plan import load_plan
from budgetlm.studies import ledger_of, open_config

SEED = "\n[search]\nseed = {seed}\nstop_early = false\n"


def searched(folder: Path, workers: int, seed: int, hours: float) -> str:
    """Search, and say how it went."""
    study = f"w{workers}-s{seed}"
    (folder / f"{study}.toml").write_text(
        f'name = "{study}"\n[budget]\nhours = {hours}\ntarget_hours = 0.0222\n[data]\nsource = "stdlib"\n'
        f'[train]\ndevice = "cpu"\ndevices = {workers}\nthreads = 1\n' + SEED.format(seed=seed)
    )
    began = time.monotonic()
    with (folder / f"{study}.log").open("w") as log:
        command = [sys.executable, "-m", "budgetlm", "search", "--file", f"{study}.toml"]
        subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=True)
    wall = time.monotonic() - began
    with contextlib.chdir(folder):
        config = open_config(study)
        records, plan = read_records(config.folder), load_plan(config.folder)
        charged = ledger_of(study).balance(SEARCH).charged_seconds
    assert plan
    choice = choose(records, plan.target_seconds)
    assert choice
    low, high = choice.forecast.interval
    rungs = ", ".join(f"{seconds:g}" for seconds in plan.rungs)
    return (
        f"{workers} workers, seed {seed}: {len({r.trial for r in records})} trials, {len(records)} runs on rungs of {rungs} s, {wall:.0f} s on the wall, "
        f"{charged:.1f} of {config.budget.seconds:.1f} device-seconds charged, forecast {choice.forecast.mean:.3f} ({low:.3f} to {high:.3f})"
    )


def main() -> None:
    """One and two, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=0.05, help="device-hours of each search")
    parser.add_argument("--seeds", type=int, default=2)
    wanted = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-workers-"))
    for seed in range(wanted.seeds):
        for workers in (1, 2) if seed % 2 == 0 else (2, 1):
            print(searched(folder, workers, seed, wanted.hours), flush=True)


if __name__ == "__main__":
    main()
