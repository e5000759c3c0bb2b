"""What the response surface is linear in: knobs around a drifting optimum, and smooth errors of law and surface."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

MOST_CROSSED = 8
"""Products of two knobs are features up to so many numeric knobs; beyond, each has its own bowl only."""
REACH = 1.5
"""The optimum is looked for within the knobs seen, widened by so many of their spreads."""


@dataclass(frozen=True)
class Centre:
    """Where the best knobs lie, linear in the scale axes."""

    offset: np.ndarray  # (knobs,)
    drift: np.ndarray  # (knobs, axes)

    def at(self, scales: np.ndarray) -> np.ndarray:
        """The best knobs at scales (n, axes), shape (n, knobs)."""
        best: np.ndarray = self.offset + scales @ self.drift.T
        return best


def bowl(knobs: np.ndarray, scales: np.ndarray, curved: np.ndarray) -> np.ndarray:
    """Knobs, their drift with scale, their squares and products, and how the squares change with scale overall.

    Args:
        knobs: (n, knobs), relative to the centre, in spreads.
        scales: (n, axes), relative to their middle.
        curved: (knobs,), which of them are numbers; indicators have no squares.

    Returns:
        (n, features): linear, drift, squares, products, changing squares; see `blocks`.
    """
    n = len(knobs)
    round_ones = knobs[:, curved]
    drift = (knobs[:, :, None] * scales[:, None, :]).reshape(n, -1)
    squares = round_ones**2
    pairs = [(i, j) for i in range(round_ones.shape[1]) for j in range(i)] if curved.sum() <= MOST_CROSSED else []
    products = np.stack([round_ones[:, i] * round_ones[:, j] for i, j in pairs], axis=1) if pairs else np.zeros((n, 0))
    changing = squares * scales.sum(axis=1, keepdims=True)
    return np.concatenate([knobs, drift, squares, products, changing], axis=1)


def blocks(curved: np.ndarray, axes: int) -> list[int]:
    """How many features of each kind `bowl` makes."""
    numbers = int(curved.sum())
    return [len(curved), len(curved) * axes, numbers, numbers * (numbers - 1) // 2 * (numbers <= MOST_CROSSED), numbers]


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


@dataclass(frozen=True)
class Bumps:
    """A smooth function of unknown shape: a Gaussian process with unit variance, by its values at a few nodes (Nyström)."""

    nodes: np.ndarray  # (nodes, dimensions)
    lengths: float
    root: np.ndarray  # (nodes, nodes) inverse square root of the nodes' covariance

    @staticmethod
    def over(points: np.ndarray, length: float, most: int) -> "Bumps":
        """Nodes spread over `points` (n, dimensions): each the farthest from those before."""
        nodes = [points[np.argmin(((points - points.mean(axis=0)) ** 2).sum(axis=1))]]
        nearest = np.full(len(points), math.inf)
        while len(nodes) < most:
            nearest = np.minimum(nearest, ((points - nodes[-1]) ** 2).sum(axis=1))
            if nearest.max() < (0.3 * length) ** 2:
                break
            nodes.append(points[np.argmax(nearest)])
        stack = np.array(nodes)
        values, vectors = np.linalg.eigh(_kernel(stack, stack, length))
        return Bumps(stack, length, vectors / np.sqrt(np.maximum(values, 1e-6)))

    def at(self, points: np.ndarray) -> np.ndarray:
        """Features (n, nodes); a weighted sum of them with independent standard normal weights is the process."""
        features: np.ndarray = _kernel(points, self.nodes, self.lengths) @ self.root
        return features


def _kernel(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    covariance: np.ndarray = np.exp(-0.5 * cdist(a, b, "sqeuclidean") / length**2)
    return covariance
