"""Seconds from the command to the first optimisation step of a search, its text prepared; and what calibration costs beside its rungs.

Every search is a new study. "First" measures the machine; "again" finds that remembered, as a second study on one machine does.

    python -m tests.benchmarks.bench_start --repeats 5
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POLL_SECONDS = 0.02
LONGEST_WAIT = 300.0
MEASURED = ("calibrations", "choices", "ceilings")
"""Folders of the cache in which a machine's measurements are remembered."""


def first_step(folder: Path, cache: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Starts a search and ends it at its first step. Returns the seconds until then, and those charged for calibration."""
    command = ["search", "--study", "start", "--hours", str(options.hours), "--target-hours", str(options.target_hours)]
    environment = {**os.environ, "BUDGETLM_CACHE": str(cache)}
    before = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "budgetlm", *command], cwd=folder, env=environment, stdout=subprocess.DEVNULL
    )
    curves = folder / "studies" / "start" / "curves"
    while time.monotonic() - before < LONGEST_WAIT and process.poll() is None:
        if any(curve.stat().st_size for curve in curves.glob("*.jsonl")):
            break
        time.sleep(POLL_SECONDS)
    seconds = time.monotonic() - before
    process.send_signal(signal.SIGTERM)
    process.wait()
    told = subprocess.run(
        [sys.executable, "-m", "budgetlm", "budget", "--study", "start", "--json"],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    shutil.rmtree(folder / "studies")
    return seconds, json.loads(told.stdout)["by_purpose"]["calibrate"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hours", type=float, default=0.1)
    parser.add_argument("--target-hours", type=float, default=0.05)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), Path(name) / "cache"
        first_step(folder, cache, options)  # prepares the text
        rows: dict[str, list[tuple[float, float]]] = {"first": [], "again": []}
        for _ in range(options.repeats):
            for kept in MEASURED:
                shutil.rmtree(cache / kept, ignore_errors=True)
            for measured in rows.values():
                measured.append(first_step(folder, cache, options))
    for kind, values in rows.items():
        seconds, calibration = zip(*values, strict=True)
        print(
            f"{kind:>6}: first step after {statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), "
            f"calibration {statistics.median(calibration):.1f} s ({min(calibration):.1f} to {max(calibration):.1f}), n = {len(values)}"
        )


if __name__ == "__main__":
    main()
