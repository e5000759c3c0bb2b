"""Rungs -> a distribution of bits per byte at the target, for every trial. No torch, no optuna.

The model, in words: along its ladder, a recipe's loss above an irreducible part E falls as a power of the compute,

    bpb_ik = E + exp(a_i - (g + d_i)·u_k + e_ik),      u_k = log(seconds_k / target seconds) <= 0,

where recipes share E and the exponent g, each has its own level a_i and its own small deviation d_i from the common exponent, and e is the
noise of a run. Given E and the three spreads this is a linear model with Gaussian priors, solved in closed form; E and
the spreads are summed over a grid, weighted by how well each explains the data. A forecast is thus a mixture of
(shifted) log-normals: trials stopped at different rungs are comparable, and the shorter the ladder, the wider the interval.

This is deliberately simple (one exponent for all recipes, no response surface over the recipe's parameters).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import ndtr

from budgetlm.records import RunRecord

E_SHARES = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.88, 0.95)
"""Candidates for the irreducible loss, as shares of the least loss seen."""
PRIOR_E = (0.5, 0.12)
"""Mean and spread of the irreducible loss in bits per byte: about what the largest published models approach on text and code.
Short ladders say little of E themselves, and with a wide prior they were fitted with an E that finals then undercut."""
PRIOR_EXPONENT = (0.20, 0.12)
"""Mean and spread of the exponent in device time, E apart: published fits in compute lie between 0.1 and 0.3."""
PRIOR_LEVEL_SPREAD = 0.4
"""Spread of recipes' levels, in logarithms."""
EXPONENT_SPREADS = (0.01, 0.03, 0.08)
"""Candidates for how much recipes differ in their exponent."""
MISFIT = 0.03
"""Error of the power law itself, in log(bpb - E) for each factor e of compute that it is carried beyond the ladder. Published
fits carried over factors of 10 to 100 miss by 3 to 6 % of the loss. All trials share it, so it widens intervals and orders nothing."""
NOISES = (0.005, 0.015, 0.05)
"""Candidates for the noise of one run, relative to the loss above E."""


@dataclass(frozen=True)
class Forecast:
    """What one trial's recipe is expected to reach at the target, in bits per byte. A mixture of shifted log-normals."""

    weights: np.ndarray
    """Of the components, shape (components,), summing to 1."""
    floors: np.ndarray
    """E of each component."""
    means: np.ndarray
    """Mean of log(bpb - E) in each component."""
    spreads: np.ndarray
    """Standard deviation of the same, the law's own error apart."""
    misfit: float
    """Standard deviation that the law's own error adds: the same for all trials, so that it tells none from another."""

    @property
    def _widths(self) -> np.ndarray:
        widths: np.ndarray = np.hypot(self.spreads, self.misfit)
        return widths

    @cached_property
    def mean(self) -> float:
        """Expected bits per byte."""
        return float(np.sum(self.weights * (self.floors + np.exp(self.means + self._widths**2 / 2))))

    def quantile(self, share: float) -> float:
        """The value that the outcome stays below with probability `share`."""
        low, high = float(self.floors.min()), float(np.max(self.floors + np.exp(self.means + 6 * self._widths)))
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.probability_below(middle) < share else (low, middle)
        return (low + high) / 2

    def probability_below(self, value: float) -> float:
        """Probability that the outcome is less than `value`."""
        above = np.maximum(value - self.floors, 1e-300)
        return float(np.sum(self.weights * ndtr((np.log(above) - self.means) / self._widths)))

    @property
    def interval(self) -> tuple[float, float]:
        """The central 80 % interval."""
        return self.quantile(0.1), self.quantile(0.9)


def usable(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs that a forecast can learn from: finished rungs with a measured loss."""
    return [r for r in records if r.kind == "rung" and r.state == "done" and r.bpb is not None and r.seconds > 0]


def fit(records: Sequence[RunRecord], target_seconds: float) -> dict[int, Forecast]:
    """Forecast every trial that has at least one finished rung.

    Args:
        records: of one study; others than finished rungs are passed over.
        target_seconds: the horizon.

    Returns:
        Trial number -> forecast. Empty when there is nothing to learn from.
    """
    runs = usable(records)
    if not runs:
        return {}
    trials: dict[int, list[tuple[float, float]]] = {}
    for run in runs:
        assert run.bpb is not None
        trials.setdefault(run.trial, []).append((math.log(run.seconds / target_seconds), run.bpb))
    numbers = list(trials)
    groups = _by_length([trials[n] for n in numbers])
    components = []
    least = min(r.bpb for r in runs if r.bpb is not None)
    for share in E_SHARES:
        for exponent_spread in EXPONENT_SPREADS:
            for noise in NOISES:
                floor = share * least
                evidence, means, variances = _solve(groups, len(numbers), floor, exponent_spread, noise)
                evidence -= 0.5 * ((floor - PRIOR_E[0]) / PRIOR_E[1]) ** 2
                components.append((evidence, floor, means, np.sqrt(variances + noise**2)))
    best = max(c[0] for c in components)
    weights = np.exp([c[0] - best for c in components])
    weights /= weights.sum()
    kept = weights > 1e-4  # the rest changes no figure that is shown
    share_of = weights[kept] / weights[kept].sum()
    floors = np.array([c[1] for c in components])[kept]
    means = np.array([c[2] for c in components])[kept]
    spreads = np.array([c[3] for c in components])[kept]
    misfits = {n: MISFIT * max(0.0, -max(u for u, _ in trials[n])) for n in numbers}
    return {n: Forecast(share_of, floors, means[:, i], spreads[:, i], misfits[n]) for i, n in enumerate(numbers)}


@dataclass(frozen=True)
class _Group:
    """Trials with equally many rungs: n trials, k rungs each."""

    places: np.ndarray  # (n,) their positions among all trials
    u: np.ndarray  # (n, k)
    bpb: np.ndarray  # (n, k)


def _by_length(trials: Sequence[Sequence[tuple[float, float]]]) -> list[_Group]:
    lengths = sorted({len(t) for t in trials})
    groups = []
    for length in lengths:
        places = [i for i, t in enumerate(trials) if len(t) == length]
        values = np.array([trials[i] for i in places])
        groups.append(_Group(np.array(places), values[:, :, 0], values[:, :, 1]))
    return groups


def _solve(
    groups: Sequence[_Group], trials: int, floor: float, exponent_spread: float, noise: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """The linear mixed model for given E and spreads.

    Returns:
        The log evidence; mean and variance of log(bpb - E) at the target without the run's own noise, each shape (trials,).
    """
    # Shared effects: common level m (flat prior) and exponent g. Per trial: level and exponent deviations.
    precision = np.array([[1e-6, 0.0], [0.0, 1 / PRIOR_EXPONENT[1] ** 2]])
    projected = np.array([0.0, PRIOR_EXPONENT[0] / PRIOR_EXPONENT[1] ** 2])
    evidence = -0.5 * PRIOR_EXPONENT[0] ** 2 / PRIOR_EXPONENT[1] ** 2
    own = np.array([PRIOR_LEVEL_SPREAD**2, exponent_spread**2])
    solved = []
    for group in groups:
        y = np.log(np.maximum(group.bpb - floor, 1e-12))
        x = np.stack([np.ones_like(group.u), -group.u], axis=-1)  # (n, k, 2): level, exponent
        covariance = np.einsum("nkp,p,nlp->nkl", x, own, x) + noise**2 * np.eye(y.shape[1])
        inverse = np.linalg.inv(covariance)
        weighted = np.einsum("nkp,nkl->npl", x, inverse)
        precision += np.einsum("npl,nlq->pq", weighted, x)
        projected += np.einsum("npl,nl->p", weighted, y)
        evidence -= 0.5 * float(np.einsum("nk,nkl,nl->", y, inverse, y) + np.linalg.slogdet(covariance)[1].sum())
        evidence -= float(y.sum())  # the density is of bpb, not of its logarithm
        solved.append((group, y, x, weighted))
    shared_covariance = np.linalg.inv(precision)
    shared = shared_covariance @ projected
    evidence += 0.5 * float(projected @ shared - np.linalg.slogdet(precision)[1])

    means, variances = np.empty(trials), np.empty(trials)
    at_target = np.array([1.0, 0.0])  # u = 0: only the level counts
    for group, y, x, weighted in solved:
        gain = own[None, :, None] * weighted  # (n, 2, k): how the data move a trial's own effects
        residual = y - np.einsum("nkp,p->nk", x, shared)
        means[group.places] = shared[0] + np.einsum("nk,nk->n", gain[:, 0], residual)
        # How the trial's value at the target still depends on the shared effects, and what is left of its own spread.
        through = at_target[None, :] - np.einsum("nk,nkp->np", gain[:, 0], x)
        left = own[0] - np.einsum("nk,nk->n", gain[:, 0], x[:, :, 0]) * own[0]
        variances[group.places] = np.einsum("np,pq,nq->n", through, shared_covariance, through) + np.maximum(left, 0.0)
    return evidence, means, variances
