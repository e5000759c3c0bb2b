"""Finished runs -> a distribution of the loss at any scale and knobs: a Bayesian response surface on a scaling law.

The model, in words: above an irreducible part E, loss is a law of scale times a bowl in the knobs, both only nearly right,

    log(loss - E) = level + log sum_j exp(balance_j - exponent_j·s_j) + bowl(k - k0(s)) + bumps(s) + bumps(k - k0(s)) + beyond(s) + noise,

with s the logarithms of scale (parameters and tokens, or device-seconds), k the knobs and k0(s) their optimum, which drifts linearly with s.
Given E, exponents, balance and the spreads, all the rest is linear with Gaussian priors and solved in closed form; those few are
sampled by how well each explains the data. So what is returned are joint draws: the law's own error moves all candidates together, and
widens with the distance to what was measured. No published law is in the prior of the optimum unless one is given.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from budgetlm.forecast.features import Bumps, Centre, blocks, bowl, find_centre
from budgetlm.forecast.importance import Draws, importance_draws

EXPONENT = 0.25
"""Median, and spread of the logarithm, of an exponent in parameters or tokens: published fits lie between 0.2 and 0.6."""
SHARE = (0.0, 1.0)
"""Mean and spread of the logit of E as a share of the least loss."""
FALL = (0.048, 0.15)
"""Median, and spread of the logarithm, of the share of the loss that a factor e of compute takes away at the least loss seen."""
STARVED = ((1.0, 0.35), (-3.0, 2.0))
"""Of a term that dies out fast along the last axis (too few steps: warm-up, momentum): median and spread of the logarithm of its
exponent; mean and spread of its logarithm beside the other terms, in the middle."""
BALANCE = 1.0
"""Spread of the logarithm of the ratio of two terms of the law."""
NOISE = (0.003, 1.0)
"""Median, and spread of the logarithm, of what is left of a run, relative to its loss."""
LAW_BUMPS = (0.004, 0.5)
"""Likewise of the law's own error within what was measured."""
KNOB_BUMPS = (0.002, 1.0)
"""Likewise of what is no bowl in the knobs."""
BOWL = (0.01, 1.0)
"""Likewise of the loss of one spread of a knob off its best value."""
BEYOND = 0.02
"""The law's error for each factor e that an axis is carried beyond what was measured, relative to the loss."""
AGED = 0.7
"""Noise grows by so much for each factor e that a run is cheaper than the dearest: a law holds best near by."""
FAR_OFF = 0.03
"""Runs this much above the best at their scale are far up the bowl's walls, where it is none: they count for half, worse ones for less."""
BEHIND = 0.05
"""Likewise of runs behind the best of all that cost no more: what is starved of tokens or parameters follows laws of its own."""
TAIL = 4.0
"""Degrees of freedom of the noise: single runs that fit nothing are discounted."""
CLIP = 0.5
"""Knobs farther outside what was seen than this, in spreads, count as if they were there: no bowl holds far away."""
CELL = 4.0
"""Variance of what runs of one scale have in common, beside that of a single run: the law's error is not that of the bowl."""
SPACING = 2.5
"""Length over which the law's error changes, in factors of e."""


@dataclass(frozen=True)
class Points:
    """Where a loss was measured or is wanted."""

    scales: np.ndarray
    """(n, axes): natural logarithms, of parameters and tokens for instance."""
    knobs: np.ndarray
    """(n, knobs): logarithms where the knob is one of scale, plain numbers, or indicators."""


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
class _Frame:
    """From a person's coordinates to those of the model."""

    middle: np.ndarray  # (axes,)
    edges: tuple[np.ndarray, np.ndarray]  # least and greatest of each axis
    spread: np.ndarray  # (knobs,)
    curved: np.ndarray  # (knobs,) bool
    known: np.ndarray  # (knobs,) bool: a published law gave the optimum
    law: Centre  # of the raw knobs
    centre: Centre  # of the scaled ones, apart from `law`
    seen: tuple[np.ndarray, np.ndarray] | None = (
        None  # least and greatest scaled knob, relative to the centre, and something more
    )

    def scales(self, points: Points) -> np.ndarray:
        relative: np.ndarray = points.scales - self.middle
        return relative

    def knobs(self, points: Points) -> np.ndarray:
        raw = (points.knobs - self.law.at(points.scales)) / self.spread
        relative: np.ndarray = raw - self.centre.at(self.scales(points))
        return np.clip(relative, *self.seen) if self.seen else relative


@dataclass(frozen=True)
class Surface:
    """The fitted model."""

    frame: _Frame
    law_bumps: Bumps
    knob_bumps: Bumps | None
    draws: Draws
    posterior: "_Linear"

    def sample(self, points: Points, count: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Joint draws of what is true of `points` and of what one run of each would show, each shape (count, n)."""
        chance = np.random.default_rng(seed)
        chosen = np.sort(chance.choice(len(self.draws.weights), count, p=self.draws.weights))
        parameters = self.posterior.model.unpack(self.draws.points)
        x = self.features(points)
        beyond = _beyond(self.frame, points)
        _, cell = np.unique(np.round(points.scales, 6), axis=0, return_inverse=True)
        together = CELL**0.5 * chance.standard_normal((count, cell.max() + 1))[:, cell.ravel()]
        truth = np.empty((count, len(points.scales)))
        spread = np.empty(count)
        for which in np.unique(chosen):
            rows = chosen == which
            mean, root = self.posterior.coefficients(which)
            coefficients = mean[:, None] + root @ chance.standard_normal((len(mean), rows.sum()))
            factor = parameters.factor[which]
            errors = BEYOND * factor * chance.standard_normal((rows.sum(), beyond.shape[1])) @ beyond.T
            level = parameters.law(self.frame.scales(points), which)
            truth[rows] = parameters.floor[which] + np.exp(
                level + (x @ coefficients).T + errors + together[rows] * parameters.noise[which] * factor
            )
            spread[rows] = parameters.noise[which]
        noise = chance.standard_normal(truth.shape) * spread[:, None] * truth
        return truth, truth + noise

    def features(self, points: Points) -> np.ndarray:
        """The regressors of `points`, shape (n, features)."""
        return _regressors(self.frame, self.law_bumps, self.knob_bumps, points)


def fit_surface(points: Points, loss: np.ndarray, curved: np.ndarray, prior: Prior) -> Surface:
    """Fit the model.

    Args:
        points: of the runs.
        loss: (n,), positive.
        curved: (knobs,), true where a knob is a number and has a best value, false for indicators.
        prior: what is known beforehand.
    """
    noise = _Noise.of(points.scales, loss)
    frame = _frame(points, loss, noise, curved, prior)
    law_bumps = Bumps.over(frame.scales(points), SPACING, 24)
    knob_bumps = Bumps.over(frame.knobs(points)[noise.weights > 0.05], 1.5, 24) if curved.any() else None
    x = _regressors(frame, law_bumps, knob_bumps, points)
    model = _Model(frame, prior, loss, noise, frame.scales(points), x, knob_bumps.root.shape[1] if knob_bumps else 0)
    for _ in range(2):
        draws = importance_draws(model.log_density, model.dimensions)
        left, sigma = model.residual(draws.weights @ draws.points)
        model = replace(model, errors=noise.discounted(left / sigma))
    draws = importance_draws(model.log_density, model.dimensions)
    return Surface(frame, law_bumps, knob_bumps, draws, _Linear(model, draws.points))


@dataclass(frozen=True)
class _Noise:
    """How far single runs, and all runs of one scale together, may be off: their covariance, apart from its size."""

    cell: np.ndarray  # (n,) of runs of one scale
    weights: np.ndarray  # (n,) inverse variance of what is a run's own
    shared: np.ndarray  # (cells,) variance of what the runs of a scale have in common

    @staticmethod
    def of(scales: np.ndarray, loss: np.ndarray) -> "_Noise":
        _, first, cell = np.unique(np.round(scales, 6), axis=0, return_index=True, return_inverse=True)
        cell = cell.ravel()
        best = np.full(len(first), np.inf)
        np.minimum.at(best, cell, loss)
        total = scales[first].sum(axis=1)
        behind = best / _best_for_less(total, best) - 1
        shared = CELL * (1 + AGED * (total.max() - total)) ** 2 * (1 + (behind / BEHIND) ** 4)
        return _Noise(cell, 1 / (1 + ((loss / best[cell] - 1) / FAR_OFF) ** 2), shared)

    def within(self, values: np.ndarray) -> np.ndarray:
        """Sums over the runs of each scale, weighted: (n, m) -> (cells, m)."""
        order = np.argsort(self.cell, kind="stable")
        starts = np.searchsorted(self.cell[order], np.arange(len(self.shared)))
        sums: np.ndarray = np.add.reduceat((values * self.weights[:, None])[order], starts, axis=0)
        return sums

    def common(self, values: np.ndarray) -> np.ndarray:
        """What the runs of each scale are expected to have in common, given what all of them show: (n, m) -> (cells, m)."""
        gain = self.shared / (1 + self.shared * np.bincount(self.cell, self.weights))
        expected: np.ndarray = gain[:, None] * self.within(values)
        return expected

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """The inverse covariance times (n, m)."""
        product: np.ndarray = self.weights[:, None] * (values - self.common(values)[self.cell])
        return product

    def discounted(self, left: np.ndarray) -> "_Noise":
        """The same with less weight to what is far off: `left` (n,) in standard deviations of a run."""
        common = self.common(left[:, None])[:, 0]
        own = (left - common[self.cell]) ** 2 * self.weights
        weights = self.weights * (TAIL + 1) / (TAIL + own)
        return _Noise(self.cell, weights, self.shared * (TAIL + common**2 / self.shared) / (TAIL + 1))


def _best_for_less(total: np.ndarray, loss: np.ndarray) -> np.ndarray:
    order = np.argsort(total, kind="stable")
    least = np.empty(len(loss))
    least[order] = np.minimum.accumulate(loss[order])
    return least


def _frame(points: Points, loss: np.ndarray, noise: _Noise, curved: np.ndarray, prior: Prior) -> _Frame:
    axes, count = points.scales.shape[1], points.knobs.shape[1]
    nothing = Centre(np.zeros(count), np.zeros((count, axes)))
    known = np.isfinite(prior.optimum.offset) if prior.optimum else np.zeros(count, dtype=bool)
    law = nothing
    if prior.optimum:
        law = Centre(np.where(known, prior.optimum.offset, 0), np.where(known[:, None], prior.optimum.drift, 0))
    middle = points.scales.mean(axis=0)
    edges = (points.scales.min(axis=0), points.scales.max(axis=0))
    spread = np.where(curved, points.knobs.std(axis=0), 1.0)
    frame = _Frame(middle, edges, spread, curved, known, law, nothing)
    found = find_centre(frame.knobs(points), frame.scales(points), loss, noise.inverse, curved)
    kept = Centre(np.where(known, 0, found.offset), np.where(known[:, None], 0, found.drift))
    frame = replace(frame, centre=kept)
    knobs = frame.knobs(points)
    return replace(frame, seen=(knobs.min(axis=0) - CLIP, knobs.max(axis=0) + CLIP)) if count else frame


def _regressors(frame: _Frame, law_bumps: Bumps, knob_bumps: Bumps | None, points: Points) -> np.ndarray:
    scales, knobs = frame.scales(points), frame.knobs(points)
    parts = [np.ones((len(scales), 1)), bowl(knobs, scales, frame.curved), law_bumps.at(scales)]
    if knob_bumps:
        parts.append(knob_bumps.at(knobs))
    return np.concatenate(parts, axis=1)


def _beyond(frame: _Frame, points: Points) -> np.ndarray:
    low, high = frame.edges
    above = np.maximum(points.scales - high, 0)
    return np.concatenate([above, np.maximum(low - points.scales, 0)], axis=1)


@dataclass(frozen=True)
class _Parameters:
    """The few that the model is not linear in, each for n draws."""

    floor: np.ndarray  # (n,) E
    exponents: np.ndarray  # (n, axes)
    balance: np.ndarray  # (n, axes) logarithm of each term at the middle
    starved: np.ndarray  # (n, 2) logarithm of that term at the middle, and its exponent
    noise: np.ndarray  # (n,), relative to the loss
    law_bumps: np.ndarray  # (n,)
    knob_bumps: np.ndarray  # (n,)
    bowl: np.ndarray  # (n,)
    factor: np.ndarray  # (n,) from errors relative to the loss to errors of log(loss - E)

    def law(self, scales: np.ndarray, which: int | slice = slice(None)) -> np.ndarray:
        """Logarithm of the sum of the law's terms, shape (n, scales) or (scales,)."""
        terms = self.balance[which][..., None, :] - self.exponents[which][..., None, :] * scales
        starved = self.starved[which][..., None, 0] - self.starved[which][..., None, 1] * scales[:, -1]
        total: np.ndarray = np.logaddexp(np.logaddexp.reduce(terms, axis=-1), starved)
        return total


@dataclass(frozen=True)
class _Model:
    """The data, and the density of the parameters given them."""

    frame: _Frame
    prior: Prior
    loss: np.ndarray
    errors: _Noise
    scales: np.ndarray
    x: np.ndarray
    knob_nodes: int

    @property
    def dimensions(self) -> int:
        """Of the parameters: E, exponents, balances but one, noise, two kinds of bumps, bowl."""
        return 2 * self.scales.shape[1] + 6

    def unpack(self, z: np.ndarray) -> _Parameters:
        """From parameters with a standard normal prior, (n, dimensions)."""
        axes = self.scales.shape[1]
        least = float(self.loss.min())
        floor = 0.995 * least / (1 + np.exp(-(SHARE[0] + SHARE[1] * z[:, 0])))
        exponents = np.array(self.prior.exponents) * np.exp(EXPONENT * z[:, 1 : 1 + axes])
        balance = exponents * (np.array(self.prior.balance) - self.frame.middle)
        balance[:, 1:] += BALANCE * z[:, 1 + axes : 2 * axes]
        spreads = [
            median * np.exp(width * z[:, 2 * axes + i])
            for i, (median, width) in enumerate((NOISE, LAW_BUMPS, KNOB_BUMPS, BOWL))
        ]
        typical = float(np.exp(np.average(np.log(self.loss), weights=1 / self.errors.shared[self.errors.cell])))
        starved = np.stack(
            [
                np.logaddexp.reduce(balance, axis=1) + STARVED[1][0] + STARVED[1][1] * z[:, 2 * axes + 4],
                STARVED[0][0] * np.exp(STARVED[0][1] * z[:, 2 * axes + 5]),
            ],
            axis=1,
        )
        return _Parameters(floor, exponents, balance, starved, *spreads, factor=typical / (typical - floor))

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Logarithm of prior times likelihood, up to a constant, (n,)."""
        parameters = self.unpack(z)
        solved = _solve(self, parameters)
        fall = (1 - parameters.floor / float(self.loss.min())) / (1 / parameters.exponents).sum(axis=1)
        unusual = np.log(fall / FALL[0]) / FALL[1]
        return solved.evidence - 0.5 * (z**2).sum(axis=1) - 0.5 * unusual**2

    def residual(self, z: np.ndarray) -> tuple[np.ndarray, float]:
        """What the surface at one z leaves of each run, and the standard deviation of a run's own noise."""
        parameters = self.unpack(z[None])
        left = _responses(self, parameters)[:, 0] - self.x @ _solve(self, parameters).means[0]
        return left, float(parameters.noise[0] * parameters.factor[0])

    @cached_property
    def weighted(self) -> np.ndarray:
        """The inverse covariance of the runs times their features, (n, features)."""
        return self.errors.inverse(self.x)

    @cached_property
    def gram(self) -> np.ndarray:
        """(features, features)."""
        total: np.ndarray = self.weighted.T @ self.x
        return total


@dataclass(frozen=True)
class _Solved:
    evidence: np.ndarray  # (n,)
    means: np.ndarray  # (n, features)
    precision: np.ndarray  # (n, features, features)


@dataclass(frozen=True)
class _Linear:
    """Coefficients for every draw of the parameters, made when wanted."""

    model: _Model
    points: np.ndarray

    def coefficients(self, which: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean (features,) and a root of the covariance (features, features)."""
        solved = _solve(self.model, self.model.unpack(self.points[which : which + 1]))
        lower = np.linalg.cholesky(solved.precision[0])
        return solved.means[0], np.linalg.inv(lower).T


def _responses(model: _Model, parameters: _Parameters) -> np.ndarray:
    above = np.log(np.maximum(model.loss[:, None] - parameters.floor, 1e-9))
    y: np.ndarray = above - parameters.law(model.scales).T
    return y


def _prior_of_coefficients(model: _Model, parameters: _Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Means and spreads, each (n, features)."""
    frame, axes = model.frame, model.scales.shape[1]
    curved, count = frame.curved, len(frame.curved)
    one = np.where(curved, 0.5, 3.0)
    drift = np.where(curved, 0.2, 0.5)
    one = np.where(frame.known, 2 * 0.15 / frame.spread, one)
    drift = np.where(frame.known, 2 * 0.03 / frame.spread, drift)
    sizes = blocks(curved, axes)
    rest = np.repeat([0.7, 0.5, 0.15], sizes[2:])
    in_bowl = np.concatenate([one, np.repeat(drift, axes), rest])
    mean_bowl = np.concatenate([np.zeros(count * (1 + axes)), np.ones(sizes[2]), np.zeros(sum(sizes[3:]))])
    scale = (parameters.bowl * parameters.factor)[:, None]
    bumps = model.x.shape[1] - 1 - len(in_bowl) - model.knob_nodes
    spreads = np.concatenate(
        [
            np.full((len(scale), 1), 5.0),
            scale * in_bowl,
            np.repeat((parameters.law_bumps * parameters.factor)[:, None], bumps, axis=1),
            np.repeat((parameters.knob_bumps * parameters.factor)[:, None], model.knob_nodes, axis=1),
        ],
        axis=1,
    )
    means = np.zeros_like(spreads)
    means[:, 1 : 1 + len(in_bowl)] = scale * mean_bowl
    return means, spreads


def _solve(model: _Model, parameters: _Parameters) -> _Solved:
    """The linear model for every draw of the parameters: coefficients, and the marginal likelihood of the losses."""
    means, spreads = _prior_of_coefficients(model, parameters)
    y = _responses(model, parameters)
    noise = (parameters.noise * parameters.factor)[:, None]
    seen = (model.weighted.T @ y).T
    right = seen - means @ model.gram  # of what the prior mean leaves
    square = (y * model.errors.inverse(y)).sum(0) - 2 * (means * seen).sum(1) + ((means @ model.gram) * means).sum(1)
    pull = right / noise**2
    precision = model.gram / noise[..., None] ** 2 + np.eye(len(model.gram)) * (spreads**-2.0)[:, None, :]
    shift = np.linalg.solve(precision, pull[..., None])[..., 0]
    determinant = np.linalg.slogdet(precision)[1] + 2 * np.log(spreads).sum(1)
    evidence = -0.5 * (square / noise[:, 0] ** 2 - (pull * shift).sum(1) + determinant)
    evidence -= len(y) * np.log(noise[:, 0]) + np.log(np.maximum(model.loss[:, None] - parameters.floor, 1e-9)).sum(0)
    return _Solved(evidence, means + shift, precision)
