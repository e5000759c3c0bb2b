import dataclasses

import optuna
import pytest

from budgetlm.errors import ConfigError
from budgetlm.model.size import compute_parameters
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.scale import expected_tokens, model_of
from budgetlm.recipe.space import Choices, Fixed, Range, complete_space, default_recipe, parameters_of, read_space, suggest


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"widht": 64}, "Did you mean `width`"),
        ({"optimizer": "adam"}, "cannot be 'adam'. Use adamw, muon"),
        ({"optimizer": {"low": 1, "high": 2}}, "is a choice, not a range"),
        ({"schedule": []}, "empty list"),
        ({"depth": {"low": 5, "high": 2}}, "low 5 above high 2"),
        ({"depth": {"low": 5}}, "needs both `low` and `high`"),
        ({"depth": {"low": 1, "high": 2, "stepp": 1}}, "Did you mean `step`"),
        ({"depth": 2.5}, "whole number"),
        ({"depth": True}, "whole number"),
        ({"width": 70}, "not a multiple of 16. Use 64"),
        ({"weight_decay": {"low": 0, "high": 1, "log": True}}, "must be above 0"),
        ({"warmup": 0.9}, "lies between 0 and 0.5"),
        ({"peak_lr": "high"}, "is a number"),
        ({"tie_embeddings": 1}, "cannot be 1"),
    ],
)
def test_an_impossible_space_is_refused_with_what_is_possible(table, message):
    with pytest.raises(ConfigError, match=message):
        read_space(table)


def test_a_value_a_list_and_a_table_fix_choose_and_range():
    space = read_space({"optimizer": "muon", "schedule": ["wsd", "cosine"], "depth": {"low": 1, "high": 9}})
    assert space == {
        "optimizer": Fixed("muon"),
        "schedule": Choices(("wsd", "cosine")),
        "depth": Range(low=1, high=9),
    }


def test_the_default_recipe_is_compute_optimal_and_grows_with_the_target(world):
    sizes = []
    for seconds in (10.0, 1000.0, 100_000.0):
        recipe = default_recipe(seconds, world)
        model = model_of(recipe, world)
        ratio = expected_tokens(recipe, model, recipe.batch_tokens, seconds, world) / compute_parameters(model)
        assert 8 < ratio < 50
        sizes.append(compute_parameters(model))
    assert sizes[0] * 10 < sizes[1] < sizes[2] / 10


def test_the_default_recipe_lies_in_the_space_and_optuna_can_be_given_it(world):
    for table in ({}, {"depth": {"low": 7, "high": 9}, "optimizer": ["muon"], "width": 48, "weight_decay": [0.3, 0.5]}):
        space, default = complete_space(read_space(table), default_recipe(500.0, world), world)
        study = optuna.create_study()
        study.enqueue_trial(parameters_of(default, space))
        suggested = suggest(study.ask(), space)
        assert dataclasses.replace(suggested, peak_lr=default.peak_lr) == default
        assert suggested.peak_lr == pytest.approx(default.peak_lr)


def test_whatever_is_suggested_is_a_recipe_that_can_be_built(world):
    space, _ = complete_space({}, default_recipe(500.0, world), world)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    shapes = {model_of(suggest(study.ask(), space), world) for _ in range(100)}
    assert len(shapes) > 10


def test_a_recipe_says_itself_in_words():
    recipe = Recipe(depth=3, width=64, batch_tokens=4096, peak_lr=0.01, schedule="wsd")
    assert "depth 3 x width 64, batch 4,096 tokens, adamw at peak lr 1.00e-02, wsd schedule" in recipe.summary()
