"""A study's forecast on compute frontiers of public data: the same ladders by device time alone, and by parameters and tokens.

Of each data set the best run in every factor of 2 of compute is its frontier. Every point of it is forecast from one, two or three others, each of a
third or less of the next one's compute, the dearest of 1/4, 1/16 or 1/64 of the target's. Time is taken to go by compute.

    python -m tests.benchmarks.bench_frontiers      # 1 to 2 minutes
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from budgetlm.forecast.fit import fit
from budgetlm.records import RunRecord
from tests.benchmarks.bench_forecast import data_sets
from tests.conftest import record

NATS = 2.9
"""Nats per token of 4.2 bytes in one bit per byte: the law's E is known in these."""
TARGET_SECONDS = 1000.0
LEAST_RUNS, STEP, RUNGS, RATIOS = 3, 3.0, (1, 2, 3), (4, 16, 64)


@dataclass(frozen=True)
class Best:
    """Of a factor of 2 of compute."""

    compute: float
    bpb: float
    params: float
    tokens: float


def frontier(table: pd.DataFrame) -> list[Best]:
    """Best runs by compute, those that a cheaper one beats left out."""
    table = table.assign(compute=6.0 * table.params.astype(float) * table.tokens.astype(float)).dropna()
    found: list[Best] = []
    for _, near in table.groupby(np.log2(table.compute).round()):
        best = near.loc[near.loss.idxmin()]
        if len(near) >= LEAST_RUNS and best.loss / NATS < min((b.bpb for b in found), default=np.inf):
            found.append(Best(best.compute, best.loss / NATS, best.params, best.tokens))
    return found


def ladder(points: list[Best], highest: float) -> list[Best]:
    """Points of at most so much compute, from the dearest down."""
    found: list[Best] = []
    for point in reversed(points):
        if point.compute <= (found[-1].compute / STEP if found else highest) and len(found) < max(RUNGS):
            found.append(point)
    return found


def records(rungs: list[Best], target: Best, by_time: bool) -> list[RunRecord]:
    reach = {} if by_time else {"target_tokens": target.tokens, "target_compute_parameters": round(target.params)}
    return [
        record(
            0,
            rung,
            TARGET_SECONDS * best.compute / target.compute,
            best.bpb,
            TARGET_SECONDS,
            tokens=round(best.tokens),
            compute_parameters=round(best.params),
            **reach,
        )
        for rung, best in enumerate(reversed(rungs))
    ]


def outcomes(by_time: bool) -> Iterator[tuple[int, int, float, bool, float]]:
    """Rungs, ratio, relative error of the expected value, whether the 80 % interval holds the truth, and its relative width."""
    for name, table in data_sets():
        points = [] if name == "data_constrained" else frontier(table)
        for target, ratio in product(points, RATIOS):
            rungs = ladder(points, target.compute / ratio * 1.2)
            for count in range(1, len(rungs) + 1):
                forecast = fit(records(rungs[:count], target, by_time), TARGET_SECONDS)[0]
                low, high = forecast.interval
                holds = low < target.bpb < high
                yield count, ratio, forecast.mean / target.bpb - 1, holds, (high - low) / target.bpb


def main() -> None:
    """Print the table."""
    both = {
        title: pd.DataFrame(outcomes(by_time), columns=["rungs", "ratio", "error", "holds", "width"])
        for title, by_time in (("device time", True), ("parameters and tokens", False))
    }
    print("rungs  dearest    n   axes                     bias   absolute   80 % holds   width")
    for count, ratio in product(RUNGS, RATIOS):
        for title, table in both.items():
            these = table[(table.rungs == count) & (table.ratio == ratio)]
            if len(these):
                print(
                    f"{count:5}  1/{ratio:<5} {len(these):4}   {title:21} {these.error.mean():+7.2%} "
                    f"{these.error.abs().mean():10.2%} {these.holds.mean():12.0%} {these.width.mean():7.1%}"
                )


if __name__ == "__main__":
    main()
