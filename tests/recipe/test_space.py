import dataclasses

import optuna
import pytest

from budgetlm.errors import ConfigError
from budgetlm.model.size import body_parameters
from budgetlm.recipe.oracle import expected_tokens, model_of
from budgetlm.recipe.recipe import PARAMETERS, UNUSUAL, Recipe, recipe_from
from budgetlm.recipe.space import (
    Choices,
    Fixed,
    Range,
    complete_space,
    default_recipe,
    default_space,
    parameters_of,
    read_space,
    suggest,
)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"widht": 64}, "Did you mean `width`"),
        ({"optimizer": "adamm"}, "cannot be 'adamm'. Use adamw, muon"),
        ({"cooldown_shape": "square"}, "cannot be 'square'. Use linear, sqrt, cosine"),
        ({"weight_decay_schedule": ["constant", "cosine"]}, "cannot be 'cosine'"),
        ({"ema": 1.5}, "lies between 0 and 1"),
        ({"batch_ramp": {"low": -0.5, "high": 0.5}}, "lies between 0 and 1"),
        ({"embedding_lr": 0}, "lies between 0.01 and 100"),
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


def test_every_parameter_of_a_recipe_is_in_the_space_and_can_be_fixed_to_its_default(world):
    default = default_recipe(500.0, world)
    assert set(default_space(default, world)) == set(PARAMETERS)
    fixed = read_space(dataclasses.asdict(default))
    assert all(domain == Fixed(getattr(default, name)) for name, domain in fixed.items())


def test_what_the_default_space_does_not_search_is_as_if_it_were_not_there(world):
    space = default_space(default_recipe(500.0, world), world)
    assert {name: space[name] for name in UNUSUAL} == {name: Fixed(PARAMETERS[name].default) for name in UNUSUAL}
    assert space["optimizer"] == Choices(("muon", "adamw"))
    assert space["schedule"] == Choices(("linear", "cosine", "wsd"))


def test_the_default_recipe_is_compute_optimal_and_grows_with_the_target(world):
    sizes = []
    for seconds in (10.0, 1000.0, 100_000.0):
        recipe = default_recipe(seconds, world)
        model = model_of(recipe, world)
        ratio = expected_tokens(recipe, model, recipe.batch_tokens, seconds, world) / body_parameters(model)
        assert 8 < ratio < 50
        sizes.append(body_parameters(model))
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
    assert "depth 3 x width 64, batch 4,096 tokens, muon at peak lr 1.00e-02, wsd schedule" in recipe.summary()
    assert "ema" not in recipe.summary()
    assert dataclasses.replace(recipe, ema=0.05, cooldown_shape="sqrt").summary().endswith(", cooldown_shape sqrt, ema 0.05")
    assert "constant schedule (warm-up 5%)" in dataclasses.replace(recipe, optimizer="schedulefree").summary()


def test_an_old_recipe_without_newer_parameters_is_read_as_it_was_meant():
    recipe = Recipe(depth=3, width=64, batch_tokens=4096, peak_lr=0.01)
    old = {name: getattr(recipe, name) for name in ("depth", "width", "batch_tokens", "peak_lr", "schedule", "optimizer")}
    assert recipe_from(old) == recipe
