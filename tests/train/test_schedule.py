import pytest

from budgetlm.errors import ConfigError
from budgetlm.train.schedule import SHAPES, ScheduleConfig, lr_factor


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_warms_up_peaks_and_ends_where_it_should(shape):
    schedule = ScheduleConfig(shape=shape, warmup=0.1, cooldown=0.3, floor=0.05)
    assert lr_factor(schedule, 0.0) == 0.0
    assert lr_factor(schedule, 0.05) == pytest.approx(0.5)
    assert lr_factor(schedule, 0.1) == pytest.approx(1.0)
    assert lr_factor(schedule, 1.0) == pytest.approx(1.0 if shape == "constant" else 0.05)
    after = [lr_factor(schedule, 0.1 + 0.009 * i) for i in range(101)]
    assert after == sorted(after, reverse=True)


def test_wsd_is_flat_until_its_cooldown():
    schedule = ScheduleConfig(shape="wsd", warmup=0.1, cooldown=0.3)
    assert lr_factor(schedule, 0.7) == pytest.approx(1.0)
    assert lr_factor(schedule, 0.85) == pytest.approx(0.5)


def test_beyond_its_ends_a_schedule_stays_at_them():
    schedule = ScheduleConfig(shape="cosine", warmup=0.0)
    assert lr_factor(schedule, -1) == 1.0
    assert lr_factor(schedule, 2) == pytest.approx(0.0)


@pytest.mark.parametrize("bad", [{"shape": "zigzag"}, {"warmup": 1.0}, {"shape": "wsd", "warmup": 0.4, "cooldown": 0.7}])
def test_impossible_schedules_are_refused(bad):
    with pytest.raises(ConfigError):
        ScheduleConfig(**bad)
