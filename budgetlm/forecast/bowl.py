"""Which knobs are best at a target, from few cheap runs: one bowl whose optimum drifts with scale, seen from the target.

Only differences within a scale count here, so every scale has a level of its own and no law of loss is needed:

    log loss = level(scale) + slope·k + k'·drift·s + bowl(k) + noise,

with k the knobs in spreads of the target's choices, about an expected drift, and s the logarithms of scale, 0 at the target. All of it is linear, with
Gaussian priors around "the middle of what may be chosen, drifting as such a knob usually does, both quite unsure"; the bowl's depth, the drift and the
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
DRIFTS = {"": (0.0, 0.0, 0.45), "ratio": (0.0, 0.0, 0.07), "rate": (-0.35, 0.0, 0.25), "batch": (0.1, 0.4, 0.2)}
"""How far the best knob moves, by its role: expected per factor e of parameters and of tokens, and the spread of both. Logarithms of a knob.
Published laws lie between 0.1 and 0.8 either way, and compute-optimal ratios hardly move. Rates fall with width (-1/3 to -1/2 per parameter in
arXiv:2203.03466; GPT-3's -0.3), while with tokens published signs differ; batches grow like the tokens' root (arXiv:2410.21676), a little with size."""
SURENESS = (2 / 3, 4 / 3)
"""Candidates for these spreads, as multiples."""
FAR = 0.02
"""A run this much above the best at its scale is far up the walls, where there is no bowl: it counts for half, worse ones for hardly anything."""
REACH = 2.0
"""Farther than this, in spreads, the optimum is not believed to drift between a cheap scale and the target."""
SWEEPS = 3
"""Fits, each with weights from the one before."""


LAW_MISS, LAW_DRIFT = 0.05, 0.01
"""How far a published law is taken to miss the optimum at the target, and in its drift for each factor e of scale. Logarithms of a knob."""


@dataclass(frozen=True)
class BowlFrame:
    """The coordinates: knobs relative to what is expected before any run, scales relative to the target."""

    target: np.ndarray  # (axes,) logarithms
    origin: np.ndarray  # (knobs,)
    spread: np.ndarray  # (knobs,)
    kinds: Kinds
    drift: np.ndarray  # (knobs, axes) expected
    unsure: np.ndarray  # (knobs, axes) spread of the drift
    lawful: np.ndarray  # (knobs,) bool: a published law is believed

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
        axes, spread = len(target), np.where(kinds.curved & (wide > 0), wide, 1.0)
        usual = np.array([DRIFTS[role] for role in kinds.role]).reshape(-1, 3)
        expected = usual[:, :2] if axes == 2 else usual[:, :2].mean(axis=1, keepdims=True).repeat(axes, axis=1)
        drift = np.where((kinds.curved & kinds.logged)[:, None], expected, 0.0)
        unsure = usual[:, 2:].repeat(axes, axis=1)
        origin, known = np.where(kinds.curved, middle, 0.0), np.zeros(len(middle), dtype=bool)
        if law is not None:
            known = np.isfinite(law.offset) & kinds.logged
            drift = np.where(known[:, None], law.drift, drift)
            unsure = np.where(known[:, None], LAW_DRIFT, unsure)
            origin = np.where(known, law.offset + drift @ target, origin)
        return BowlFrame(target, origin, spread, kinds, drift, unsure, known)

    def place(self, scales: np.ndarray, knobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scales (n, axes) and knobs (n, knobs) in these coordinates."""
        s = scales - self.target
        return s, (knobs - self.origin - s @ self.drift.T) / self.spread

    def features(self, s: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Linear, drift, squares, products, squares that change with scale, (n, features)."""
        n, round_ones = len(k), k[:, self.kinds.curved]
        rows, columns = np.tril_indices(round_ones.shape[1], -1)
        drift = (k[:, :, None] * s[:, None, :]).reshape(n, k.shape[1] * s.shape[1])
        changing = round_ones**2 * s.sum(axis=1, keepdims=True)
        return np.concatenate([k, drift, round_ones**2, round_ones[:, rows] * round_ones[:, columns], changing], axis=1)


@dataclass(frozen=True)
class Bowl:
    """The fitted differences between knobs: a Gaussian of the coefficients for each combination of depth, noise and drift.

    The first of them are levels of the scales that were seen.
    """

    frame: BowlFrame
    levels: np.ndarray  # (scales,) their numbers
    shares: np.ndarray  # (combinations,) how well each explains the runs, summing to 1
    means: np.ndarray  # (combinations, levels + features)
    precisions: np.ndarray  # (combinations, levels + features, levels + features)
    noise: float
    """Expected."""

    @cached_property
    def covariances(self) -> np.ndarray:
        """Of each combination; a forecast has no use for them."""
        inverted: np.ndarray = np.linalg.inv(self.precisions)
        return inverted

    @cached_property
    def coefficients(self) -> np.ndarray:
        """Expected of the features, (features,)."""
        expected: np.ndarray = (self.shares @ self.means)[len(self.levels) :]
        return expected

    @cached_property
    def covariance(self) -> np.ndarray:
        """Of levels and features over all combinations."""
        apart = self.means - self.shares @ self.means
        total: np.ndarray = np.tensordot(self.shares, self.covariances, 1) + (apart.T * self.shares) @ apart
        return total

    def draws(self, count: int, chance: np.random.Generator) -> np.ndarray:
        """Of the features' coefficients, (count, features)."""
        which = chance.choice(len(self.shares), count, p=self.shares)
        drawn = self.means[which]
        for one in np.unique(which):
            rows = which == one
            root = np.linalg.cholesky(self.covariances[one])
            drawn[rows] += chance.standard_normal((rows.sum(), len(root))) @ root.T
        return drawn[:, len(self.levels) :]

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
        moves = frame.drift + frame.spread[:, None] * moves
        return Centre(frame.origin + frame.spread * best - moves @ frame.target, moves)

    def moved(self, scale: np.ndarray) -> np.ndarray:
        """How far the best knobs at a scale (axes,) lie from those at the target, (knobs,): 0 for indicators."""
        frame, s = self.frame, scale - self.frame.target
        expected = frame.drift @ s
        total: np.ndarray = expected + np.clip(self.centre.drift @ s - expected, -REACH * frame.spread, REACH * frame.spread)
        return total


def fit_bowl(frame: BowlFrame, scales: np.ndarray, knobs: np.ndarray, loss: np.ndarray, cells: np.ndarray) -> Bowl:
    """Fit the bowl to finished runs; with few of them it is mostly the prior, with none nothing else.

    Args:
        frame: the coordinates.
        scales: (n, axes), logarithms.
        knobs: (n, knobs).
        loss: (n,), positive.
        cells: (n,), the same number for runs of the same scale.
    """
    s, k = frame.place(scales, knobs)
    levels, cell = np.unique(cells, return_inverse=True)
    x = np.concatenate([np.eye(len(levels))[cell], frame.features(s, k)], axis=1)
    y = np.log(loss) - np.log(loss).sum() / max(1, len(loss))
    means, spreads, noise = _priors(frame, len(levels))
    weights = np.ones(len(y))
    for _ in range(SWEEPS - 1):
        shares, found, _ = _solve(x, y, weights, means, spreads, noise)
        least = np.full(len(levels), np.inf)
        np.minimum.at(least, cell, np.minimum(x @ (shares @ found), y))
        weights = 1 / (1 + ((y - least[cell]) / FAR) ** 4)
    shares, found, precisions = _solve(x, y, weights, means, spreads, noise)
    return Bowl(frame, levels, shares, found, precisions, float(shares @ noise[:, 0]))


def _priors(frame: BowlFrame, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means and spreads of the coefficients, each (combinations, features), and the noise of each combination."""
    depth, noise, sureness = np.array(list(product(DEPTHS, NOISES, SURENESS))).T[:, :, None]
    count, axes, numbers = len(frame.kinds.curved), len(frame.target), int(frame.kinds.curved.sum())
    one, pairs = np.ones((1, 1)), numbers * (numbers - 1) // 2
    slope = np.where(frame.lawful, 2 * LAW_MISS / frame.spread, np.where(frame.kinds.curved, FROM_THE_MIDDLE, 5.0))
    wander = 2 * frame.unsure / np.where(frame.kinds.logged, frame.spread, 1.0)[:, None]
    wander = np.where(frame.kinds.curved[:, None], wander, 0.5).ravel()
    parts = [
        np.ones((len(depth), levels)),
        depth * slope,
        depth * sureness * wander,
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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The combinations' shares by their evidence, and of each the coefficients' mean and precision."""
    weighted = x * weights[:, None]
    gram, right = weighted.T @ x, weighted.T @ y
    precision = gram / noise[..., None] ** 2 + np.eye(x.shape[1]) * (spreads**-2.0)[:, None, :]
    pull = (right - means @ gram) / noise**2
    shift = np.linalg.solve(precision, pull[..., None])[..., 0]
    square = weights @ y**2 - 2 * means @ right + ((means @ gram) * means).sum(axis=1)
    determinant = np.linalg.slogdet(precision)[1] + 2 * np.log(spreads).sum(axis=1)
    evidence = -0.5 * (square / noise[:, 0] ** 2 - (pull * shift).sum(axis=1) + determinant) - len(y) * np.log(noise[:, 0])
    share = np.exp(evidence - evidence.max())
    return share / share.sum(), means + shift, precision
