"""From a person's coordinates to those of the surface: scales about their middle, knobs about an optimum that drifts with scale."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from budgetlm.forecast.errors import Errors
from budgetlm.forecast.features import blocks, bowl

REACH = 1.5
"""The optimum is looked for within the knobs seen, widened by so many of their spreads."""
CLIP = 0.5
"""Knobs farther outside what was seen than this, in spreads, count as if they were there: no bowl holds far away."""


@dataclass(frozen=True)
class Points:
    """Where a loss was measured or is wanted."""

    scales: np.ndarray
    """(n, axes): natural logarithms, of parameters and tokens for instance."""
    knobs: np.ndarray
    """(n, knobs): logarithms where the knob is one of scale, plain numbers, or indicators."""


@dataclass(frozen=True)
class Centre:
    """Where the best knobs lie, linear in the scale axes."""

    offset: np.ndarray  # (knobs,)
    drift: np.ndarray  # (knobs, axes)

    def at(self, scales: np.ndarray) -> np.ndarray:
        """The best knobs at scales (n, axes), shape (n, knobs)."""
        best: np.ndarray = self.offset + scales @ self.drift.T
        return best


@dataclass(frozen=True)
class Prior:
    """What is known before any run."""

    exponents: tuple[float, ...]
    """Median exponent of each axis."""
    balance: tuple[float, ...]
    """Where on each axis the terms of the law are alike, in the axis' own logarithm."""
    optimum: Centre | None = None
    """A published law of the optimum, in the knobs' own coordinates; NaN for knobs that it does not know."""


@dataclass(frozen=True)
class Frame:
    """From a person's coordinates to those of the model."""

    middle: np.ndarray  # (axes,)
    edges: tuple[np.ndarray, np.ndarray]  # least and greatest of each axis
    spread: np.ndarray  # (knobs,)
    curved: np.ndarray  # (knobs,) bool
    known: np.ndarray  # (knobs,) bool: a published law gave the optimum
    law: Centre  # of the raw knobs, the middle of those seen where no law is known
    centre: Centre  # of the scaled ones, apart from `law`
    seen: tuple[np.ndarray, np.ndarray] | None = (
        None  # least and greatest scaled knob, relative to the centre, and something more
    )

    def scales(self, points: Points) -> np.ndarray:
        """Relative to the middle, (n, axes)."""
        relative: np.ndarray = points.scales - self.middle
        return relative

    def knobs(self, points: Points) -> np.ndarray:
        """In spreads, relative to the optimum, (n, knobs)."""
        raw = (points.knobs - self.law.at(points.scales)) / self.spread
        relative: np.ndarray = raw - self.centre.at(self.scales(points))
        return np.clip(relative, *self.seen) if self.seen else relative


def make_frame(points: Points, loss: np.ndarray, errors: Errors, curved: np.ndarray, prior: Prior) -> Frame:
    """The coordinates of a table of runs; see `fit_surface`."""
    axes, count = points.scales.shape[1], points.knobs.shape[1]
    nothing = Centre(np.zeros(count), np.zeros((count, axes)))
    known = np.isfinite(prior.optimum.offset) if prior.optimum else np.zeros(count, dtype=bool)
    law = Centre(np.where(curved, points.knobs.mean(axis=0), 0.0), nothing.drift)
    if prior.optimum:
        drift = np.where(known[:, None], prior.optimum.drift, 0)
        law = Centre(np.where(known, prior.optimum.offset, law.offset), drift)
    middle = points.scales.mean(axis=0)
    edges = (points.scales.min(axis=0), points.scales.max(axis=0))
    spread = np.where(curved, points.knobs.std(axis=0), 1.0)
    frame = Frame(middle, edges, spread, curved, known, law, nothing)
    found = find_centre(frame.knobs(points), frame.scales(points), loss, errors.inverse, curved)
    kept = Centre(np.where(known, 0, found.offset), np.where(known[:, None], 0, found.drift))
    frame = replace(frame, centre=kept)
    knobs = frame.knobs(points)
    return replace(frame, seen=(knobs.min(axis=0) - CLIP, knobs.max(axis=0) + CLIP)) if count else frame


def find_centre(
    knobs: np.ndarray,
    scales: np.ndarray,
    loss: np.ndarray,
    inverse: Callable[[np.ndarray], np.ndarray],
    curved: np.ndarray,
) -> Centre:
    """The drifting optimum by ridge regression of log loss, the level of every scale free.

    `inverse` multiplies with the inverse covariance of the runs, apart from its size. It need not be exact: what is left of the drift is among the features. It has to be near, because the law is for the optimum.
    """
    count, axes = knobs.shape[1], scales.shape[1]
    nothing = Centre(np.zeros(count), np.zeros((count, axes)))
    if not curved.any():
        return nothing
    level = np.concatenate([np.ones((len(loss), 1)), scales, *(scales[:, [i]] * scales[:, : i + 1] for i in range(axes))], 1)
    x = np.concatenate([level, bowl(knobs, scales, curved)], axis=1)
    sizes = blocks(curved, axes)
    # In log loss per spread of a knob: a bowl of 1 % is expected, and steps of 2 % are not unusual.
    expected = np.concatenate([np.zeros(level.shape[1] + sum(sizes[:2])), np.full(sizes[2], 0.01), np.zeros(sum(sizes[3:]))])
    spread = np.repeat([10.0, 0.02, 0.01, 0.01, 0.01, 0.001], [level.shape[1], *sizes])
    noise, weighted = 0.005, inverse(x)
    precision = weighted.T @ x / noise**2 + np.diag(spread**-2.0)
    pull = weighted.T @ np.log(loss) / noise**2 + expected / spread**2
    found = np.linalg.solve(precision, pull)[level.shape[1] :]
    slope, drift, squares, products, _ = np.split(found, np.cumsum(sizes)[:-1])
    hessian = np.diag(2 * squares)
    if len(products):
        rows, columns = np.tril_indices(len(squares), -1)
        hessian[rows, columns] = hessian[columns, rows] = products
    values, vectors = np.linalg.eigh(hessian)
    inverted = vectors / np.maximum(values, 0.004) @ vectors.T  # nowhere flatter than a bowl that can be told from noise
    offset, drifts = nothing.offset, nothing.drift
    offset[curved] = -inverted @ slope[curved]
    drifts[curved] = -inverted @ drift.reshape(count, axes)[curved]
    low, high = knobs.min(axis=0) - REACH, knobs.max(axis=0) + REACH
    return Centre(np.clip(offset, low, high), drifts)
