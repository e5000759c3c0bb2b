import dataclasses

import numpy as np
import pytest

from budgetlm.errors import StudyError
from budgetlm.forecast.choose import can_win, choose
from budgetlm.forecast.fit import fit
from budgetlm.forecast.front import FrontPoint, behind, costs_of, front, leader_of, pick
from budgetlm.forecast.worth import gain_of_a_trial
from budgetlm.search.climb import Wish, next_wish
from tests.forecast.test_fit import ladder
from tests.search.test_climb import standing


def sized(trial, level, megabytes, **options):
    """Records of a trial whose artefact weighs something."""
    made, _ = ladder(trial, level, **options)
    return [dataclasses.replace(r, predicted_model_bytes=1e6 * megabytes, predicted_token_ms=10 - megabytes) for r in made]


def of(*trials):
    """Records of several, from their levels and sizes."""
    return [r for n, (level, megabytes) in enumerate(trials) for r in sized(n, level, megabytes)]


def test_the_front_is_what_nothing_beats_in_both():
    chance = np.random.default_rng(0)
    losses, costs = (dict(enumerate(chance.random(60).round(2).tolist())) for _ in range(2))
    found = front(losses, costs)
    for n in losses:
        beaten = any(
            losses[m] <= losses[n] and costs[m] <= costs[n] and (losses[m], costs[m]) != (losses[n], costs[n])
            for m in losses
        )
        same = [m for m in losses if (losses[m], costs[m]) == (losses[n], costs[n])]
        assert (n in found) == (not beaten and n == min(same))
    assert [costs[n] for n in found] == sorted(costs[n] for n in found)
    gaps = behind(losses, costs)
    for n in losses:
        leader = leader_of(n, [m for m in found if m != n], losses, costs)
        assert gaps[n] == pytest.approx(max(0.0, losses[n] - losses[leader]) if leader is not None else 0.0)


def test_without_costs_the_front_is_the_best_alone():
    losses = {0: 1.5, 1: 1.2, 2: 1.9}
    assert front(losses, {}) == [1]
    assert behind(losses, {}) == pytest.approx({0: 0.3, 1: 0.0, 2: 0.7})


def test_a_choice_of_a_study_of_size_knows_its_front_with_intervals():
    records = of((0.0, 4.0), (0.3, 1.0), (0.4, 2.0))
    choice = choose(records, 1000, objectives="loss,size")
    assert choice.trial == 0
    assert [(p.trial, p.megabytes) for p in choice.front] == [(1, 1.0), (0, 4.0)]
    for point in choice.front:
        assert point.low < point.bpb < point.high
    assert choose(records, 1000).front == []
    assert costs_of(records, "loss,latency") == {0: 6.0, 1: 9.0, 2: 8.0}
    assert [p.trial for p in choose(records, 1000, objectives="loss,latency").front] == [0]


def test_measured_latencies_correct_what_is_foretold_of_the_others():
    records = of((0.0, 4.0), (0.3, 1.0))
    final = {
        "kind": "final",
        "rung": -1,
        "run": "final",
        "decode_tokens_per_second": 1000 / 12,
    }  # twice the 6 ms that were foretold
    trained = [*records, dataclasses.replace(records[0], **final)]
    points = choose(trained, 1000, objectives="loss,size").front
    assert [(p.trial, p.token_ms, p.measured_ms) for p in points] == [
        (1, pytest.approx(18.0), None),
        (0, pytest.approx(12.0), pytest.approx(12.0)),
    ]
    other = [
        *records,
        dataclasses.replace(records[0], **final, target_seconds=50.0),
    ]  # another model, for it is as long as that
    assert [p.token_ms for p in choose(other, 1000, objectives="loss,size").front] == [9.0, 6.0]


def test_a_small_trial_climbs_where_only_larger_ones_are_better():
    records = of((0.0, 4.0), (-0.1, 3.0), (0.05, 5.0))
    new = sized(3, 0.5, 0.5, shares=(1 / 64,))
    now = [*records, *new]
    forecasts = fit(now, 1000)
    assert not can_win(3, forecasts, now)
    assert can_win(3, forecasts, now, costs_of(now, "loss,size"))
    large = [dataclasses.replace(r, predicted_model_bytes=6e6) for r in new]
    assert not can_win(3, forecasts, [*records, *large], costs_of([*records, *large], "loss,size"))


def test_equal_costs_change_nothing():
    records = of((0.0, 1.0), (0.3, 1.0), (-0.2, 1.0), (0.01, 1.0))
    forecasts, costs = fit(records, 1000), costs_of(records, "loss,size")
    assert gain_of_a_trial(forecasts, costs) == gain_of_a_trial(forecasts)
    for n in range(4):
        assert can_win(n, forecasts, records, costs) == can_win(n, forecasts, records)
    for remaining in (200.0, 400.0):
        for early in (True, False):
            plain, weighed = (
                next_wish(standing(records, remaining, stops_early=early, **more)) for more in ({}, {"costs": costs})
            )
            assert plain == weighed


def test_the_gate_tells_apart_those_that_could_push_each_other_off_the_front_and_no_others():
    again = {"run": "trial0000-rung0-repeat1", "seed": 1, "bpb": ladder(0, 0.0)[0][0].bpb + 0.02}
    repeat = dataclasses.replace(sized(0, 0.0, 4.0)[0], **again)
    # Trial 1 is small and bad, 2 is nearly as good as 0 at the same size: nothing is open between 1 and the others.
    records = [*of((0.0, 4.0), (0.6, 1.0), (0.01, 4.0)), repeat]
    costs = costs_of(records, "loss,size")
    wish = next_wish(standing(records, remaining=200.0, costs=costs, stops_early=False))
    assert isinstance(wish, Wish)
    assert (wish.why, wish.trial in (0, 2)) == ("gate", True)
    # A cheaper one that may be as good as the next is a challenger of it.
    near = [*of((0.0, 4.0), (0.005, 1.0)), repeat]
    wish = next_wish(standing(near, remaining=200.0, costs=costs_of(near, "loss,size"), stops_early=False))
    assert isinstance(wish, Wish)
    assert wish.why == "gate"


def test_a_trial_cheaper_than_all_that_reached_the_top_gets_its_run_there_in_the_gate():
    again = {"run": "trial0000-rung0-repeat1", "seed": 1, "bpb": ladder(0, 0.0)[0][0].bpb + 0.02}
    climbed = [*of((0.0, 4.0), (0.3, 3.0)), dataclasses.replace(sized(0, 0.0, 4.0)[0], **again)]
    records = [*climbed, *[r for r in of((0.0, 4.0), (0.3, 3.0), (0.6, 1.0)) if r.trial == 2 and r.rung == 0]]
    wanted = next_wish(standing(records, remaining=200.0, costs=costs_of(records, "loss,size"), stops_early=False))
    assert (wanted.why, wanted.trial, wanted.repeat) == ("gate", 2, 0)
    alone = next_wish(standing(records, remaining=200.0, stops_early=False))  # of the loss alone it is hopeless
    assert getattr(alone, "trial", None) != 2


def test_a_pick_is_of_the_front_and_a_wrong_one_is_answered_with_those_there_are():
    points = [
        FrontPoint(5, 1.6, 1.5, 1.7, 0.5, 2.0),
        FrontPoint(2, 1.3, 1.2, 1.4, 1.5, 1.0),
        FrontPoint(9, 1.1, 1, 1.2, 3, 4),
    ]
    assert [pick(which, points, 9) for which in ("smallest", "fastest", "best", "2")] == [5, 2, 9, 2]
    with pytest.raises(StudyError, match=r"no pick 'small'. Use smallest, fastest, best, or a trial's number, e.g. 5, 2, 9"):
        pick("small", points, 9)
    with pytest.raises(StudyError, match="about the loss alone"):
        pick("smallest", [], 9)
