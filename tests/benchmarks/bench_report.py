"""Bytes and seconds of a report at 10, 1,000 and 10,000 made-up trials, n = 3 each."""

import random
import statistics
import tempfile
import time
from pathlib import Path

from budgetlm.records import append_record
from budgetlm.report.page import page
from tests.conftest import record
from tests.report.test_page import facts


def main() -> None:
    chance = random.Random(0)
    for trials in (10, 1_000, 10_000):
        with tempfile.TemporaryDirectory() as name:
            for trial in range(trials):
                for rung in range(1 + (trial % 3 == 0)):
                    append_record(Path(name), record(trial, rung, 10 * 4**rung, chance.uniform(1.5, 2.5) - 0.3 * rung))
            seconds = []
            for _ in range(3):
                before = time.perf_counter()
                size = len(page(facts(Path(name))))
                seconds.append(time.perf_counter() - before)
        print(f"{trials:6} trials: {size / 1e6:6.2f} MB, {statistics.median(seconds):6.2f} s, n = 3")


if __name__ == "__main__":
    main()
