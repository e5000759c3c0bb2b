import math
from dataclasses import replace

import numpy as np
import pytest

from budgetlm.forecast.fit import Forecaster, fit
from budgetlm.forecast.scales import scales_of
from budgetlm.records import OWN
from tests.conftest import record

TARGET = 1000.0
WHOLE = {"target_tokens": 1_000_000, "target_compute_parameters": 100_000}
# Seconds, tokens and parameters of a small machine's rungs: the lower ones are one and the same least shape.
STEPS = (
    (1000 / 256, 20_000, 20_000),
    (1000 / 64, 80_000, 20_000),
    (1000 / 16, 320_000, 20_000),
    (1000 / 4, 500_000, 50_000),
)


def law(tokens, parameters, level=0.0):
    """Bits per byte, the terms of tokens and parameters alike at the target."""
    return 0.5 + 0.35 * math.exp(level) * ((tokens / 1_000_000) ** -0.25 + (parameters / 100_000) ** -0.25)


def ladder(trial, steps=STEPS, level=0.0, **changes):
    return [
        record(
            trial,
            rung,
            seconds,
            law(tokens, parameters, level),
            TARGET,
            tokens=tokens,
            compute_parameters=parameters,
            **WHOLE,
            **changes,
        )
        for rung, (seconds, tokens, parameters) in enumerate(steps)
    ]


def times_as_many(runs, factor):
    """The same runs, had they and their targets read so many times as many tokens."""
    return [replace(r, tokens=factor * r.tokens, target_tokens=factor * r.target_tokens) for r in runs]


def test_runs_lie_by_how_much_smaller_than_the_recipe_itself_they_are():
    scales = scales_of(ladder(0), TARGET)
    assert np.exp(scales.of_runs[0]) == pytest.approx([20_000 / 100_000, 20_000 / 1_000_000])


def test_a_record_that_does_not_say_what_the_target_is_puts_all_on_the_axis_of_device_time():
    runs = [*ladder(0), record(1, 0, TARGET / 64, 2.0)]
    scales = scales_of(runs, TARGET)
    assert scales.axes == 1
    assert np.exp(scales.of_runs[:, 0]) == pytest.approx([1 / 256, 1 / 64, 1 / 16, 1 / 4, 1 / 64])


def test_runs_of_a_training_function_of_ones_own_go_by_device_time_whatever_they_say_of_tokens():
    assert scales_of(ladder(0, unit=OWN), TARGET).axes == 1


def test_the_way_to_the_target_goes_through_the_rungs_and_grows_evenly_beyond():
    scales = scales_of(ladder(0) + ladder(1), TARGET)
    rungs = np.log([seconds / TARGET for seconds, *_ in STEPS])
    assert scales.at(rungs) == pytest.approx(scales.of_runs[:4])
    assert scales.at(np.log([1.0, 4.0])) == pytest.approx(np.log([[1, 1], [2, 2]]))


def test_another_horizon_moves_the_target_by_as_much_along_both_axes():
    scales = scales_of(ladder(0), 4 * TARGET)
    assert np.exp(scales.of_runs[0]) == pytest.approx([20_000 / 200_000, 20_000 / 2_000_000])


def test_a_ladder_whose_lower_rungs_are_one_and_the_same_shape_is_forecast_more_surely_by_what_they_read_than_by_device_time():
    truth = law(1_000_000, 100_000)
    runs = times_as_many([run for trial in range(6) for run in ladder(trial, STEPS, 0.04 * trial)], 1000)
    unsaid = [run.__class__(**{**run.__dict__, "target_tokens": 0}) for run in runs]
    by_both, by_time = fit(runs, TARGET)[0], fit(unsaid, TARGET)[0]
    low, high = by_both.interval
    assert low < truth < high
    assert abs(by_both.mean - truth) < 0.005
    assert high - low < 0.85 * (by_time.interval[1] - by_time.interval[0])  # 0.71, whatever the draws


@pytest.mark.parametrize("unit", ["bits per byte", "error"])
@pytest.mark.parametrize("loss", [0.52, 0.7, 3.0, 40.0])
def test_a_single_run_is_forecast_at_something_like_itself(loss, unit):
    forecast = fit([record(0, 0, TARGET / 16, loss, unit=unit)], TARGET)[0]
    low, high = forecast.interval
    assert 0.2 * loss < low < forecast.mean < 1.2 * loss
    assert low < forecast.quantile(0.5) < high < 1.2 * loss


def test_a_study_that_goes_from_one_axis_to_two_is_fitted_anew():
    forecaster = Forecaster(TARGET)
    runs = [run for trial in range(3) for run in ladder(trial, level=0.05 * trial)]
    forecaster.fit([run.__class__(**{**run.__dict__, "target_tokens": 0}) for run in runs])
    assert forecaster.fit(runs)[0].mean == pytest.approx(fit(runs, TARGET)[0].mean, rel=0.01)


def test_the_law_of_small_runs_is_steeper_and_less_sure_and_goes_over_into_that_of_large_ones():
    runs = [run for trial in range(4) for run in ladder(trial, STEPS[:2], 0.05 * trial)]
    small, between, large, larger = (fit(times_as_many(runs, factor), TARGET)[0] for factor in (1, 100, 10_000, 1_000_000))
    assert small.mean < between.mean < large.mean
    widths = [high - low for low, high in (f.interval for f in (small, between, large))]
    assert widths[0] > widths[1] > widths[2]
    assert larger.interval == large.interval
    by_time = [fit([replace(r, target_tokens=0) for r in times_as_many(runs, factor)], TARGET)[0] for factor in (1, 10_000)]
    assert by_time[0].interval == by_time[1].interval
