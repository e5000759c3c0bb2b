"""Which knobs are best at a target, from few cheap runs: one bowl whose optimum drifts with scale, seen from the target.

Only differences within a scale count here, so every scale has a level of its own and no law of loss is needed:

    log loss = level(scale) + slope·k + k'·drift·s + bowl(k) + noise,

with k the knobs in spreads of the target's choices and s the logarithms of scale, 0 at the target. All of it is linear, with
Gaussian priors around "the middle of what may be chosen, not drifting, both quite unsure"; the bowl's depth, the drift and the
noise are averaged over by how well each explains the runs. A fit takes milliseconds, so that it can follow every run of a search.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from budgetlm.forecast.points import Centre, Kinds

DEPTHS = (0.004, 0.01, 0.02)
"""Candidates for the loss of one spread off the best knob, as a logarithm."""
NOISES = (0.0008, 0.002, 0.006)
"""Candidates for what is left of a run near the best ones: repeated runs differ by 0.0003, the rest is no bowl."""
FROM_THE_MIDDLE = 1.0
"""How far from the middle of what may be chosen the best knob is thought to be: a median slope there, in depths of the bowl for each spread."""
DRIFTS = (0.3, 0.6)
"""Candidates for how far the optimum moves with scale, in logarithms of a knob for each factor e. Published laws lie between 0.1 and 0.8."""
STEADY = 0.15
"""A knob that is a ratio already, such as tokens per parameter, is taken to drift by so much of that: compute-optimal ratios hardly do."""
FAR = 0.03
"""A run this much above the best at its scale is far up the walls, where there is no bowl: it counts for half, worse ones for less."""
REACH = 2.0
"""Farther than this, in spreads, the optimum is not believed to drift between a cheap scale and the target."""
SWEEPS = 3
"""Fits, each with weights from the one before."""


LAW_MISS, LAW_DRIFT = 0.05, 0.01
"""How far a published law is taken to miss the optimum at the target, and in its drift for each factor e of scale. Logarithms of a knob."""


@dataclass(frozen=True)
class BowlFrame:
    """The coordinates: knobs relative to the middle of the target's choices (or to a law), scales relative to the target."""

    target: np.ndarray  # (axes,) logarithms
    origin: np.ndarray  # (knobs,)
    spread: np.ndarray  # (knobs,)
    kinds: Kinds
    law_drift: np.ndarray  # (knobs, axes); 0 without a law
    lawful: np.ndarray  # (knobs,) bool

    @staticmethod
    def of(target: np.ndarray, middle: np.ndarray, wide: np.ndarray, kinds: Kinds, law: Centre | None = None) -> "BowlFrame":
        """The frame for a target.

        Args:
            target: (axes,), logarithms of its scale.
            middle: (knobs,), of what there is to choose from at the target.
            wide: (knobs,), spread of the same.
            kinds: of the knobs.
            law: of the optimum, where one is to be believed; NaN for knobs that it does not know.
        """
        count, axes = len(middle), len(target)
        spread = np.where(kinds.curved & (wide > 0), wide, 1.0)
        origin = np.where(kinds.curved, middle, 0.0)
        if law is None:
            return BowlFrame(target, origin, spread, kinds, np.zeros((count, axes)), np.zeros(count, dtype=bool))
        known = np.isfinite(law.offset) & kinds.logged
        drift = np.where(known[:, None], law.drift, 0.0)
        return BowlFrame(target, np.where(known, law.offset + drift @ target, origin), spread, kinds, drift, known)

    def place(self, scales: np.ndarray, knobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scales (n, axes) and knobs (n, knobs) in these coordinates."""
        s = scales - self.target
        return s, (knobs - self.origin - s @ self.law_drift.T) / self.spread

    def features(self, s: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Linear, drift, squares, products, squares that change with scale, (n, features)."""
        n, round_ones = len(k), k[:, self.kinds.curved]
        rows, columns = np.tril_indices(round_ones.shape[1], -1)
        drift = (k[:, :, None] * s[:, None, :]).reshape(n, -1)
        changing = round_ones**2 * s.sum(axis=1, keepdims=True)
        return np.concatenate([k, drift, round_ones**2, round_ones[:, rows] * round_ones[:, columns], changing], axis=1)


@dataclass(frozen=True)
class Bowl:
    """The fitted differences between knobs."""

    frame: BowlFrame
    coefficients: np.ndarray  # (features,), posterior means

    def at_target(self, knobs: np.ndarray) -> np.ndarray:
        """Expected log loss of knobs (n, knobs) at the target, up to a constant that all share."""
        s, k = self.frame.place(np.tile(self.frame.target, (len(knobs), 1)), knobs)
        expected: np.ndarray = self.frame.features(s, k) @ self.coefficients
        return expected

    @cached_property
    def centre(self) -> Centre:
        """Where the best knobs lie at any scale, in a person's coordinates; 0 for indicators."""
        frame, curved = self.frame, self.frame.kinds.curved
        count, axes, numbers = len(curved), len(frame.target), int(curved.sum())
        slope, drift = self.coefficients[:count][curved], self.coefficients[count : count * (1 + axes)].reshape(count, axes)
        squares, products = np.split(self.coefficients[count * (1 + axes) :], [numbers])
        hessian = np.diag(2 * squares)
        rows, columns = np.tril_indices(numbers, -1)
        hessian[rows, columns] = hessian[columns, rows] = products[: len(rows)]
        values, vectors = np.linalg.eigh(hessian)
        turned = vectors / np.maximum(values, 0.5 * min(DEPTHS)) @ vectors.T
        best, moves = np.zeros(count), np.zeros((count, axes))
        best[curved] = np.clip(-turned @ slope, -REACH, REACH)
        moves[curved] = -turned @ drift[curved]
        moves = frame.law_drift + frame.spread[:, None] * moves
        return Centre(frame.origin + frame.spread * best - moves @ frame.target, moves)

    def moved(self, scale: np.ndarray) -> np.ndarray:
        """How far the best knobs at a scale (axes,) lie from those at the target, (knobs,): 0 for indicators."""
        frame, s = self.frame, scale - self.frame.target
        lawful = frame.law_drift @ s
        total: np.ndarray = lawful + np.clip(self.centre.drift @ s - lawful, -REACH * frame.spread, REACH * frame.spread)
        return total


def fit_bowl(frame: BowlFrame, scales: np.ndarray, knobs: np.ndarray, loss: np.ndarray, cells: np.ndarray) -> Bowl:
    """Fit the bowl to finished runs; with few of them it is mostly the prior.

    Args:
        frame: the coordinates.
        scales: (n, axes), logarithms.
        knobs: (n, knobs).
        loss: (n,), positive.
        cells: (n,), the same number for runs of the same scale.
    """
    s, k = frame.place(scales, knobs)
    _, cell = np.unique(cells, return_inverse=True)
    levels = int(cell.max()) + 1
    x = np.concatenate([np.eye(levels)[cell], frame.features(s, k)], axis=1)
    y = np.log(loss) - np.log(loss).mean()
    means, spreads, noise = _priors(frame, levels)
    weights = np.ones(len(y))
    for sweep in range(SWEEPS):
        coefficients = _solve(x, y, weights, means, spreads, noise)
        if sweep < SWEEPS - 1:
            least = np.full(levels, np.inf)
            np.minimum.at(least, cell, np.minimum(x @ coefficients, y))
            weights = 1 / (1 + (np.maximum(y - least[cell], 0) / FAR) ** 2)
    return Bowl(frame, coefficients[levels:])


def _priors(frame: BowlFrame, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means and spreads of the coefficients, each (combinations, features), and the noise of each combination."""
    depth, noise, drift = np.array(list(product(DEPTHS, NOISES, DRIFTS))).T[:, :, None]
    count, axes, numbers = len(frame.kinds.curved), len(frame.target), int(frame.kinds.curved.sum())
    one, pairs = np.ones((1, 1)), numbers * (numbers - 1) // 2
    slope = np.where(frame.lawful, 2 * LAW_MISS / frame.spread, np.where(frame.kinds.curved, FROM_THE_MIDDLE, 5.0))
    drift = drift * np.where(frame.kinds.steady, STEADY, 1.0)
    wander = np.where(frame.lawful, LAW_DRIFT, drift) * 2 / np.where(frame.kinds.logged, frame.spread, 1.0)
    wander = np.where(frame.kinds.curved, wander, 0.5)
    parts = [
        np.ones((len(depth), levels)),
        depth * slope,
        depth * np.repeat(wander, axes, axis=1),
        0.7 * depth * one.repeat(numbers, 1),
        0.5 * depth * one.repeat(pairs, 1),
        0.02 * depth * one.repeat(numbers, 1),
    ]
    spreads = np.concatenate(parts, axis=1)
    means = np.zeros_like(spreads)
    start = levels + count * (1 + axes)
    means[:, start : start + numbers] = depth
    return means, spreads, noise


def _solve(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, means: np.ndarray, spreads: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """Posterior mean of the coefficients, averaged over the combinations by their evidence."""
    weighted = x * weights[:, None]
    gram, right = weighted.T @ x, weighted.T @ y
    precision = gram / noise[..., None] ** 2 + np.eye(x.shape[1]) * (spreads**-2.0)[:, None, :]
    pull = (right - means @ gram) / noise**2
    shift = np.linalg.solve(precision, pull[..., None])[..., 0]
    square = weights @ y**2 - 2 * means @ right + ((means @ gram) * means).sum(axis=1)
    determinant = np.linalg.slogdet(precision)[1] + 2 * np.log(spreads).sum(axis=1)
    evidence = -0.5 * (square / noise[:, 0] ** 2 - (pull * shift).sum(axis=1) + determinant) - len(y) * np.log(noise[:, 0])
    share = np.exp(evidence - evidence.max())
    mean: np.ndarray = share @ (means + shift) / share.sum()
    return mean
