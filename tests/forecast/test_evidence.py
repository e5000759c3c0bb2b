from dataclasses import replace

from budgetlm.forecast.choose import choose
from budgetlm.forecast.evidence import evidence
from budgetlm.forecast.fit import fit
from tests.conftest import record
from tests.forecast.test_fit import ladder


def stands_on(records):
    forecasts = fit(records, 1000)
    choice = choose(records, 1000, forecasts)
    return choice, forecasts, evidence(choice, records, forecasts)


def test_a_choice_says_how_much_was_seen_how_much_is_chance_and_who_came_nearest():
    records = ladder(0, 0.2)[0] + ladder(1, 0.0)[0] + ladder(2, 0.1)[0] + ladder(3, 0.4, shares=(1 / 64,))[0]
    top = next(r for r in records if (r.trial, r.rung) == (1, 1))
    records += [replace(top, run="again", seed=1, bpb=top.bpb + 0.01)]
    choice, forecasts, (seen, noise, nearest) = stands_on(records)
    assert choice.trial == 1
    assert seen == (
        "8 runs of 4 trials on rungs of 15.6 s, 62.5 s, 1 of them with another seed; trial 1 has 2 seeds on the highest, "
        "which 3 trials reached"
    )
    assert noise == "runs that differ in their seed alone differ by 0.0071 bits per byte (standard deviation, from 1 repeat)"
    more = forecasts[2].mean - forecasts[1].mean
    assert nearest.startswith(f"runner-up: trial 2, {forecasts[2].mean:.3f}, {more:.2g} more; trial 1 is the better one")


def test_what_is_not_known_is_said():
    _, _, (seen, noise, nearest) = stands_on(ladder(0, 0.0)[0])
    assert "2 runs of 1 trial" in seen
    assert "none of them with another seed" in seen
    assert noise == "nothing was run again with another seed, so how much of a loss is chance is not known"
    assert nearest == "no other trial reached the highest rung"
    ranks = stands_on([record(n, 0, 10.0, bpb) for n, bpb in enumerate([1.9, 1.7, 1.8])])[2][-1]
    assert ranks == "runner-up: trial 2, 1.800, 0.1 more, on the same rung; ranks only: all runs are on one rung"


def test_a_runner_up_with_less_loss_that_the_rule_of_equals_passed_over_is_said_to_have_less():
    records = [replace(r, compute_parameters=50) if r.trial else r for n in (0, 1) for r in ladder(n, 0.0001 * n)[0]]
    repeats = [replace(r, bpb=r.bpb + 0.004, run=f"{r.run}-repeat1") for r in records if r.rung == 1]
    choice, _, (_, _, nearest) = stands_on([*records, *repeats])
    assert choice.trial == 1
    assert "; trial 0's is less by " in choice.why
    assert "less than 0.25 of a run's noise counts as nothing" in choice.why
    assert nearest.startswith("runner-up: trial 0,")
    assert " less; trial 1 is the better one with a probability of" in nearest
