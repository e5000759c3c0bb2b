"""Finished runs -> a distribution of the loss at any scale and knobs: a Bayesian response surface on a scaling law.

The model, in words: above an irreducible part E, loss is a law of scale times a bowl in the knobs, both only nearly right,

    log(loss - E) = level + log sum_j exp(balance_j - exponent_j·s_j) + bowl(k - k0(s)) + bumps(s) + bumps(k - k0(s)) + beyond(s) + noise,

with s the logarithms of scale (parameters and tokens, or device-seconds), k the knobs and k0(s) their optimum, which drifts linearly with s.
Given E, exponents, balance and the spreads, all the rest is linear with Gaussian priors and solved in closed form; those few are
sampled by how well each explains the data. So what is returned are joint draws: the law's own error moves all candidates together, and
widens with the distance to what was measured. No published law is in the prior of the optimum unless one is given.
"""

from dataclasses import dataclass, replace

import numpy as np

from budgetlm.forecast.coordinates import Frame, Points, Prior, make_frame
from budgetlm.forecast.errors import CELL, Errors
from budgetlm.forecast.features import Bumps, bowl
from budgetlm.forecast.importance import Draws, importance_draws
from budgetlm.forecast.posterior import Model, Posterior

BEYOND = 0.025
"""The law's error for each factor e that an axis is carried beyond what was measured, relative to the loss."""
SPACING = 2.5
"""Length over which the law's error changes, in factors of e."""


@dataclass(frozen=True)
class Surface:
    """The fitted model."""

    frame: Frame
    law_bumps: Bumps
    knob_bumps: Bumps | None
    draws: Draws
    posterior: "Posterior"

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
    noise = Errors.of(points.scales, loss)
    frame = make_frame(points, loss, noise, curved, prior)
    law_bumps = Bumps.over(frame.scales(points), SPACING, 24)
    knob_bumps = Bumps.over(frame.knobs(points)[noise.weights > 0.05], 1.5, 24) if curved.any() else None
    x = _regressors(frame, law_bumps, knob_bumps, points)
    typical = float(np.exp(np.average(np.log(loss), weights=1 / noise.shared[noise.cell])))
    nodes = knob_bumps.root.shape[1] if knob_bumps else 0
    model = Model(frame, prior, loss, noise, frame.scales(points), x, nodes, float(loss.min()), typical)
    draws = importance_draws(model.thinned().log_density, model.dimensions)
    for _ in range(2):
        left, sigma = model.residual(draws.weights @ draws.points)
        model = replace(model, errors=noise.discounted(left / sigma))
        draws = importance_draws(model.thinned().log_density, model.dimensions, like=draws)
    return Surface(frame, law_bumps, knob_bumps, draws, Posterior(model, draws.points))


def _regressors(frame: Frame, law_bumps: Bumps, knob_bumps: Bumps | None, points: Points) -> np.ndarray:
    scales, knobs = frame.scales(points), frame.knobs(points)
    parts = [np.ones((len(scales), 1)), bowl(knobs, scales, frame.curved), law_bumps.at(scales)]
    if knob_bumps:
        parts.append(knob_bumps.at(knobs))
    return np.concatenate(parts, axis=1)


def _beyond(frame: Frame, points: Points) -> np.ndarray:
    low, high = frame.edges
    above = np.maximum(points.scales - high, 0)
    return np.concatenate([above, np.maximum(low - points.scales, 0)], axis=1)
