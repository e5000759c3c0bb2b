"""Is the chosen recipe better than the default one, trained for the same time?

A search on stdlib, then finals of the chosen and of the default recipe (trial 0) with several seeds. The two finals of a
seed run at the same moment, one on each core with one thread, and change cores from seed to seed, so that whatever else
the machine does happens to both.

    python tests/benchmarks/bench_chosen_against_default.py --hours 0.25 --target-hours 0.16667 --seeds 2

takes 0.25 h for the search and, for each seed, the target's time. Without options it is a short form of six minutes.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

STUDY = "bench-default"


def budgetlm(*arguments: str, core: int) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pinned = ["taskset", "-c", str(core)] if shutil.which("taskset") else []
    return subprocess.Popen(
        [*pinned, sys.executable, "-m", "budgetlm", *arguments], env=environment, stdout=subprocess.DEVNULL
    )


def finals() -> dict[tuple[int, int], dict]:
    lines = (json.loads(line) for line in Path("studies", STUDY, "runs.jsonl").read_text().splitlines())
    return {(r["trial"], r["seed"]): r for r in lines if r["kind"] == "final" and r["state"] == "done"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--hours", type=float, default=0.05)
    options.add_argument("--target-hours", type=float, default=0.0223)
    options.add_argument("--seeds", type=int, default=2)
    given = options.parse_args()
    hours, target = str(given.hours), str(given.target_hours)
    search = ["search", "--study", STUDY, "--hours", hours, "--target-hours", target, "--threads", "1"]
    assert budgetlm(*search, core=0).wait() == 0
    for seed in range(given.seeds):
        pair = [
            budgetlm("final", "--study", STUDY, "--seed", str(seed), core=seed % 2),
            budgetlm("final", "--study", STUDY, "--trial", "0", "--seed", str(seed), core=1 - seed % 2),
        ]
        assert all(process.wait() == 0 for process in pair)
    done = finals()
    chosen = sorted({trial for trial, _ in done} - {0})
    if not chosen:
        print("the default recipe itself was chosen: nothing to compare")
        return
    ratios = []
    for seed in range(given.seeds):
        a, b = done[chosen[0], seed], done[0, seed]
        ratios.append(a["bpb_full"] / b["bpb_full"])
        print(
            f"seed {seed}: chosen (trial {chosen[0]}) {a['bpb_full']:.4f}, default {b['bpb_full']:.4f}, ratio {ratios[-1]:.4f}"
        )
    print(
        f"chosen/default bits per byte on the larger validation sample: mean ratio {statistics.fmean(ratios):.4f}, n = {len(ratios)}"
    )


if __name__ == "__main__":
    main()
