"""Finished runs -> a distribution of the loss at any scale and knobs: a Bayesian response surface on a scaling law.

The model, in words: above an irreducible part E, loss is a law of scale times a bowl in the knobs, both only nearly right,

    log(loss - E) = level + log sum_j exp(balance_j - exponent_j·s_j) + bowl(k - k0(s)) + bumps(s) + bumps(k - k0(s)) + beyond(s)
        + group + noise,

with group what runs have in common beside that (of a table those of one scale their level, of a study those of a trial a level and an exponent), s the logarithms of scale (parameters and tokens, or device-seconds), k the knobs and k0(s) their optimum, which drifts linearly with s.
Given E, exponents, balance and the spreads, all the rest is linear with Gaussian priors and solved in closed form; those few are
sampled by how well each explains the data. What is returned are joint draws, or for members of groups that were seen a mixture: the law's own error moves all candidates together, and
widens with the distance to what was measured. No published law is in the prior of the optimum unless one is given.
"""

from dataclasses import dataclass

import numpy as np

from budgetlm.forecast.coordinates import Frame, make_frame
from budgetlm.forecast.errors import Errors
from budgetlm.forecast.features import Bumps, bowl
from budgetlm.forecast.importance import Draws, importance_draws
from budgetlm.forecast.points import Kinds, Points, Prior
from budgetlm.forecast.posterior import Model, solve

DRAWS_AT_ONCE = 8
"""Of which a forecast's sums are made together."""
SPACING = 2.5
"""Length over which the law's error changes, in factors of e."""


@dataclass(frozen=True)
class Mixture:
    """What points would reach: shifted log-normals, one for each draw of the model's parameters."""

    weights: np.ndarray
    """Of the components, (components,), summing to 1."""
    floors: np.ndarray
    """E of each component, (components,)."""
    means: np.ndarray
    """Of log(loss - E), (components, n)."""
    spreads: np.ndarray
    """Standard deviations of the same for one run, the law's error beyond what was measured apart, (components, n)."""
    apart: np.ndarray
    """The part of them that is not the same for all points."""
    beyond: np.ndarray
    """Standard deviation of the law's error, (components, n)."""


@dataclass(frozen=True)
class Surface:
    """The fitted model."""

    frame: Frame
    law_bumps: Bumps
    knob_bumps: Bumps | None
    draws: Draws
    model: Model

    def sample(self, points: Points, count: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Joint draws of what is true of `points` and of what one run of each would show, each shape (count, n).

        The points are of groups of their own, those of one scale together.
        """
        chance = np.random.default_rng(seed)
        chosen = np.sort(chance.choice(len(self.draws.weights), count, p=self.draws.weights))
        x = self.features(points)
        beyond = _beyond(self.frame, points)
        _, cell = np.unique(np.round(points.scales, 6), axis=0, return_inverse=True)
        together = chance.standard_normal((count, cell.max() + 1))[:, cell.ravel()]
        truth = np.empty((count, len(points.scales)))
        spread = np.empty(count)
        for which in np.unique(chosen):
            rows = chosen == which
            parameters = self.model.unpack(self.draws.points[which : which + 1])
            solved = solve(self.model, parameters)
            root = np.linalg.inv(np.linalg.cholesky(solved.precision[0])).T
            coefficients = solved.means[0][:, None] + root @ chance.standard_normal((len(root), rows.sum()))
            factor, noise = parameters.factor[0], parameters.noise[0]
            errors = self.model.prior.beyond * factor * chance.standard_normal((rows.sum(), beyond.shape[1])) @ beyond.T
            level = parameters.law(self.frame.scales(points))[0]
            common = parameters.ratios[0, 0] * noise * factor * together[rows]
            truth[rows] = parameters.floor[0] + np.exp(level + (x @ coefficients).T + errors + common)
            spread[rows] = noise
        noise = chance.standard_normal(truth.shape) * spread[:, None] * truth
        return truth, truth + noise

    def mixture(self, points: Points, groups: np.ndarray, shared: np.ndarray, count: int = 128) -> Mixture:
        """What one run of each point would show, where points belong to groups that were seen.

        Args:
            points: n of them.
            groups: (n,), of each.
            shared: (n, effects), regressors of what it has in common with its group.
            count: components at most.
        """
        chosen = self.draws.sample(count)
        parameters, solved = self.model.at(chosen.points)
        covariance = np.linalg.inv(solved.precision)
        noise = (parameters.noise * parameters.factor)[:, None]
        x = self.features(points)
        gain = np.einsum("nr,dnrs->dns", shared, solved.effects[:, self.model.errors.kinds[1][groups]])
        seen = np.einsum("dns,dns->dn", gain, solved.seen[:, groups])
        told, unsure, to_middle = _told(x, gain, self.model.shared[groups], covariance, solved.means)
        means = parameters.law(self.frame.scales(points)) + seen + told
        own = (np.einsum("dns,ns->dn", gain, shared) + 1) * noise**2
        of_middle = to_middle.mean(axis=1, keepdims=True)
        spreads = np.sqrt(np.maximum(0, own + unsure))
        apart = np.sqrt(np.maximum(0, own + unsure - 2 * to_middle + of_middle))
        beyond = self.model.prior.beyond * parameters.factor[:, None] * np.linalg.norm(_beyond(self.frame, points), axis=1)
        return Mixture(chosen.weights, parameters.floor, means, spreads, apart, beyond)

    def features(self, points: Points) -> np.ndarray:
        """The regressors of `points`, shape (n, features)."""
        return _regressors(self.frame, self.law_bumps, self.knob_bumps, points)


def _told(
    x: np.ndarray, gain: np.ndarray, shared: np.ndarray, covariance: np.ndarray, means: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What coefficients tell of points, beyond what their groups have in common: mean, variance, and covariance with the mean point, each (draws, points).

    A few draws at a time, whose features stay in the processor's cache; all at once they would not.
    """
    found = np.empty((3, *gain.shape[:2]))
    for start in range(0, len(gain), DRAWS_AT_ONCE):
        some = slice(start, start + DRAWS_AT_ONCE)
        through = x - (gain[some].transpose(1, 0, 2) @ shared).transpose(1, 0, 2)
        weighed, middle = through @ covariance[some], through.mean(axis=1)
        found[0, some] = np.einsum("dnf,df->dn", through, means[some])
        found[1, some] = np.einsum("dnf,dnf->dn", weighed, through)
        found[2, some] = np.einsum("dnf,df->dn", weighed, middle)
    return found[0], found[1], found[2]


def fit_surface(
    points: Points,
    loss: np.ndarray,
    kinds: Kinds,
    prior: Prior,
    errors: Errors | None = None,
    around: Points | None = None,
    size: int = 512,
    sweeps: int = 0,
    like: Draws | None = None,
    kept: Draws | None = None,
) -> Surface:
    """Fit the model.

    Args:
        points: of the runs.
        loss: (n,), positive.
        kinds: of the knobs.
        prior: what is known beforehand.
        errors: which runs have something in common; those of one scale if None.
        around: what there is to choose from, whose middle is where the best knobs are looked for; the runs if None.
        size: of the sample of parameters: time against smoothness.
        sweeps: fits after the first, each with less weight to the runs that the one before was far from.
        like: draws of a fit to much the same runs, to begin with.
        kept: likewise, a few that are taken for those of this fit too, as long as they are likely enough.
    """
    errors = errors or Errors.of_scales(points.scales, loss)
    frame = make_frame(points, loss, errors.group, kinds, prior, around or points)
    law_bumps = Bumps.over(frame.scales(points), SPACING, 24)
    knob_bumps = (
        Bumps.over(frame.knobs(points)[errors.weights > 0.05 * errors.weights.max()], 1.5, 24)
        if kinds.curved.any()
        else None
    )
    x = _regressors(frame, law_bumps, knob_bumps, points)
    level = 1 / errors.shared[:, 0] ** 2 / np.bincount(errors.group)[errors.group]
    typical = float(np.exp(np.average(np.log(loss), weights=level)))
    nodes = knob_bumps.root.shape[1] if knob_bumps else 0
    model = Model(frame, prior, loss, errors, frame.scales(points), x, nodes, float(loss.min()), typical)
    density = model.thinned().log_density
    draws = (kept.carried(density) if kept else None) or importance_draws(density, model.dimensions, size, like)
    for _ in range(sweeps):
        model = model.discounted(draws.weights @ draws.points)
        draws = importance_draws(model.thinned().log_density, model.dimensions, size, draws)
    return Surface(frame, law_bumps, knob_bumps, draws, model)


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
