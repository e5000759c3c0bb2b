"""How far runs may be off a surface that is only nearly right: the covariance of what it leaves of them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

AGED = 0.7
"""What a scale's runs share grows by so much for each factor e that they are cheaper than the dearest: a law holds best near by."""
AGED_ALONE = 0.5
"""Likewise the noise of a trial's run, the farther it is from the target."""
FAR_OFF = 0.03
"""Runs this much above the best at their scale are far up the bowl's walls, where it is none: they count for half, worse ones for less."""
BEHIND = 0.05
"""Likewise of runs behind the best of all that cost no more: what is starved of tokens or parameters follows laws of its own."""
TAIL = 4.0
"""Degrees of freedom of the noise: single runs that fit nothing are discounted."""


@dataclass(frozen=True)
class Errors:
    """How far single runs, and all runs of one group together, may be off: their covariance, apart from its size.

    A group is the runs of one scale, or the runs of one recipe along its ladder. Off by noise·own + sum of noise·ratio·effect·shared,
    with own and effects independent; the size of the noise and the ratios are for others to say.
    """

    group: np.ndarray  # (n,) of each run, 0 to groups - 1
    weights: np.ndarray  # (n,) inverse variance of what is a run's own
    shared: np.ndarray  # (n, effects) regressors of what the runs of a group have in common

    @staticmethod
    def of_scales(scales: np.ndarray, loss: np.ndarray) -> "Errors":
        """Runs of one scale have their level in common: the law's error is not that of the bowl.

        Args:
            scales: (n, axes), logarithms.
            loss: (n,).
        """
        _, first, cell = np.unique(np.round(scales, 6), axis=0, return_index=True, return_inverse=True)
        cell = cell.ravel()
        best = np.full(len(first), np.inf)
        np.minimum.at(best, cell, loss)
        total = scales[first].sum(axis=1)
        behind = best / _best_for_less(total, best) - 1
        level = (1 + AGED * (total.max() - total)) * np.sqrt(1 + (behind / BEHIND) ** 4)
        weights = 1 / (1 + ((loss / best[cell] - 1) / FAR_OFF) ** 4)
        return Errors(cell, weights, level[cell, None])

    @staticmethod
    def of_trials(trial: np.ndarray, u: np.ndarray) -> "Errors":
        """Runs of one trial have a level and an exponent in common.

        Args:
            trial: (n,), 0 to trials - 1.
            u: (n,), logarithm of device time over the target's.
        """
        return Errors(trial, (1 + AGED_ALONE * np.abs(u)) ** -2.0, np.stack([np.ones_like(u), -u], axis=1))

    @cached_property
    def groups(self) -> int:
        """How many there are."""
        return int(self.group.max()) + 1

    def within(self, values: np.ndarray) -> np.ndarray:
        """Weighted sums of the shared regressors times values (n, m) over each group, (groups, effects, m)."""
        order = np.argsort(self.group, kind="stable")
        starts = np.searchsorted(self.group[order], np.arange(self.groups))
        products = (self.shared * self.weights[:, None])[:, :, None] * values[:, None, :]
        sums: np.ndarray = np.add.reduceat(products[order], starts, axis=0)
        return sums

    @cached_property
    def squares(self) -> np.ndarray:
        """Weighted sums of products of the shared regressors over each group, (groups, effects, effects)."""
        return self.within(self.shared)

    @cached_property
    def kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """The different ones among these, (kinds, effects, effects), and which of them is each group's: trials that climbed alike are alike."""
        flat, kind = np.unique(self.squares.reshape(self.groups, -1), axis=0, return_inverse=True)
        return flat.reshape(-1, *self.squares.shape[1:]), kind.ravel()

    def of_rows(self, rows: np.ndarray) -> "Errors":
        """That of some runs alone."""
        group = np.unique(self.group[rows], return_inverse=True)[1].ravel()
        return Errors(group, self.weights[rows], self.shared[rows])

    def discounted(self, left: np.ndarray, ratios: np.ndarray) -> "Errors":
        """The same with less weight to what is far off.

        Args:
            left: (n,), what the surface leaves, in standard deviations of a run.
            ratios: (effects,), size of the effects beside that of the noise.
        """
        covariance = inverse(self.squares + np.diag(ratios**-2.0))
        effects = np.einsum("grs,gs->gr", covariance, self.within(left[:, None])[:, :, 0])
        own = left - np.einsum("nr,nr->n", self.shared, effects[self.group])
        weights = self.weights * (TAIL + 1) / (TAIL + own**2 * self.weights)
        far = ((effects / ratios) ** 2).mean(axis=1)
        return Errors(self.group, weights, self.shared * np.sqrt((TAIL + far) / (TAIL + 1))[self.group, None])


def inverse(matrices: np.ndarray) -> np.ndarray:
    """Of many symmetric matrices (..., effects, effects), quicker than a general one where effects are one or two."""
    if matrices.shape[-1] > 2:
        inverted: np.ndarray = np.linalg.inv(matrices)
    elif matrices.shape[-1] == 2:
        a, b, d = matrices[..., 0, 0], matrices[..., 0, 1], matrices[..., 1, 1]
        rows = np.stack([np.stack([d, -b], axis=-1), np.stack([-b, a], axis=-1)], axis=-2)
        inverted = rows / (a * d - b * b)[..., None, None]
    else:
        inverted = 1 / matrices
    return inverted


def _best_for_less(total: np.ndarray, loss: np.ndarray) -> np.ndarray:
    order = np.argsort(total, kind="stable")
    least = np.empty(len(loss))
    least[order] = np.minimum.accumulate(loss[order])
    return least
