"""Where a study's runs lie on the axes of the law: how much smaller in parameters and in tokens than the recipe's own target. No torch.

Loss goes by parameters and tokens, L = E + A/N^a + B/D^b (Hoffmann et al. 2022, arXiv:2203.15556, equation 10), and by device time only through
these. A ladder of miniatures keeps tokens per parameter, so that along it either would do; but shapes come in steps and have a least size, so that the short
rungs of a small machine are one and the same shape with ever fewer tokens, and a small model uses less of its device. By device time alone such a
ladder looks as if it fell faster and faster (docs/LOG.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from budgetlm.records import OWN, RunRecord


@dataclass(frozen=True)
class Scales:
    """The axes, and the way to the target along them."""

    of_runs: np.ndarray
    """(runs, axes): logarithms of parameters and tokens over those of the recipe at the target; of device time alone where a record does not say."""
    times: np.ndarray
    """Logarithm of device time over the target's, of each rung and then of the target, rising."""
    places: np.ndarray
    """Where these lie in the mean, (rungs + 1, axes)."""

    @property
    def axes(self) -> int:
        """How many there are: two, or device time alone."""
        return int(self.of_runs.shape[1])

    def at(self, u: np.ndarray) -> np.ndarray:
        """Where runs of such times, logarithms over the target's, lie: between the rungs, and beyond the target as the rule has it. (n, axes)."""
        between = np.stack([np.interp(u, self.times, column) for column in self.places.T], axis=1)
        found: np.ndarray = between + np.maximum(u, 0.0)[:, None] / self.axes
        return found


def scales_of(runs: Sequence[RunRecord], target_seconds: float) -> Scales:
    """Of finished runs.

    Args:
        runs: at least one.
        target_seconds: the horizon, which need not be the one that the recipes were meant for: they would grow as the rule has it.
    """
    u = np.log([r.planned_seconds / target_seconds for r in runs])
    # Of a training function of somebody's own the speed is guessed, and so is what it would come to at the target.
    if all(r.unit != OWN and min(r.target_tokens, r.target_compute_parameters, r.tokens) > 0 for r in runs):
        sizes = [(r.compute_parameters / r.target_compute_parameters, r.tokens / r.target_tokens) for r in runs]
        farther = np.log([target_seconds / r.target_seconds for r in runs])
        of_runs = np.log(sizes) - farther[:, None] / 2
    else:
        of_runs = u[:, None]
    rung = np.array([r.rung for r in runs])
    rungs = [rung == one for one in np.unique(rung)]
    order = np.argsort([u[these].mean() for these in rungs])
    below = [rungs[i] for i in order if u[rungs[i]].mean() < 0]
    times = np.array([*(u[these].mean() for these in below), 0.0])
    places = np.array([*(of_runs[these].mean(axis=0) for these in below), np.zeros(of_runs.shape[1])])
    return Scales(of_runs, times, places)
