"""The density of the surface's parameters given the runs: a few that are sampled, and given those a linear model."""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from budgetlm.forecast.coordinates import Frame
from budgetlm.forecast.errors import Errors, inverse
from budgetlm.forecast.features import blocks
from budgetlm.forecast.points import Prior

EXPONENT = 0.25
"""Spread of the logarithm of an exponent of the law."""
SHARE = (0.0, 1.0)
"""Mean and spread of the logit of E as a share of the least loss."""
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
BOWL = 1.0
"""Spread of the logarithm of the loss of one spread of a knob off its best value."""
OPTIMUM, DRIFT = 0.15, 0.03
"""How far a published law may be off: in the logarithm of the best knob, and in its exponents."""
MOST_ROWS = 1200
"""Runs that the nonlinear parameters are sampled from; the linear ones know all."""
FARTHEST = 8.0
"""Parameters this many of their prior's standard deviations away are impossible: so far out, digits are lost."""


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
    ratios: np.ndarray  # (n, effects) size of what the runs of a group have in common, beside the noise

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
    _solved: "list[tuple[np.ndarray, Parameters, Solved]]" = field(default_factory=list, repr=False, compare=False)

    @property
    def dimensions(self) -> int:
        """Of the parameters: E, exponents, balances but one, noise, two kinds of bumps, bowl, two of the starved, ratios."""
        return 2 * int(self.scales.shape[1]) + 6 + sum(width > 0 for _, width in self.prior.shared)

    def thinned(self) -> "Model":
        """That of at most `MOST_ROWS` runs, spread evenly over scale: enough for the few parameters that have to be sampled."""
        if len(self.loss) <= MOST_ROWS:
            return self
        order = np.argsort(self.scales.sum(axis=1), kind="stable")
        rows = np.sort(order[np.linspace(0, len(order) - 1, MOST_ROWS).astype(int)])
        return replace(
            self,
            loss=self.loss[rows],
            errors=self.errors.of_rows(rows),
            scales=self.scales[rows],
            x=self.x[rows],
            _solved=[],
        )

    def unpack(self, z: np.ndarray) -> Parameters:
        """From parameters with a standard normal prior, (n, dimensions)."""
        axes = self.scales.shape[1]
        floor = 0.995 * self.least / (1 + np.exp(-(SHARE[0] + SHARE[1] * z[:, 0])))
        exponents = np.array(self.prior.exponents) * np.exp(EXPONENT * z[:, 1 : 1 + axes])
        balance = exponents * (np.array(self.prior.balance) - self.frame.middle)
        balance[:, 1:] += BALANCE * z[:, 1 + axes : 2 * axes]
        sizes = (NOISE, LAW_BUMPS, KNOB_BUMPS, (self.prior.depth, BOWL))
        noise, law_bumps, knob_bumps, bowl = (m * np.exp(w * z[:, 2 * axes + i]) for i, (m, w) in enumerate(sizes))
        starved = np.stack(
            [
                np.logaddexp.reduce(balance, axis=1) + STARVED[1][0] + STARVED[1][1] * z[:, 2 * axes + 4],
                STARVED[0][0] * np.exp(STARVED[0][1] * z[:, 2 * axes + 5]),
            ],
            axis=1,
        )
        factor = self.typical / (self.typical - floor)
        median, width = np.array(self.prior.shared).T
        ratios = np.tile(median, (len(z), 1))
        ratios[:, width > 0] *= np.exp(width[width > 0] * z[:, 2 * axes + 6 :])
        return Parameters(floor, exponents, balance, starved, factor, noise, law_bumps, knob_bumps, bowl, ratios)

    def at(self, z: np.ndarray) -> "tuple[Parameters, Solved]":
        """The parameters of draws, and the linear model for them. Kept for those that were asked for last: a fit asks how likely they are, and then what they foretell."""
        if not (self._solved and self._solved[0][0] is z):
            parameters = self.unpack(np.clip(z, -FARTHEST, FARTHEST))
            self._solved[:] = [(z, parameters, solve(self, parameters))]
        return self._solved[0][1:]

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Logarithm of prior times likelihood, up to a constant, (n,)."""
        parameters, solved = self.at(z)
        density: np.ndarray = solved.evidence - 0.5 * (z**2).sum(axis=1)
        if self.prior.floor:
            density -= 0.5 * ((parameters.floor - self.prior.floor[0]) / self.prior.floor[1]) ** 2
        if self.prior.fall:
            fall = (1 - parameters.floor / self.least) / (1 / parameters.exponents).sum(axis=1)
            density -= 0.5 * (np.log(fall / self.prior.fall[0]) / self.prior.fall[1]) ** 2
        density[np.abs(z).max(axis=1) > FARTHEST] = -np.inf
        return density

    def discounted(self, z: np.ndarray) -> "Model":
        """The same with less weight to the runs that the surface at z (dimensions,) is far from."""
        parameters = self.unpack(z[None])
        left = _responses(self, parameters)[:, 0] - self.x @ solve(self, parameters).means[0]
        sigma = float(parameters.noise[0] * parameters.factor[0])
        return replace(self, errors=self.errors.discounted(left / sigma, parameters.ratios[0]), _solved=[])

    @cached_property
    def gram(self) -> np.ndarray:
        """Weighted sums of products of the features, (features, features)."""
        total: np.ndarray = self.x.T @ (self.errors.weights[:, None] * self.x)
        return total

    @cached_property
    def shared(self) -> np.ndarray:
        """Weighted sums of the shared regressors times the features, (groups, effects, features)."""
        return self.errors.within(self.x)

    @cached_property
    def lone(self) -> np.ndarray:
        """Which kinds of groups are of a single run each, so that their effects come to one number, (kinds,)."""
        kinds, kind = self.errors.kinds
        lone = np.ones(len(kinds), dtype=bool)
        lone[kind[np.bincount(self.errors.group) > 1]] = False
        return lone

    @cached_property
    def pairs(self) -> np.ndarray:
        """Sums over the groups of a kind of products of features, (rows, pairs of features), each pair once, for what is made of them is symmetric.

        First a row for each lone kind; then for each other kind a row for each pair of effects.
        """
        kind, (one, other) = self.errors.kinds[1], half(self.x.shape[1])
        lone = self.lone[kind]
        run = np.empty(self.errors.groups, dtype=int)
        run[self.errors.group] = np.arange(len(self.loss))
        rows = [_summed(self.x[run[lone]][:, one] * self.x[run[lone]][:, other], kind[lone])]
        sums = []
        for r, s in zip(*half(self.shared.shape[1]), strict=True):
            first, second = self.shared[~lone, r], self.shared[~lone, s]
            products = first[:, one] * second[:, other]
            if r != s:
                products += second[:, one] * first[:, other]
            sums.append(_summed(products, kind[~lone]))
        return np.concatenate([*rows, np.stack(sums, axis=1).reshape(-1, len(one))])

    def lent(self, effects: np.ndarray) -> np.ndarray:
        """What of the features' products the groups' effects explain away, (draws, features, features).

        Args:
            effects: (draws, kinds, effects, effects), as of `Solved`.
        """
        size, (r, s), kind = len(self.gram), half(self.shared.shape[1]), self.errors.kinds[1]
        place, (one, other) = np.empty((size, size), dtype=int), half(size)
        place[one, other] = place[other, one] = np.arange(len(one))
        which = np.empty(len(self.lone), dtype=int)
        which[kind[self.errors.group]] = np.arange(len(self.loss))  # a run of each kind
        runs = which[self.lone]
        common = self.errors.weights[runs, None] * self.errors.shared[runs]
        amounts = np.einsum("dkrs,kr,ks->dk", effects[:, self.lone], common, common, optimize=True)
        others = effects[:, ~self.lone][..., r, s].reshape(len(effects), -1)
        lent: np.ndarray = np.take(np.concatenate([amounts, others], axis=1) @ self.pairs, place, axis=1)
        return lent


def _summed(rows: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Sums of the rows of each kind, in the order of the kinds."""
    order = np.argsort(kind, kind="stable")
    starts = np.flatnonzero(np.diff(kind[order], prepend=-1))
    summed: np.ndarray = rows[order] if len(starts) == len(order) else np.add.reduceat(rows[order], starts, axis=0)
    return summed


@dataclass(frozen=True)
class Solved:
    """The linear model for some draws of the parameters."""

    evidence: np.ndarray
    """Logarithm of the marginal likelihood of the losses, (n,)."""
    precision: np.ndarray
    """Of the coefficients, (n, features, features)."""
    expected: np.ndarray
    """Their prior means, (n, features)."""
    pull: np.ndarray
    """What of the losses these do not explain, in the coefficients' measure, (n, features)."""
    effects: np.ndarray
    """Covariance of a group's effects given the features', in units of the noise's, of each kind of groups, (n, kinds, effects, effects)."""
    seen: np.ndarray
    """Weighted sums of the shared regressors times the responses, (n, groups, effects)."""

    @cached_property
    def means(self) -> np.ndarray:
        """Of the coefficients, (n, features)."""
        means: np.ndarray = self.expected + np.linalg.solve(self.precision, self.pull[..., None])[..., 0]
        return means


def _responses(model: Model, parameters: Parameters) -> np.ndarray:
    above = np.log(np.maximum(model.loss[:, None] - parameters.floor, 1e-9))
    y: np.ndarray = above - parameters.law(model.scales).T
    return y


def prior_of_coefficients(model: Model, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Means and spreads, each (n, features)."""
    frame, axes, prior = model.frame, model.scales.shape[1], model.prior
    curved, count = frame.curved, len(frame.curved)
    one = np.where(curved, prior.slope, prior.indicator)
    drift = np.where(curved, prior.drift, 0.5)
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


def solve(model: Model, parameters: Parameters) -> Solved:
    """The linear model for every draw of the parameters: coefficients, and the marginal likelihood of the losses."""
    errors, (means, spreads) = model.errors, prior_of_coefficients(model, parameters)
    y = _responses(model, parameters)
    weighted = errors.weights[:, None] * y
    noise = (parameters.noise * parameters.factor)[:, None]
    small = parameters.ratios**-2.0
    squares, kind = errors.kinds
    effects = inverse(squares + (small[:, :, None] * np.eye(small.shape[1]))[:, None])
    together = errors.within(y).transpose(2, 0, 1)
    gram, seen = model.gram - model.lent(effects), (model.x.T @ weighted).T
    expected = np.einsum("dgrs,dgs->dgr", effects[:, kind], together)
    seen = seen - expected.reshape(len(seen), -1) @ model.shared.reshape(-1, seen.shape[1])
    square = (y * weighted).sum(axis=0) - (expected * together).sum(axis=(1, 2))
    through = np.einsum("de,def->df", means, gram)
    right = seen - through  # of what the prior mean leaves
    square = square - 2 * (means * seen).sum(1) + (through * means).sum(1)
    pull = right / noise**2
    precision = gram / noise[..., None] ** 2
    np.einsum("dff->df", precision)[...] += spreads**-2.0
    determinant, explained = _determined(precision, pull)
    determinant = determinant + 2 * np.log(spreads).sum(1)
    determinant = determinant - _log_determinant(effects) @ np.bincount(kind) - errors.groups * np.log(small).sum(axis=1)
    evidence = -0.5 * (square / noise[:, 0] ** 2 - explained + determinant)
    evidence -= len(y) * np.log(noise[:, 0]) + np.log(np.maximum(model.loss[:, None] - parameters.floor, 1e-9)).sum(0)
    return Solved(evidence, precision, means, pull, effects, together)


def _determined(precision: np.ndarray, pull: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each matrix the logarithm of its determinant, and pull' · precision^-1 · pull.

    One Cholesky factor has both: of the matrix bordered by `pull`, for its last row is what `pull` becomes when the factor is taken off it.
    """
    size = pull.shape[1]
    bordered = np.empty((len(pull), size + 1, size + 1))
    bordered[:, :size, :size], bordered[:, size, :size] = precision, pull
    bordered[:, size, size] = np.finfo(float).max  # large enough for any pull; only the corner of the factor knows it
    try:
        root = np.linalg.cholesky(bordered)
    except np.linalg.LinAlgError:
        return _determined_one_by_one(precision, pull)
    determinant: np.ndarray = 2 * np.log(np.einsum("dff->df", root)[:, :size]).sum(axis=1)
    return determinant, (root[:, size, :size] ** 2).sum(axis=1)


def _determined_one_by_one(precision: np.ndarray, pull: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same where rounding has left one of them not quite positive. What is singular as far as numbers go has an infinite determinant: it is not believed at all."""
    determinant, explained = np.full(len(pull), np.inf), np.zeros(len(pull))
    for number in np.flatnonzero(np.isfinite(precision).all(axis=(1, 2))):
        with suppress(np.linalg.LinAlgError):
            explained[number] = pull[number] @ np.linalg.solve(precision[number], pull[number])
            determinant[number] = np.linalg.slogdet(precision[number])[1]
    return determinant, explained


def half(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a symmetric matrix's elements, each of which it has once."""
    return np.triu_indices(size)


def _log_determinant(matrices: np.ndarray) -> np.ndarray:
    if matrices.shape[-1] == 1:
        determinant = matrices[..., 0, 0]
    elif matrices.shape[-1] == 2:
        determinant = matrices[..., 0, 0] * matrices[..., 1, 1] - matrices[..., 0, 1] ** 2
    else:
        determinant = np.linalg.det(matrices)
    return np.asarray(np.log(determinant))
