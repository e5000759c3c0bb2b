"""Rungs -> a distribution of bits per byte at the target, for every trial. No torch, no optuna.

The model, in words: along its ladder, a recipe's loss above an irreducible part E falls as a power of the compute,

    bpb_ik = E + exp(f(r_i) + a_i - (g(r_i) + d_i)·u_k + (c + c_i)·h(u_k) + e_ik),      u_k = log(seconds_k / target seconds) <= 0,

where the level f is quadratic and the exponent g linear in what tells recipe r_i from the others (`forecast/traits.py`): a response surface
whose optimum drifts with scale, for a recipe whose exponent is larger gains more on its way to the target. Each trial has its own small
deviations a_i from the surface and d_i from the exponent; c bends the law by what the shortest runs lose beside it, h, which dies out
towards the target; and e is the noise of a run, larger the farther from the target. Given E and the spreads this is a linear model
with Gaussian priors, solved in closed form; E and the spreads are summed over a grid, weighted by how well each explains the
data. What a trial's runs say enters through a few sums over them, three numbers per trial and E. A forecast is thus a mixture
of (shifted) log-normals: trials stopped at different rungs are comparable, and the shorter the ladder, the wider the interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.special import ndtr

from budgetlm.forecast.traits import traits_of
from budgetlm.records import RunRecord

E_SHARES = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.88, 0.95)
"""Candidates for the irreducible loss, as shares of the least loss seen."""
PRIOR_E = (0.5, 0.12)
"""Mean and spread of the irreducible loss in bits per byte: about what the largest published models approach on text and code.
Short ladders say little of E themselves, and with a wide prior they were fitted with an E that finals then undercut."""
PRIOR_EXPONENT = (0.20, 0.12)
"""Mean and spread of the exponent in device time, E apart: published fits in compute lie between 0.1 and 0.3."""
STARVED, FARTHEST = 0.8, -5.0
"""How fast it dies out, what the shortest runs lose beside the law (too few steps for warm-up and momentum, too small a shape); and where
it is as large as it gets."""
PRIOR_BEND = (0.05, 0.05)
"""Mean and spread of what bends the law."""
OWN_BEND = 0.01
"""Spread among trials of the same."""
AGED = 0.5
"""The noise of a run grows by so much for each factor e of time that it is shorter than the target: what is nearer says more."""
LEVEL_SPREADS = (0.05, 0.15, 0.4)
"""Candidates for the spread of recipes' levels about the surface, in logarithms."""
PRIOR_SLOPES, PRIOR_CURVES, PRIOR_DRIFTS = 0.03, 0.02, 0.0075
"""Spreads of the surface's coefficients for a trait one of its own spreads from the mean: what the level changes by, its square, and
what the exponent changes by."""
PRIOR_BOWL = 0.02
"""Expected coefficient of a trait's square: the space lies about what is known to be sensible, so its edges are expected to be worse."""
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
    apart: np.ndarray
    """The part of it that is not the same for all trials: what tells one from another."""
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
    spreads = [_Spreads.of(trials, *these) for these in product(LEVEL_SPREADS, EXPONENT_SPREADS, NOISES)]
    losses = [_Losses.of(trials, share * float(trials.bpb.min())) for share in E_SHARES]
    solved = [_solve(loss, spread, trials) for loss, spread in product(losses, spreads)]
    weights = np.exp(np.array([s.evidence for s in solved]) - max(s.evidence for s in solved))
    kept = weights > 1e-4 * weights.sum()  # the rest changes no figure that is shown
    likely = [s for s, keep in zip(solved, kept, strict=True) if keep]
    weights = weights[kept] / weights[kept].sum()
    floors = np.array([s.loss.floor for s in likely])
    means, deviations, apart = (
        np.stack(values, axis=1) for values in zip(*(_at_target(s, trials) for s in likely), strict=True)
    )
    misfits = MISFIT * np.maximum(0.0, -trials.latest)
    expected = (floors + np.exp(means + (deviations**2 + misfits[:, None] ** 2) / 2)) @ weights
    each = zip(numbers, means, deviations, apart, misfits.tolist(), expected.tolist(), strict=True)
    return {number: Forecast(weights, floors, *others) for number, *others in each}


@dataclass(frozen=True)
class _Trials:
    """The runs, and what the linear model needs of where they stand. A run's regressors are x = (1, -u, h(u)), less for noisy ones."""

    place: np.ndarray  # (runs,) of each run's trial
    x: np.ndarray  # (3, runs)
    weight: np.ndarray  # (runs,) that the regressors and the loss of a run were multiplied by
    bpb: np.ndarray  # (runs,)
    squares: np.ndarray  # (trials, 3, 3) sums of x x'
    latest: np.ndarray  # (trials,) largest u
    traits: np.ndarray  # (3, trials, effects) what the shared effects add to a trial's level, exponent, and bend
    prior: np.ndarray  # (2, effects) mean and precision of the shared effects

    @staticmethod
    def of(runs: Sequence[RunRecord], places: dict[int, int], target_seconds: float) -> "_Trials":
        place = np.array([places[r.trial] for r in runs])
        u = np.log(np.array([r.planned_seconds for r in runs]) / target_seconds)
        weight = 1 / (1 + AGED * np.abs(u))
        x = np.stack([np.ones_like(u), -u, _starved(u)]) * weight
        bpb = np.array([r.bpb for r in runs], dtype=float)
        squares = np.array([[np.bincount(place, a * b) for b in x] for a in x]).transpose(2, 0, 1)
        latest = np.full(len(places), -np.inf)
        np.maximum.at(latest, place, u)
        recipes = {places[r.trial]: r.recipe for r in runs}
        return _Trials(place, x, weight, bpb, squares, latest, *_surface([recipes[i] for i in range(len(places))]))


def _surface(recipes: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The shared effects of `_Trials`: level, exponent and bend of all, and what traits change of the first two."""
    numbers, words = traits_of(recipes)
    one, traits = np.ones((len(recipes), 1)), np.concatenate([numbers, words], axis=1)
    level = np.concatenate([one, traits, numbers**2 - 1], axis=1)
    exponent = np.concatenate([one, traits], axis=1)
    effects = np.zeros((3, len(recipes), level.shape[1] + exponent.shape[1] + 1))
    effects[0, :, : level.shape[1]], effects[1, :, level.shape[1] : -1], effects[2, :, -1:] = level, exponent, one
    curves, slopes = numbers.shape[1], traits.shape[1]
    spread = [
        1e3,
        *[PRIOR_SLOPES] * slopes,
        *[PRIOR_CURVES] * curves,
        PRIOR_EXPONENT[1],
        *[PRIOR_DRIFTS] * slopes,
        PRIOR_BEND[1],
    ]
    mean = np.zeros(len(spread))
    mean[1 + slopes : 1 + slopes + curves] = PRIOR_BOWL
    mean[level.shape[1]], mean[-1] = PRIOR_EXPONENT[0], PRIOR_BEND[0]
    return effects, np.stack([mean, np.array(spread) ** -2.0])


def _starved(u: np.ndarray) -> np.ndarray:
    """h: what the shortest runs lose beside a power law, as a share of what a run of a tenth of the target's time does."""
    lost: np.ndarray = np.expm1(-STARVED * np.maximum(u, FARTHEST)) / math.expm1(STARVED * math.log(10))
    return lost


@dataclass(frozen=True)
class _Losses:
    """The losses for one E: y = log(bpb - E)."""

    floor: float
    products: np.ndarray  # (trials, 3) sums of x y
    square: float  # sum of y²
    total: float  # sum of y

    @staticmethod
    def of(trials: _Trials, floor: float) -> "_Losses":
        y = np.log(np.maximum(trials.bpb - floor, 1e-12))
        weighted = trials.weight * y
        products = np.array([np.bincount(trials.place, x * weighted) for x in trials.x]).T
        return _Losses(floor, products, float(weighted @ weighted), float(y.sum()))


@dataclass(frozen=True)
class _Spreads:
    """What follows from the three spreads alone. A trial's own effects b have the prior precision D = diag(`own`)."""

    noise: float
    own: np.ndarray  # (3,)
    covariance: np.ndarray  # (trials, 3, 3) of a trial's effects given the shared ones: (D + sum of x x' / noise²)⁻¹
    precision: np.ndarray  # (effects, effects) that all runs lend the shared effects
    log_determinant: float  # of the covariance of all runs, given the shared effects

    @staticmethod
    def of(trials: _Trials, level_spread: float, exponent_spread: float, noise: float) -> "_Spreads":
        own = np.array([level_spread, exponent_spread, OWN_BEND]) ** -2.0
        gram = trials.squares / noise**2
        inverse = np.diag(own) + gram
        covariance = np.linalg.inv(inverse)
        lent = np.einsum("npr,rne->pne", own[:, None] * (covariance @ gram), trials.traits)
        precision: np.ndarray = np.tensordot(trials.traits, lent, axes=([0, 1], [0, 1]))
        log_determinant = 2 * len(trials.bpb) * math.log(noise) + (np.linalg.slogdet(inverse)[1] - np.log(own).sum()).sum()
        return _Spreads(noise, own, covariance, precision, float(log_determinant))


@dataclass(frozen=True)
class _Solution:
    """The linear mixed model for given E and spreads."""

    loss: _Losses
    spreads: _Spreads
    evidence: float
    """Logarithm, up to a constant."""
    shared: np.ndarray  # (effects,) the surface
    shared_covariance: np.ndarray  # (effects, effects)


def _solve(loss: _Losses, spreads: _Spreads, trials: _Trials) -> _Solution:
    """The shared effects, a trial's own ones summed out."""
    mean, prior = trials.prior
    projected = loss.products / spreads.noise**2
    effects = np.einsum("npq,nq->np", spreads.covariance, projected)
    precision = np.diag(prior) + spreads.precision
    pull = prior * mean + np.einsum("pne,np->e", trials.traits, spreads.own * effects)
    covariance = np.linalg.inv(precision)
    shared = covariance @ pull
    misfit = loss.square / spreads.noise**2 - float(np.vdot(projected, effects)) - float(pull @ shared)
    evidence = -0.5 * (misfit + spreads.log_determinant + float(np.linalg.slogdet(precision)[1]))
    evidence -= 0.5 * ((loss.floor - PRIOR_E[0]) / PRIOR_E[1]) ** 2
    evidence -= loss.total  # the density is of bpb, not of its logarithm
    return _Solution(loss, spreads, evidence, shared, covariance)


def _at_target(solution: _Solution, trials: _Trials) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of log(bpb - E) at the target: mean, standard deviation, and the part of it that trials do not share, each shape (trials,)."""
    spreads = solution.spreads
    level = spreads.covariance[:, 0]  # u = 0 there, so only the level counts
    prior = spreads.own * (trials.traits @ solution.shared).T
    mean = np.einsum("nq,nq->n", level, solution.loss.products / spreads.noise**2 + prior)
    through = np.einsum("nq,qne->ne", level * spreads.own, trials.traits)  # how it depends on the surface
    own = level[:, 0] + spreads.noise**2
    apart = through - through.mean(axis=0)
    deviations = (np.sqrt(own + np.einsum("ne,ne->n", t @ solution.shared_covariance, t)) for t in (through, apart))
    return mean, *deviations
