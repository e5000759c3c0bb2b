"""Draws from a density known up to a constant, by adaptive importance sampling: deterministic, in a few batched evaluations."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_t, norm, qmc

MOST_ROUNDS = 14
ENOUGH = 3
"""Rounds that need no tempering."""
HEALTHY = 0.1
"""The share of its points, by effective number, that a round must keep; where the density is narrower than the proposal it is tempered so far."""
FREEDOM = 6
"""Degrees of freedom of the proposals: their tails are heavier than those of what they look for."""


@dataclass(frozen=True)
class Draws:
    """Weighted points."""

    points: np.ndarray  # (n, dimensions)
    weights: np.ndarray  # (n,), summing to 1

    @property
    def effective(self) -> float:
        """How many equally weighted points these are worth."""
        return float(1 / np.sum(self.weights**2))


def importance_draws(
    log_density: Callable[[np.ndarray], np.ndarray], dimensions: int, size: int, like: Draws | None = None
) -> Draws:
    """Weighted points of a density over parameters that have a standard normal prior.

    Each round moves a Student-t proposal to where the last one found weight (population Monte Carlo, Cappé et al. 2004),
    tempered until the proposal has caught up with the density. The points of the last two rounds are returned.

    Args:
        log_density: prior included; (n, dimensions) -> (n,).
        dimensions: of a point.
        size: points of one round, a power of 2.
        like: draws of a density that is much the same, to begin with.
    """
    uniform = qmc.Sobol(dimensions, seed=0).random(size)
    points = norm.ppf(np.clip(uniform, 1e-6, 1 - 1e-6))
    log_proposal = norm.logpdf(points).sum(axis=1)
    if like:
        points, log_proposal = _propose(like.points, like.weights, MOST_ROUNDS, size)
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    untempered, enough = 0, 1 if like else ENOUGH
    for turn in range(MOST_ROUNDS):
        ratios = log_density(points) - log_proposal
        power = _temper(ratios)
        untempered += power == 1.0
        kept.append((points, ratios))
        if untempered == enough:
            break
        points, log_proposal = _propose(points, np.exp(power * ratios - logsumexp(power * ratios)), turn, size)
    last = kept[-2:] if untempered == enough else kept[-1:]
    points, ratios = (np.concatenate(parts) for parts in zip(*last, strict=True))
    believed = np.isfinite(ratios)  # all, but where rounding has left one that nothing can be solved for
    points, ratios = points[believed], ratios[believed]
    return Draws(points, np.exp(ratios - logsumexp(ratios)))


def _propose(points: np.ndarray, weights: np.ndarray, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of a Student t with the mean and covariance of weighted ones, and the logarithm of its density there."""
    centre = weights @ points
    apart = points - centre
    shape = 1.1 * (apart * weights[:, None]).T @ apart + 1e-6 * np.eye(len(centre))
    proposal = multivariate_t(centre, shape, df=FREEDOM, seed=seed)
    proposed = np.reshape(proposal.rvs(size), (size, len(centre)))
    return proposed, np.asarray(proposal.logpdf(proposed))


def _temper(ratios: np.ndarray) -> float:
    """The largest power up to 1 that leaves the weights healthy."""
    below = ratios - ratios.max()

    def effective(power: float) -> float:
        weights = np.exp(power * below)
        return float(weights.sum() ** 2 / (weights @ weights))

    if effective(1.0) >= HEALTHY * len(ratios):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle) >= HEALTHY * len(ratios) else (low, middle)
    return max(low, 1e-6)
