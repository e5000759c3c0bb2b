from dataclasses import replace

import pytest

from budgetlm.forecast.fit import fit
from budgetlm.search.climb import GATE_SHARE, LEAST_TRIALS, MOST_NOISE, Enough, Standing, Wish, next_wish
from tests.conftest import record
from tests.forecast.test_fit import ladder

RUNGS = (1000 / 64, 1000 / 16)


def standing(records, remaining=400.0, **changes) -> Standing:
    values = {
        "records": records,
        "forecasts": fit(records, 1000),
        "rungs": RUNGS,
        "target_seconds": 1000.0,
        "budget_seconds": 1000.0,
        "remaining_seconds": remaining,
        "at_work": {},
    }
    return Standing(**{**values, **changes})


def trials(levels, climbed=(), apart=0.02):
    """Records of trials, all on the lowest rung and some on both; the first one was repeated there, and came out `apart` bits per byte."""
    records = [record(0, 0, RUNGS[0], ladder(0, levels[0])[0][0].bpb + apart, run="trial0000-rung0-repeat1", seed=1)]
    for trial, level in enumerate(levels):
        records += ladder(trial, level, shares=(1 / 64, 1 / 16) if trial in climbed else (1 / 64,))[0]
    return records


def repeated(trial, **changes):
    return record(trial, 0, RUNGS[0], 2.0, run=f"trial{trial:04d}-rung0-repeat1", seed=1, why="noise", **changes)


def test_the_incumbent_is_repeated_once_where_it_is_cheap_so_that_the_noise_is_known():
    once = ladder(0, 0.0)[0]
    assert next_wish(standing(once)) == Wish(0, 0, 1, "noise")
    assert next_wish(standing([*once, repeated(0)])).why != "noise"
    assert next_wish(standing(once, budget_seconds=100.0)).why != "noise"  # where it is dear, it is left to the gate


def test_who_takes_the_incumbents_place_is_repeated_likewise_as_long_as_that_is_little_of_the_budget():
    records = [*ladder(0, 0.0)[0], repeated(0), *ladder(1, -0.3)[0], *ladder(2, -0.6, shares=(1 / 64,))[0]]
    assert next_wish(standing(records)) == Wish(1, 0, 1, "noise")  # trial 2 has led nobody at the top
    assert next_wish(standing([*records, repeated(1)])).why != "noise"
    assert next_wish(standing(records, at_work={1: 1})).why != "noise"
    dear = [replace(r, seconds=MOST_NOISE * 1000) if r.why == "noise" else r for r in records]
    assert next_wish(standing(dear)).why != "noise"


def test_new_trials_leave_the_gate_its_share():
    records = trials([0.0, 0.1, -0.1], climbed=(0,))
    assert next_wish(standing(records, remaining=GATE_SHARE * 1000 + RUNGS[0])) == Wish(None, 0, 0, "new")
    assert next_wish(standing(records, remaining=GATE_SHARE * 1000 + RUNGS[0] - 1)).why == "gate"


def test_the_gate_takes_the_leader_and_its_challenger_in_turns():
    records = trials([0.0, 0.02, 0.5], climbed=(0, 1, 2), apart=0.3)
    seen = []
    for _ in range(4):
        wish = next_wish(standing(records, remaining=200.0, stops_early=False))
        assert wish.why == "gate"
        seen.append((wish.trial, wish.repeat))
        again = next(r for r in records if r.trial == wish.trial and r.rung == 1)
        records.append(record(wish.trial, 1, RUNGS[1], again.bpb, run=f"{again.run}-{len(records)}", seed=wish.repeat))
    assert sorted(seen) == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_a_promising_trial_that_never_climbed_gets_its_first_run_of_the_gate():
    records = trials([0.0, 0.3, -0.3], climbed=(0, 1))
    assert next_wish(standing(records, remaining=200.0)) == Wish(2, 1, 0, "gate")


def test_a_trial_that_broke_at_the_top_is_no_candidate_and_one_at_work_is_not_begun_twice():
    records = trials([0.0, 0.3, -0.3], climbed=(0, 1))
    broken = [*records, record(2, 1, RUNGS[1], None)]
    assert next_wish(standing(broken, remaining=200.0, stops_early=False)) != Wish(2, 1, 0, "gate")
    wish = next_wish(standing(records, remaining=200.0, at_work={2: 1}))
    assert not isinstance(wish, Wish) or wish.trial != 2


def test_a_leader_that_broke_at_the_top_is_not_repeated_for_ever():
    records = trials([0.0, 0.02], climbed=(0, 1), apart=0.3)
    broken = [*records, record(0, 1, RUNGS[1], None, run="trial0000-rung1-repeat1", seed=1)]
    assert next_wish(standing(records, remaining=200.0, at_work={1: 1})) == Wish(0, 1, 1, "gate")
    assert isinstance(next_wish(standing(broken, remaining=200.0, at_work={1: 1})), Enough)


def test_the_search_stops_when_another_trial_is_worth_less_than_its_seconds():
    settled = trials([0.0, *[0.8 + 0.001 * n for n in range(LEAST_TRIALS)]], climbed=(0, 1))
    enough = next_wish(standing(settled))
    assert isinstance(enough, Enough)
    assert "no other trial is likely enough to be better than trial 0; the rest of the budget is saved" in enough.why
    assert next_wish(standing(settled, stops_early=False)) == Wish(None, 0, 0, "new")
    open_field = trials([0.0, *[0.3 * (-1) ** n for n in range(LEAST_TRIALS)]], climbed=(0, 1))
    assert next_wish(standing(open_field)).why in ("new", "gate")


def test_where_nobody_has_reached_the_top_the_nearest_is_sent_there_first():
    records = trials([0.2, 0.0, 0.1])
    assert next_wish(standing(records)) == Wish(1, 1, 0, "first on its rung")


def test_the_gate_spends_no_more_than_its_share_on_repeats_and_repeats_nobody_endlessly():
    records = trials([0.0, 0.001], climbed=(0, 1), apart=0.3)
    repeats = []
    while isinstance(wish := next_wish(standing([*records, *repeats], remaining=240.0)), Wish):
        assert wish.why == "gate"
        run = f"trial{wish.trial:04d}-rung1-repeat{wish.repeat}"
        repeats.append(record(wish.trial, 1, RUNGS[1], records[-1].bpb, run=run, seed=wish.repeat))
    assert 1 <= len(repeats) <= GATE_SHARE * 1000 / RUNGS[1]
    assert "the gate has had its share" in wish.why or "better than trial" in wish.why or "gain less" in wish.why


@pytest.mark.parametrize("stops_early", [True, False])
def test_a_budget_that_is_used_up_is_said_to_be(stops_early):
    records = trials([0.0, 0.02], climbed=(0, 1))
    enough = next_wish(standing(records, remaining=5.0, stops_early=stops_early))
    assert isinstance(enough, Enough)
    assert "the budget is spent: what is left does not pay for another run" in enough.why
