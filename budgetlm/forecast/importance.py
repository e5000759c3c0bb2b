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
CARRIED = 0.5
"""Of their effective number points must keep this share to be weighed for another density again."""
FREEDOM = 6
"""Degrees of freedom of the proposals: their tails are heavier than those of what they look for."""


@dataclass(frozen=True)
class Draws:
    """Weighted points."""

    points: np.ndarray  # (n, dimensions)
    weights: np.ndarray  # (n,), summing to 1
    log_density: np.ndarray  # (n,) there, when they were weighed

    @property
    def effective(self) -> float:
        """How many equally weighted points these are worth."""
        return float(1 / np.sum(self.weights**2))

    def sample(self, count: int) -> "Draws":
        """About so many of them, each as often as its weight says: as it is where they are no more than that already."""
        if len(self.weights) <= count:
            return self
        order = np.argsort(-self.weights, kind="stable")
        even = np.searchsorted(np.cumsum(self.weights[order]), (np.arange(count) + 0.5) / count)
        which, times = np.unique(order[np.minimum(even, len(order) - 1)], return_counts=True)
        return Draws(self.points[which], times / count, self.log_density[which])

    def carried(self, log_density: Callable[[np.ndarray], np.ndarray]) -> "Draws | None":
        """The same points weighed for a density that has changed since; None where too few of them are likely under it.

        What runs have ended since tells little of the parameters beside all runs before, so a few points do for many fits (Chopin 2002, "A sequential
        particle filter method for static models").
        """
        with np.errstate(divide="ignore"):
            logs = np.log(self.weights) + log_density(self.points) - self.log_density
        weights = np.exp(logs - logsumexp(logs))
        now = Draws(self.points, weights, self.log_density)
        return now if now.effective >= CARRIED * self.effective else None


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
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    untempered, enough = 0, 1 if like else ENOUGH
    for turn in range(MOST_ROUNDS):
        densities = log_density(points)
        ratios = densities - log_proposal
        power = _temper(ratios)
        untempered += power == 1.0
        kept.append((points, ratios, densities))
        if untempered == enough:
            break
        points, log_proposal = _propose(points, np.exp(power * ratios - logsumexp(power * ratios)), turn, size)
    last = kept[-2:] if untempered == enough else kept[-1:]
    points, ratios, densities = (np.concatenate(parts) for parts in zip(*last, strict=True))
    believed = np.isfinite(ratios)  # all, but where rounding has left one that nothing can be solved for
    ratios = ratios[believed]
    return Draws(points[believed], np.exp(ratios - logsumexp(ratios)), densities[believed])


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
