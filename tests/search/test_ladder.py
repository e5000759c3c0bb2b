import itertools

import pytest

from budgetlm.errors import BudgetExhausted
from budgetlm.search.ladder import plan_rungs


@pytest.mark.parametrize(
    ("budget", "target"),
    [(360, 86_400), (150, 80), (3600, 600), (86_400, 86_400), (6 * 3600, 86_400), (720, 600), (7e5, 600)],
)
def test_rungs_are_powers_of_four_below_the_target_that_the_budget_can_pay_several_of(budget, target):
    rungs = plan_rungs(budget, target, 4.0)
    assert 2 <= len(rungs) <= 6
    assert rungs == sorted(rungs)
    assert all(b / a == pytest.approx(4) for a, b in itertools.pairwise(rungs))
    assert rungs[0] >= 4.0
    assert rungs[-1] <= min(target, budget / 5)


def test_a_raised_budget_keeps_its_rungs_and_only_adds_higher_ones():
    before = plan_rungs(360, 86_400, 4.0)
    after = plan_rungs(3600, 86_400, 4.0, before)
    assert after[: len(before)] == before
    assert len(after) > len(before)
    assert plan_rungs(370, 86_400, 4.0, before) == before


def test_the_ladder_of_a_front_ends_where_several_can_reach_it_but_keeps_two_rungs():
    assert plan_rungs(150, 30, 1.8) == [1.875, 7.5, 30]
    assert plan_rungs(150, 30, 1.8, objectives="loss,size") == [1.875, 7.5]
    assert plan_rungs(90, 30, 1.8, objectives="loss,size") == plan_rungs(90, 30, 1.8) == [1.875, 7.5]
    assert plan_rungs(600, 30, 1.8, [1.875, 7.5], "loss,size") == [1.875, 7.5, 30]


def test_a_budget_too_small_says_how_much_would_do():
    with pytest.raises(BudgetExhausted, match=r"--hours 0\.0837`") as refused:
        plan_rungs(30, 60, 4.0)
    assert "30 device-seconds" in str(refused.value)
    assert len(plan_rungs(0.0837 * 3600, 60, 4.0)) == 2


def test_a_target_too_short_for_two_rungs_is_said_so():
    with pytest.raises(BudgetExhausted, match="target of 10 s is too short"):
        plan_rungs(1000, 10, 4.0)


def test_the_highest_rung_leaves_time_on_the_wall_to_climb_to_it():
    alone = plan_rungs(28_800, 86_400, 80.0)
    assert alone == [84.375, 337.5, 1350, 5400] == plan_rungs(28_800, 86_400, 80.0, devices=1)
    for devices, top in ((2, 5400), (4, 1350), (16, 337.5)):
        rungs = plan_rungs(28_800, 86_400, 80.0, devices=devices)
        assert rungs == [r for r in alone if r <= top]
        climb, gate = sum(rungs), top
        assert climb + gate <= 28_800 / devices
    assert plan_rungs(28_800, 86_400, 80.0, devices=1000) == alone[:2]  # two rungs there are whatever they take
