"""The density of the surface's parameters given the runs: a few that are sampled, and given those a linear model."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from budgetlm.forecast.coordinates import Frame, Prior
from budgetlm.forecast.errors import Errors
from budgetlm.forecast.features import blocks

EXPONENT = 0.25
"""Median, and spread of the logarithm, of an exponent in parameters or tokens: published fits lie between 0.2 and 0.6."""
SHARE = (0.0, 1.0)
"""Mean and spread of the logit of E as a share of the least loss."""
FALL = (0.048, 0.25)
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
OPTIMUM, DRIFT = 0.15, 0.03
"""How far a published law may be off: in the logarithm of the best knob, and in its exponents."""
MOST_ROWS = 1200
"""Runs that the nonlinear parameters are sampled from; the linear ones know all."""


@dataclass(frozen=True)
class Parameters:
    """The few that the model is not linear in, each for n draws."""

    floor: np.ndarray  # (n,) E
    exponents: np.ndarray  # (n, axes)
    balance: np.ndarray  # (n, axes) logarithm of each term at the middle
    starved: np.ndarray  # (n, 2) logarithm of that term at the middle, and its exponent
    factor: np.ndarray  # (n,) from errors relative to the loss to errors of log(loss - E)
    noise: np.ndarray  # (n,), relative to the loss
    law_bumps: np.ndarray  # (n,)
    knob_bumps: np.ndarray  # (n,)
    bowl: np.ndarray  # (n,)

    def law(self, scales: np.ndarray, which: int | slice = slice(None)) -> np.ndarray:
        """Logarithm of the sum of the law's terms, shape (n, scales) or (scales,)."""
        terms = self.balance[which][..., None, :] - self.exponents[which][..., None, :] * scales
        starved = self.starved[which][..., None, 0] - self.starved[which][..., None, 1] * scales[:, -1]
        total: np.ndarray = np.logaddexp(np.logaddexp.reduce(terms, axis=-1), starved)
        return total


@dataclass(frozen=True)
class Model:
    """The data, and the density of the parameters given them."""

    frame: Frame
    prior: Prior
    loss: np.ndarray
    errors: Errors
    scales: np.ndarray
    x: np.ndarray
    knob_nodes: int
    least: float
    """The least loss seen, of which E is a share."""
    typical: float
    """A loss near the dearest runs: errors relative to it are carried over to log(loss - E)."""

    @property
    def dimensions(self) -> int:
        """Of the parameters: E, exponents, balances but one, noise, two kinds of bumps, bowl."""
        return 2 * int(self.scales.shape[1]) + 6

    def thinned(self) -> "Model":
        """That of at most `MOST_ROWS` runs, spread evenly over scale: enough for the few parameters that have to be sampled."""
        if len(self.loss) <= MOST_ROWS:
            return self
        order = np.argsort(self.scales.sum(axis=1), kind="stable")
        rows = np.sort(order[np.linspace(0, len(order) - 1, MOST_ROWS).astype(int)])
        return replace(
            self, loss=self.loss[rows], errors=self.errors.of_rows(rows), scales=self.scales[rows], x=self.x[rows]
        )

    def unpack(self, z: np.ndarray) -> Parameters:
        """From parameters with a standard normal prior, (n, dimensions)."""
        axes = self.scales.shape[1]
        floor = 0.995 * self.least / (1 + np.exp(-(SHARE[0] + SHARE[1] * z[:, 0])))
        exponents = np.array(self.prior.exponents) * np.exp(EXPONENT * z[:, 1 : 1 + axes])
        balance = exponents * (np.array(self.prior.balance) - self.frame.middle)
        balance[:, 1:] += BALANCE * z[:, 1 + axes : 2 * axes]
        spreads = [
            median * np.exp(width * z[:, 2 * axes + i])
            for i, (median, width) in enumerate((NOISE, LAW_BUMPS, KNOB_BUMPS, BOWL))
        ]
        starved = np.stack(
            [
                np.logaddexp.reduce(balance, axis=1) + STARVED[1][0] + STARVED[1][1] * z[:, 2 * axes + 4],
                STARVED[0][0] * np.exp(STARVED[0][1] * z[:, 2 * axes + 5]),
            ],
            axis=1,
        )
        factor = self.typical / (self.typical - floor)
        return Parameters(floor, exponents, balance, starved, factor, *spreads)

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Logarithm of prior times likelihood, up to a constant, (n,)."""
        parameters = self.unpack(z)
        solved = _solve(self, parameters)
        fall = (1 - parameters.floor / self.least) / (1 / parameters.exponents).sum(axis=1)
        unusual = np.log(fall / FALL[0]) / FALL[1]
        density: np.ndarray = solved.evidence - 0.5 * (z**2).sum(axis=1) - 0.5 * unusual**2
        return density

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
class Posterior:
    """Coefficients for every draw of the parameters, made when wanted."""

    model: Model
    points: np.ndarray

    def coefficients(self, which: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean (features,) and a root of the covariance (features, features)."""
        solved = _solve(self.model, self.model.unpack(self.points[which : which + 1]))
        lower = np.linalg.cholesky(solved.precision[0])
        return solved.means[0], np.linalg.inv(lower).T


def _responses(model: Model, parameters: Parameters) -> np.ndarray:
    above = np.log(np.maximum(model.loss[:, None] - parameters.floor, 1e-9))
    y: np.ndarray = above - parameters.law(model.scales).T
    return y


def _prior_of_coefficients(model: Model, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Means and spreads, each (n, features)."""
    frame, axes = model.frame, model.scales.shape[1]
    curved, count = frame.curved, len(frame.curved)
    one = np.where(curved, 0.5, 3.0)
    drift = np.where(curved, 0.2, 0.5)
    one = np.where(frame.known, 2 * OPTIMUM / frame.spread, one)
    drift = np.where(frame.known, 2 * DRIFT / frame.spread, drift)
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


def _solve(model: Model, parameters: Parameters) -> _Solved:
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
