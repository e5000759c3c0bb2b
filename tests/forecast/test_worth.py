import math

import pytest

from budgetlm.forecast.fit import fit
from budgetlm.forecast.worth import gain_of_a_trial, gain_of_seconds, improvement
from tests.forecast.test_fit import ladder


def forecasts_of(levels):
    return fit([r for trial, level in enumerate(levels) for r in ladder(trial, level)[0]], 1000)


def test_what_a_trial_may_gain_falls_with_its_distance_from_the_leader():
    forecasts = forecasts_of([0.0, 0.02, 0.1, 0.5])
    gains = [improvement(forecasts[n], forecasts[0]) for n in (1, 2, 3)]
    assert gains[0].expected > gains[1].expected > gains[2].expected >= 0
    assert gains[0].probability > gains[1].probability > gains[2].probability


def test_the_expected_gain_of_a_known_improvement_is_its_size():
    forecasts = forecasts_of([0.0, 0.8])
    assert improvement(forecasts[0], forecasts[1]).expected == pytest.approx(forecasts[1].mean - forecasts[0].mean, rel=0.05)


def test_another_trial_is_worth_more_where_trials_differ_more():
    assert gain_of_a_trial(forecasts_of([0.0, 0.3, -0.3, 0.2])) > gain_of_a_trial(forecasts_of([0.0, 0.03, -0.03, 0.02])) > 0


def test_seconds_are_worth_the_slope_of_the_power_law():
    forecast = forecasts_of([0.0])[0]
    above = forecast.mean - float(forecast.weights @ forecast.floors)
    longer = above * (1 - math.pow(1.01, -0.2))
    assert gain_of_seconds(forecast, 10, 1000) == pytest.approx(longer, rel=0.02)
