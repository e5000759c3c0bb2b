"""How much of a result is chance: the spread among runs that differ in nothing but their seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from budgetlm.records import RunRecord


@dataclass(frozen=True)
class Noise:
    """The noise floor, as measured by repeats."""

    spread: float
    """Standard deviation of a single run, in bits per byte."""
    repeats: int
    """Runs beyond the first of their kind: the degrees of freedom."""


def measured_noise(runs: Sequence[RunRecord]) -> Noise | None:
    """The noise floor over all trials and rungs that were repeated; None where none was.

    Args:
        runs: finished ones, with a loss each.
    """
    groups: dict[tuple[int, int], list[float]] = {}
    for run in runs:
        if run.bpb is not None:
            groups.setdefault((run.trial, run.rung), []).append(run.bpb)
    repeats = sum(len(losses) - 1 for losses in groups.values())
    if not repeats:
        return None
    means = {key: math.fsum(losses) / len(losses) for key, losses in groups.items()}
    squares = math.fsum((loss - means[key]) ** 2 for key, losses in groups.items() for loss in losses)
    return Noise(math.sqrt(squares / repeats), repeats)
