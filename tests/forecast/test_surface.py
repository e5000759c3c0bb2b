import numpy as np
import pytest

from budgetlm.forecast.errors import Errors, inverse
from budgetlm.forecast.points import Kinds, Points, Prior
from budgetlm.forecast.posterior import prior_of_coefficients, solve
from budgetlm.forecast.surface import fit_surface

TRIALS = 12
PRIOR = Prior(exponents=(0.2,), balance=(0.0,), floor=(0.5, 0.1), fall=None, shared=((3.0, 1.0), (1.5, 1.0)), centred=False)


@pytest.fixture(scope="module")
def study():
    """Recipes with two knobs, each on one to three rungs: their points, losses, trials, and the surface fitted to them."""
    chance = np.random.default_rng(0)
    trial = np.repeat(np.arange(TRIALS), 1 + np.arange(TRIALS) % 3)
    u = np.log([0.25 ** (3 - np.sum(trial[:i] == t)) for i, t in enumerate(trial)])
    knobs = chance.standard_normal((TRIALS, 2))
    above = np.exp(0.1 * knobs[:, 0] + 0.05 * knobs[:, 1] ** 2 + 0.03 * chance.standard_normal(TRIALS))[trial]
    loss = 0.5 + above * np.exp(-0.2 * u + 0.01 * chance.standard_normal(len(u)))
    kinds = Kinds.plain(np.array([True, True]))
    errors = Errors.of_trials(trial, u)
    surface = fit_surface(Points(u[:, None], knobs[trial]), loss, kinds, PRIOR, errors, size=128)
    return knobs, trial, u, loss, errors, surface


def dense(model, parameters):
    """Covariance of the runs given the parameters, and what their responses are expected to be: one draw at a time."""
    means, spreads = prior_of_coefficients(model, parameters)
    scale = (parameters.noise[0] * parameters.factor[0]) ** 2
    same = model.errors.group[:, None] == model.errors.group
    common = same * ((model.errors.shared * parameters.ratios[0] ** 2) @ model.errors.shared.T)
    covariance = (model.x * spreads[0] ** 2) @ model.x.T + scale * (np.diag(1 / model.errors.weights) + common)
    response = np.log(model.loss - parameters.floor[0]) - parameters.law(model.scales)[0]
    return covariance, response - model.x @ means[0]


def test_the_evidence_is_that_of_the_stated_model_solved_densely(study):
    surface = study[-1]
    apart = []
    for z in surface.draws.points[:6]:
        parameters = surface.model.unpack(z[None])
        covariance, left = dense(surface.model, parameters)
        density = -0.5 * (left @ np.linalg.solve(covariance, left) + np.linalg.slogdet(covariance)[1])
        density -= np.log(surface.model.loss - parameters.floor[0]).sum()  # it is of the loss, not of its logarithm
        apart.append(solve(surface.model, parameters).evidence[0] - density)
    assert apart == pytest.approx([apart[0]] * 6, abs=1e-4)


def test_what_a_trial_would_reach_is_that_of_the_stated_model_solved_densely(study):
    knobs, _, _, _, _, surface = study
    model, wanted = surface.model, Points(np.zeros((TRIALS, 1)), knobs)
    level = np.tile([1.0, 0.0], (TRIALS, 1))
    mixture = surface.mixture(wanted, np.arange(TRIALS), level, count=4)
    x = surface.features(wanted)
    for k, floor in enumerate(mixture.floors):
        which = next(i for i, z in enumerate(surface.draws.points) if surface.model.unpack(z[None]).floor[0] == floor)
        parameters = model.unpack(surface.draws.points[which : which + 1])
        covariance, left = dense(model, parameters)
        means, spreads = prior_of_coefficients(model, parameters)
        scale = (parameters.noise[0] * parameters.factor[0]) ** 2
        same = np.arange(TRIALS)[:, None] == model.errors.group
        across = (x * spreads[0] ** 2) @ model.x.T
        across += scale * same * ((level * parameters.ratios[0] ** 2) @ model.errors.shared.T)
        there = np.sum((x * spreads[0]) ** 2, axis=1) + scale * (1 + (level * parameters.ratios[0]) ** 2 @ np.ones(2))
        mean = parameters.law(surface.frame.scales(wanted))[0] + x @ means[0] + across @ np.linalg.solve(covariance, left)
        variance = there - np.sum(across * np.linalg.solve(covariance, across.T).T, axis=1)
        assert mixture.means[k] == pytest.approx(mean, abs=1e-4)
        assert mixture.spreads[k] ** 2 == pytest.approx(variance, rel=1e-2)


def test_small_matrices_are_inverted():
    chance = np.random.default_rng(0)
    for size in (1, 2, 3):
        root = chance.standard_normal((5, size, size))
        matrices = root @ root.transpose(0, 2, 1) + np.eye(size)
        assert inverse(matrices) @ matrices == pytest.approx(np.tile(np.eye(size), (5, 1, 1)), abs=1e-9)


def test_a_fit_that_begins_where_another_ended_says_the_same(study):
    knobs, trial, u, loss, errors, surface = study
    points = Points(u[:, None], knobs[trial])
    kinds = Kinds.plain(np.array([True, True]))
    cold, warm = (fit_surface(points, loss, kinds, PRIOR, errors, size=512, like=like) for like in (None, surface.draws))
    wanted, level = Points(np.zeros((TRIALS, 1)), knobs), np.tile([1.0, 0.0], (TRIALS, 1))
    one, other = (s.mixture(wanted, np.arange(TRIALS), level).means.mean(axis=0) for s in (cold, warm))
    assert one == pytest.approx(other, abs=0.05)
