import math
from itertools import pairwise

import pytest

from budgetlm.errors import ConfigError
from budgetlm.train.schedule import (
    COOLDOWN_SHAPES,
    SHAPES,
    ScheduleConfig,
    averaging_weight,
    batch_at,
    decay_factor,
    lr_factor,
    mean_batch_share,
    muon_momentum,
)

BEGINS = {"one_cycle": 0.1}
ENDS = {"constant": 1.0, "inverse_sqrt": math.sqrt(0.1)}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_warms_up_peaks_and_ends_where_it_should(shape):
    schedule = ScheduleConfig(shape=shape, warmup=0.1, cooldown=0.3, floor=0.05)
    begins = BEGINS.get(shape, 0.0)
    assert lr_factor(schedule, 0.0) == begins
    assert lr_factor(schedule, 0.05) == pytest.approx((begins + 1) / 2)
    assert lr_factor(schedule, 0.1) == pytest.approx(1.0)
    assert lr_factor(schedule, 1.0) == pytest.approx(ENDS.get(shape, 0.05))
    after = [lr_factor(schedule, 0.1 + 0.009 * i) for i in range(101)]
    assert after == sorted(after, reverse=True)
    assert min(after) >= 0.05


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warmup", [0.01, 0.3])
def test_no_shape_leaves_the_interval_of_zero_and_one_or_jumps_but_step(shape, warmup):
    schedule = ScheduleConfig(shape=shape, warmup=warmup, cooldown=0.5)
    rates = [lr_factor(schedule, i / 10_000) for i in range(10_001)]
    assert 0 <= min(rates) <= max(rates) <= 1
    # Steepest is the rise over `warmup`.
    jumps = sum(abs(b - a) > 1.01 / 10_000 / min(warmup, 0.1) for a, b in pairwise(rates))
    assert jumps == (2 if shape == "step" else 0)


@pytest.mark.parametrize(("shape", "halfway"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_wsd_is_flat_until_its_cooldown_and_falls_in_its_shape(shape, halfway):
    schedule = ScheduleConfig(shape="wsd", warmup=0.1, cooldown=0.3, cooldown_shape=shape)
    assert lr_factor(schedule, 0.7) == pytest.approx(1.0)
    assert lr_factor(schedule, 0.85) == pytest.approx(halfway)
    assert lr_factor(schedule, 1.0) == pytest.approx(0.0)


def test_the_cooldown_shapes_are_three_different_curves():
    def at_a_quarter(shape):
        return lr_factor(ScheduleConfig(shape="wsd", warmup=0.0, cooldown=1.0, cooldown_shape=shape), 0.25)

    assert sorted(map(at_a_quarter, COOLDOWN_SHAPES)) == pytest.approx([0.5, 0.75, (1 + math.sqrt(0.5)) / 2])


def test_a_cycle_with_an_even_warmup_is_the_papers():
    schedule = ScheduleConfig(shape="one_cycle", warmup=0.45, cooldown=0.1)
    assert [lr_factor(schedule, p) for p in (0.0, 0.45, 0.9)] == pytest.approx([0.1, 1.0, 0.1])
    for away in (0.1, 0.3):
        assert lr_factor(schedule, 0.45 - away) == pytest.approx(lr_factor(schedule, 0.45 + away))
    assert lr_factor(schedule, 0.95) == pytest.approx(0.05)


def test_inverse_square_root_is_halved_whenever_progress_is_four_times_as_far():
    schedule = ScheduleConfig(shape="inverse_sqrt", warmup=0.05)
    assert [lr_factor(schedule, p) for p in (0.05, 0.2, 0.8)] == pytest.approx([1.0, 0.5, 0.25])


def test_steps_are_to_a_tenth_at_a_half_and_at_three_quarters():
    schedule = ScheduleConfig(shape="step", warmup=0.0)
    assert [lr_factor(schedule, p) for p in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]


def test_beyond_its_ends_a_schedule_stays_at_them():
    schedule = ScheduleConfig(shape="cosine", warmup=0.0)
    assert lr_factor(schedule, -1) == 1.0
    assert lr_factor(schedule, 2) == pytest.approx(0.0)
    falling = ScheduleConfig(weight_decay_schedule="linear")
    assert (decay_factor(falling, -1), decay_factor(falling, 2)) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"shape": "zigzag"}, "'zigzag' is not known. Use one of wsd"),
        ({"cooldown_shape": "square"}, "Use one of linear, sqrt, cosine"),
        ({"weight_decay_schedule": "cosine"}, "Use one of constant, linear"),
        ({"warmup": 1.0}, "between 0 and 1"),
        ({"batch_ramp": 1.5}, r"batch_ramp \(1.5\)"),
        ({"momentum_warmup": -0.1}, r"momentum_warmup \(-0.1\)"),
        ({"shape": "wsd", "warmup": 0.4, "cooldown": 0.7}, "Lower `cooldown` to 0.60"),
        ({"shape": "one_cycle", "warmup": 0.4, "cooldown": 0.7}, "Lower `cooldown` to 0.60"),
        ({"shape": "inverse_sqrt", "warmup": 0.0}, "warmup must be above 0"),
    ],
)
def test_impossible_schedules_are_refused(bad, message):
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**bad)


def test_without_being_asked_for_nothing_but_the_rate_moves():
    usual = ScheduleConfig()
    for progress in (0.0, 0.3, 1.0):
        assert (decay_factor(usual, progress), batch_at(usual, progress, 7), muon_momentum(usual, progress)) == (
            1.0,
            7,
            0.95,
        )


def test_weight_decay_falls_to_nothing_at_the_end():
    falling = ScheduleConfig(weight_decay_schedule="linear")
    assert [decay_factor(falling, p) for p in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]


def test_a_batch_ramp_rises_in_whole_sequences_from_a_quarter_to_the_whole():
    ramp = ScheduleConfig(batch_ramp=0.5)
    assert [batch_at(ramp, p, 16) for p in (0.0, 0.25, 0.5, 0.9)] == [4, 10, 16, 16]
    assert [batch_at(ramp, p, 1) for p in (0.0, 1.0)] == [1, 1]
    rising = [batch_at(ramp, i / 100, 50) for i in range(101)]
    assert rising == sorted(rising)


@pytest.mark.parametrize("ramp", [0.0, 0.3, 1.0])
def test_the_mean_batch_is_that_of_the_ramp(ramp):
    schedule = ScheduleConfig(batch_ramp=ramp)
    mean = sum(batch_at(schedule, (i + 0.5) / 1000, 1000) for i in range(1000)) / 1e6
    assert mean_batch_share(ramp) == pytest.approx(mean, abs=1e-3)


def test_momentum_rises_and_then_stays():
    warming = ScheduleConfig(momentum_warmup=0.2)
    assert [muon_momentum(warming, p) for p in (0.0, 0.1, 0.2, 1.0)] == pytest.approx([0.85, 0.9, 0.95, 0.95])


@pytest.mark.parametrize("ema", [0.05, 0.5])
def test_an_average_weighs_each_step_by_how_long_ago_it_was_whatever_the_steps_lengths(ema):
    # A weight that equals the progress: its average over exp(-(1 - p) / ema) has a closed form.
    a = math.exp(-1 / ema)
    wanted = 1 / (1 - a) - ema
    for steps in ([i / 2000 for i in range(2001)], [(i / 2000) ** 2 for i in range(2001)]):
        average = -1000.0  # the weights before the first step do not count
        for before, after in pairwise(steps):
            average += averaging_weight(ema, before, after) * ((before + after) / 2 - average)
        assert average == pytest.approx(wanted, rel=1e-3)


def test_an_average_takes_no_step_where_progress_takes_none():
    assert averaging_weight(0.1, 0.5, 0.5) == averaging_weight(0.1, 0.5, 0.4) == 0.0
    assert averaging_weight(0.1, 0.0, 0.0) == averaging_weight(0.1, 0.0, 0.7) == 1.0
