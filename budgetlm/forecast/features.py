"""What the response surface is linear in: knobs around a drifting optimum, and smooth errors of law and surface."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

MOST_CROSSED = 8
"""Products of two knobs are features up to so many numeric knobs; beyond, each has its own bowl only."""


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
