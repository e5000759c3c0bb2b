import math
import statistics

import numpy as np
import optuna

from budgetlm.recipe.near import UNSURE, near
from budgetlm.recipe.space import Choices, Fixed, Range, complete_space, default_recipe, parameters_of, searched
from budgetlm.search.trials import EVEN, NEAR, Trials

COUNT = 300


def around(world, wanted=None):
    space, default = complete_space(wanted or {}, default_recipe(3600, world), world)
    return space, default, [near(default, space, np.random.default_rng(seed)) for seed in range(COUNT)]


def test_recipes_near_the_default_lie_in_the_space(world):
    space, _, found = around(world)
    for recipe in found:
        for name, domain in space.items():
            value = getattr(recipe, name)
            if isinstance(domain, Range):
                assert domain.low <= value <= domain.high
                assert not domain.step or (value - domain.low) % domain.step == 0
            else:
                assert value in (domain.values if isinstance(domain, Choices) else (domain.value,))


def test_they_spread_as_far_as_the_laws_are_unsure_and_mostly_keep_the_default(world):
    space, default, found = around(world, {"peak_lr": Range(low=1e-6, high=1.0, log=True)})
    moves = [math.log(r.peak_lr / default.peak_lr) for r in found]
    assert 0.35 < statistics.mean(move == 0 for move in moves) < 0.65
    assert 0.7 < statistics.stdev(move for move in moves if move) / UNSURE["peak_lr"] < 1.3
    assert statistics.mean(r.optimizer == default.optimizer for r in found) > 0.75
    assert statistics.mean(r == default for r in found) < 0.05
    assert {name for name in searched(space) if any(getattr(r, name) != getattr(default, name) for r in found)} == set(
        searched(space)
    )


def test_what_is_fixed_stays(world):
    _, _, found = around(world, {"peak_lr": Fixed(0.01), "optimizer": Fixed("adamw")})
    assert {(r.peak_lr, r.optimizer) for r in found} == {(0.01, "adamw")}


def test_a_search_begins_with_the_default_and_then_near_it_and_a_continued_one_goes_on(world):
    space, default = complete_space({}, default_recipe(3600, world), world)
    storage = optuna.storages.InMemoryStorage()

    def asked(count):
        trials = Trials(storage, "near", space, seed=3)
        trials.begin_with(default)
        found = [trials.ask() for _ in range(count)]
        for number, recipe in found:
            trials.tell(number, recipe.peak_lr)
        return found

    found = asked(4) + asked(NEAR + 3)
    assert [number for number, _ in found] == list(range(NEAR + 7))
    assert found[0][1] == default
    whole = Trials(optuna.storages.InMemoryStorage(), "near", space, seed=3)
    whole.begin_with(default)
    again = [whole.ask()[1] for _ in range(NEAR + 1)]
    for number in range(NEAR + 1):
        if number % EVEN != EVEN - 1:  # the others are drawn with what is known by then
            assert again[number] == found[number][1]
    assert all(parameters_of(recipe, space) for _, recipe in found)
