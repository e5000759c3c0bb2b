import pytest

from budgetlm.budget.clock import ManualClock, Meter, duration


def test_every_moment_is_charged_to_exactly_one_purpose():
    clock, charges = ManualClock(), []
    meter = Meter(clock, lambda *charge: charges.append(charge))
    clock.move(1)
    with meter.during("train"):
        clock.move(2)
        with meter.during("evaluate"):
            clock.move(3)
        clock.move(4)
    clock.move(5)
    meter.flush()
    totals = {}
    for _, purpose, seconds in charges:
        totals[purpose] = totals.get(purpose, 0) + seconds
    assert totals == {"other": 6, "train": 6, "evaluate": 3}
    assert sum(meter.spent.values()) == 15


def test_a_killed_process_leaves_at_most_the_flush_interval_and_a_step_uncharged():
    clock, charged = ManualClock(), []
    meter = Meter(clock, lambda _run, _purpose, seconds: charged.append(seconds), flush_seconds=1.0)
    for _ in range(100):
        with meter.during("train"):
            clock.move(0.3)
    # The process dies here, without a flush.
    assert 30 - sum(charged) <= 1.0 + 0.3 + 1e-9


def test_time_goes_to_the_run_that_pays_also_when_it_fails():
    clock, charges = ManualClock(), []
    meter = Meter(clock, lambda run, _purpose, seconds: charges.append((run, seconds)))
    clock.move(1)
    with pytest.raises(ValueError, match="boom"), meter.paying("trial0"), meter.during("train"):
        clock.move(2)
        raise ValueError("boom")
    clock.move(3)
    meter.flush()
    by_run = {}
    for run, seconds in charges:
        by_run[run] = by_run.get(run, 0) + seconds
    assert by_run == {"study": 4, "trial0": 2}


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.5, "0.5 s"), (80, "80 s"), (119.9, "120 s"), (600, "10 min"), (7200, "2 h"), (86_400, "24 h")]
)
def test_lengths_of_time_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said
