"""How far runs may be off a surface that is only nearly right: the covariance of what it leaves of them."""

from dataclasses import dataclass

import numpy as np

AGED = 0.7
"""Noise grows by so much for each factor e that a run is cheaper than the dearest: a law holds best near by."""
FAR_OFF = 0.03
"""Runs this much above the best at their scale are far up the bowl's walls, where it is none: they count for half, worse ones for less."""
BEHIND = 0.05
"""Likewise of runs behind the best of all that cost no more: what is starved of tokens or parameters follows laws of its own."""
TAIL = 4.0
"""Degrees of freedom of the noise: single runs that fit nothing are discounted."""
CELL = 4.0
"""Variance of what runs of one scale have in common, beside that of a single run: the law's error is not that of the bowl."""


@dataclass(frozen=True)
class Errors:
    """How far single runs, and all runs of one scale together, may be off: their covariance, apart from its size."""

    cell: np.ndarray  # (n,) of runs of one scale
    weights: np.ndarray  # (n,) inverse variance of what is a run's own
    shared: np.ndarray  # (cells,) variance of what the runs of a scale have in common

    @staticmethod
    def of(scales: np.ndarray, loss: np.ndarray) -> "Errors":
        """From scales (n, axes) and losses (n,), before any fit."""
        _, first, cell = np.unique(np.round(scales, 6), axis=0, return_index=True, return_inverse=True)
        cell = cell.ravel()
        best = np.full(len(first), np.inf)
        np.minimum.at(best, cell, loss)
        total = scales[first].sum(axis=1)
        behind = best / _best_for_less(total, best) - 1
        shared = CELL * (1 + AGED * (total.max() - total)) ** 2 * (1 + (behind / BEHIND) ** 4)
        weights = 1 / (1 + ((loss / best[cell] - 1) / FAR_OFF) ** 4)
        return Errors(cell, weights, shared)

    def within(self, values: np.ndarray) -> np.ndarray:
        """Sums over the runs of each scale, weighted: (n, m) -> (cells, m)."""
        order = np.argsort(self.cell, kind="stable")
        starts = np.searchsorted(self.cell[order], np.arange(len(self.shared)))
        sums: np.ndarray = np.add.reduceat((values * self.weights[:, None])[order], starts, axis=0)
        return sums

    def common(self, values: np.ndarray) -> np.ndarray:
        """What the runs of each scale are expected to have in common, given what all of them show: (n, m) -> (cells, m)."""
        gain = self.shared / (1 + self.shared * np.bincount(self.cell, self.weights))
        expected: np.ndarray = gain[:, None] * self.within(values)
        return expected

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """The inverse covariance times (n, m)."""
        product: np.ndarray = self.weights[:, None] * (values - self.common(values)[self.cell])
        return product

    def of_rows(self, rows: np.ndarray) -> "Errors":
        """That of some runs alone."""
        cells, cell = np.unique(self.cell[rows], return_inverse=True)
        return Errors(cell.ravel(), self.weights[rows], self.shared[cells])

    def discounted(self, left: np.ndarray) -> "Errors":
        """The same with less weight to what is far off: `left` (n,) in standard deviations of a run."""
        common = self.common(left[:, None])[:, 0]
        own = (left - common[self.cell]) ** 2 * self.weights
        weights = self.weights * (TAIL + 1) / (TAIL + own)
        return Errors(self.cell, weights, self.shared * (TAIL + common**2 / self.shared) / (TAIL + 1))


def _best_for_less(total: np.ndarray, loss: np.ndarray) -> np.ndarray:
    order = np.argsort(total, kind="stable")
    least = np.empty(len(loss))
    least[order] = np.minimum.accumulate(loss[order])
    return least
