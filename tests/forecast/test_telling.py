"""What a run would tell of the choice at a target."""

import numpy as np
import pytest

from budgetlm.forecast.bowl import BowlFrame, fit_bowl
from budgetlm.forecast.points import Kinds
from budgetlm.forecast.telling import tells

TARGET = np.array([20.0, 24.0])
CHOICES = np.linspace(-2, 2, 9)[:, None]


@pytest.fixture
def bowl():
    """Of one knob, known well at one cheap scale, its drift unknown."""
    kinds = Kinds(np.array([True]), np.array([True]), np.array([""]))
    frame = BowlFrame.of(TARGET, np.zeros(1), np.ones(1), kinds)
    knobs = np.linspace(-2, 2, 12)[:, None]
    return fit_bowl(frame, np.tile(TARGET - 2, (12, 1)), knobs, 3 * np.exp(0.01 * (knobs[:, 0] - 0.3) ** 2), np.zeros(12))


def told(bowl, scales, knobs, cells):
    return tells(bowl, np.array(scales), np.array(knobs)[:, None], np.array(cells), CHOICES, np.random.default_rng(0))


def test_a_run_near_the_target_tells_more_than_one_more_of_a_scale_that_is_known(bowl):
    near, again = told(bowl, [TARGET - 0.5, TARGET - 2], [1.0, 1.0], [1, 0])
    assert near > 5 * again


def test_a_run_far_up_the_walls_tells_next_to_nothing(bowl):
    beside, far = told(bowl, [TARGET - 2, TARGET - 2], [0.8, 6.0], [0, 0])
    assert beside > 10 * far


def test_with_no_run_at_all_it_is_the_prior_that_doubts():
    frame = BowlFrame.of(TARGET, np.zeros(1), np.ones(1), Kinds(np.array([True]), np.array([True]), np.array(["batch"])))
    bowl = fit_bowl(frame, np.zeros((0, 2)), np.zeros((0, 1)), np.zeros(0), np.zeros(0, dtype=int))
    assert bowl.at_target(CHOICES).argmin() == 4
    scale = TARGET - [0, 1]
    assert bowl.centre.at(scale[None])[0, 0] == pytest.approx(-0.4, abs=0.01)
    at_best, beside = told(bowl, [scale, scale], [-0.4, 0.6], [0, 0])
    assert beside > at_best >= 0
