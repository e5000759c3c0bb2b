"""Rungs -> a distribution of bits per byte at the target, for every trial. No torch, no optuna.

The model, in words: along its ladder, a recipe's loss above an irreducible part E falls as a power of the compute,

    bpb_ik = E + exp(a_i - (g + d_i)·u_k + e_ik),      u_k = log(seconds_k / target seconds) <= 0,

where recipes share E and the exponent g, each has its own level a_i and its own small deviation d_i from the common exponent, and e is the
noise of a run. Given E and the three spreads this is a linear model with Gaussian priors, solved in closed form; E and
the spreads are summed over a grid, weighted by how well each explains the data. What a trial's runs say enters through a few
sums over them, two numbers per trial and E, so that ten thousand trials are forecast in a fraction of a second. A forecast is thus a mixture of
(shifted) log-normals: trials stopped at different rungs are comparable, and the shorter the ladder, the wider the interval.

This is deliberately simple (one exponent for all recipes, no response surface over the recipe's parameters).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

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


@dataclass(frozen=True, slots=True)
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
    mean: float
    """Expected bits per byte."""

    @property
    def _widths(self) -> np.ndarray:
        widths: np.ndarray = np.hypot(self.spreads, self.misfit)
        return widths

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
    return [r for r in records if r.kind == "rung" and r.state == "done" and r.bpb is not None and r.planned_seconds > 0]


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
    numbers = list(dict.fromkeys(r.trial for r in runs))
    trials = _Trials.of(runs, {number: place for place, number in enumerate(numbers)}, target_seconds)
    spreads = [_Spreads.of(trials, *pair) for pair in product(EXPONENT_SPREADS, NOISES)]
    losses = [_Losses.of(trials, share * float(trials.bpb.min())) for share in E_SHARES]
    solved = [_solve(loss, spread) for loss, spread in product(losses, spreads)]
    weights = np.exp(np.array([s.evidence for s in solved]) - max(s.evidence for s in solved))
    kept = weights > 1e-4 * weights.sum()  # the rest changes no figure that is shown
    likely = [s for s, keep in zip(solved, kept, strict=True) if keep]
    weights = weights[kept] / weights[kept].sum()
    floors = np.array([s.loss.floor for s in likely])
    means, deviations = (np.stack(values, axis=1) for values in zip(*(_at_target(s) for s in likely), strict=True))
    misfits = MISFIT * np.maximum(0.0, -trials.latest)
    expected = (floors + np.exp(means + (deviations**2 + misfits[:, None] ** 2) / 2)) @ weights
    each = zip(numbers, means, deviations, misfits.tolist(), expected.tolist(), strict=True)
    return {number: Forecast(weights, floors, m, d, misfit, mean) for number, m, d, misfit, mean in each}


@dataclass(frozen=True)
class _Trials:
    """The runs, and what the linear model needs of where they stand. A run's regressors are x = (1, -u)."""

    place: np.ndarray  # (runs,) of each run's trial
    x: np.ndarray  # (2, runs)
    bpb: np.ndarray  # (runs,)
    squares: np.ndarray  # (2, 2, trials) sums of x x'
    latest: np.ndarray  # (trials,) largest u

    @staticmethod
    def of(runs: Sequence[RunRecord], places: dict[int, int], target_seconds: float) -> "_Trials":
        place = np.array([places[r.trial] for r in runs])
        u = np.log(np.array([r.planned_seconds for r in runs]) / target_seconds)
        x = np.stack([np.ones_like(u), -u])
        bpb = np.array([r.bpb for r in runs], dtype=float)
        squares = np.array([[np.bincount(place, a * b) for b in x] for a in x])
        latest = np.full(len(places), -np.inf)
        np.maximum.at(latest, place, u)
        return _Trials(place, x, bpb, squares, latest)


@dataclass(frozen=True)
class _Losses:
    """The losses for one E: y = log(bpb - E)."""

    floor: float
    products: np.ndarray  # (2, trials) sums of x y
    square: float  # sum of y²
    total: float  # sum of y

    @staticmethod
    def of(trials: _Trials, floor: float) -> "_Losses":
        y = np.log(np.maximum(trials.bpb - floor, 1e-12))
        products = np.array([np.bincount(trials.place, x * y) for x in trials.x])
        return _Losses(floor, products, float(y @ y), float(y.sum()))


@dataclass(frozen=True)
class _Spreads:
    """What follows from the three spreads alone. A trial's own effects b have the prior precision D = diag(`own`)."""

    noise: float
    own: np.ndarray  # (2,)
    covariance: np.ndarray  # (2, 2, trials) of a trial's effects given the shared ones: (D + sum of x x' / noise²)⁻¹
    precision: np.ndarray  # (2, 2) that all runs lend the shared effects
    log_determinant: float  # of the covariance of all runs, given the shared effects

    @staticmethod
    def of(trials: _Trials, exponent_spread: float, noise: float) -> "_Spreads":
        own = np.array([PRIOR_LEVEL_SPREAD**-2, exponent_spread**-2])
        gram = trials.squares / noise**2
        a, b, d = own[0] + gram[0, 0], gram[0, 1], own[1] + gram[1, 1]
        determinant = a * d - b * b
        covariance = np.array([[d, -b], [-b, a]]) / determinant
        precision = own[:, None] * np.einsum("pqn,qrn->pr", covariance, gram)
        log_determinant = 2 * len(trials.bpb) * math.log(noise) + np.log(determinant / own.prod()).sum()
        return _Spreads(noise, own, covariance, precision, float(log_determinant))


@dataclass(frozen=True)
class _Solution:
    """The linear mixed model for given E and spreads."""

    loss: _Losses
    spreads: _Spreads
    evidence: float
    """Logarithm, up to a constant."""
    shared: np.ndarray  # (2,) level and exponent that all recipes share
    shared_covariance: np.ndarray  # (2, 2)


def _solve(loss: _Losses, spreads: _Spreads) -> _Solution:
    """The shared effects (level with a flat prior, exponent), a trial's own ones summed out."""
    prior = np.array([1e-6, PRIOR_EXPONENT[1] ** -2])
    projected = loss.products / spreads.noise**2
    effects = np.einsum("pqn,qn->pn", spreads.covariance, projected)
    precision = np.diag(prior) + spreads.precision
    pull = prior * np.array([0.0, PRIOR_EXPONENT[0]]) + spreads.own * effects.sum(axis=1)
    covariance = np.linalg.inv(precision)
    shared = covariance @ pull
    misfit = loss.square / spreads.noise**2 - float(np.vdot(projected, effects)) - float(pull @ shared)
    evidence = -0.5 * (misfit + spreads.log_determinant + float(np.linalg.slogdet(precision)[1]))
    evidence -= 0.5 * ((loss.floor - PRIOR_E[0]) / PRIOR_E[1]) ** 2
    evidence -= loss.total  # the density is of bpb, not of its logarithm
    return _Solution(loss, spreads, evidence, shared, covariance)


def _at_target(solution: _Solution) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of log(bpb - E) at the target, a run's own noise included, each shape (trials,)."""
    spreads = solution.spreads
    level = spreads.covariance[0]  # u = 0 there, so only the level counts
    prior = spreads.own * solution.shared
    mean = np.einsum("qn,qn->n", level, solution.loss.products / spreads.noise**2 + prior[:, None])
    through = level * spreads.own[:, None]  # how it still depends on the shared effects
    variance = level[0] + np.einsum("pn,pq,qn->n", through, solution.shared_covariance, through)
    return mean, np.sqrt(variance + spreads.noise**2)
