import dataclasses

from budgetlm.forecast.choose import can_win, choose, highest_rungs, probability_better
from budgetlm.forecast.fit import fit
from budgetlm.forecast.noise import measured_noise
from tests.conftest import record
from tests.forecast.test_fit import ladder


def test_the_least_forecast_of_those_that_climbed_highest_is_chosen():
    records = ladder(0, 0.2)[0] + ladder(1, 0.0)[0] + ladder(2, 0.1)[0]
    records += [record(3, 0, 1000 / 64, 0.9)]  # looks lucky on the cheapest rung, never climbed
    choice = choose(records, 1000)
    assert choice.trial == 1
    assert choice.why.startswith("least forecast of the 3 of 4 trials")
    assert choose([], 1000) is None


def test_where_all_runs_are_on_one_rung_their_order_is_all_that_is_said():
    records = [record(n, 0, 10.0, bpb) for n, bpb in enumerate([1.9, 1.7, 1.8])]
    choice = choose(records, 1000)
    assert choice.trial == 1
    assert choice.ranks_only
    assert "least loss of the 3 trials, 1.700 bits per byte after 10 s; ranks only: all runs are on one rung" in choice.why
    assert choice.expected == "1.700 bits per byte on its rung; ranks only: all runs are on one rung"
    assert "interval" not in choice.why
    climbed = choose([*records, record(2, 1, 40.0, 1.5)], 1000)
    assert (climbed.trial, climbed.ranks_only, climbed.loss) == (2, False, 1.5)
    assert "80 % interval" in climbed.why


def test_trials_that_cannot_be_told_apart_are_named():
    records = ladder(0, 0.0)[0] + ladder(1, 0.001)[0] + ladder(2, 0.6)[0]
    alike = [dataclasses.replace(r, recipe=records[0].recipe) for r in records]  # nothing to explain differences by
    choice = choose(alike, 1000)
    assert choice.trial == 0
    assert choice.within_noise == [1]


def test_a_trial_far_behind_stops_and_a_good_one_climbs():
    records = [r for t in range(3) for r in ladder(t, 0.02 * t)[0]]
    for trial, level in ((3, 0.5), (4, -0.3)):
        now = records + ladder(trial, level, shares=(1 / 64,))[0]
        assert can_win(trial, fit(now, 1000), now) == (trial == 4)


def test_the_first_trial_of_all_may_climb():
    records = ladder(0, 0.0, shares=(1 / 64,))[0]
    assert can_win(0, fit(records, 1000), records)


def test_better_is_judged_with_what_two_forecasts_share():
    forecasts = fit(ladder(0, 0.0)[0] + ladder(1, 0.1)[0], 1000)
    assert probability_better(forecasts[0], forecasts[1]) > 0.8
    total = probability_better(forecasts[0], forecasts[1]) + probability_better(forecasts[1], forecasts[0])
    assert abs(total - 1) < 1e-9
    # Alone, each is far less sure than the two are of their order: E and the exponent are common to both.
    assert forecasts[0].interval[1] > forecasts[1].interval[0]


def test_the_highest_rung_is_the_highest_finished():
    records = [record(0, 0, 10, 2.0), record(0, 1, 40, None), record(1, 0, 10, 2.0), record(1, 1, 40, 1.8)]
    assert highest_rungs(records) == {0: 0, 1: 1}


def test_the_noise_is_the_spread_among_repeats_and_nothing_else():
    assert measured_noise([record(0, 0, 10, 2.0), record(1, 0, 10, 1.0), record(0, 1, 40, 1.5)]) is None
    noise = measured_noise([record(0, 0, 10, 2.0), record(0, 0, 10, 2.2), record(1, 1, 40, 1.0), record(1, 1, 40, 1.0)])
    assert noise.repeats == 2
    assert abs(noise.spread - 0.1) < 1e-12


def test_of_equals_within_the_noise_the_smallest_model_is_chosen():
    records = [*ladder(0, 0.0)[0], *ladder(1, 0.0001)[0]]
    small = [dataclasses.replace(r, compute_parameters=50) if r.trial == 1 else r for r in records]
    assert choose(records, 1000).trial == 0
    assert choose(small, 1000).trial == 0  # nothing is known of the noise
    repeats = [dataclasses.replace(r, bpb=r.bpb + 0.004, run=f"{r.run}-repeat1") for r in small if r.rung == 1]
    choice = choose([*small, *repeats], 1000)
    assert choice.trial == 1
    assert choice.why.startswith("smallest model within the noise of the least forecast of the 2 of 2 trials")
