import dataclasses

import numpy as np
import optuna
import pytest

from budgetlm.compress.apply import Compression
from budgetlm.compress.layout import artefact_bytes
from budgetlm.errors import ConfigError
from budgetlm.model.size import ModelConfig, body_parameters
from budgetlm.recipe.limit import fitted, least_artefact_bytes, limited, moved, starts
from budgetlm.recipe.near import near
from budgetlm.recipe.oracle import deployed_bytes, expected_tokens, model_of, size_violation, token_milliseconds
from budgetlm.recipe.scale import at_target, miniature
from budgetlm.recipe.space import Choices, Fixed, Range, complete_space, default_recipe, read_space
from budgetlm.search.trials import Trials

TARGET = 3600.0


def planned(world, megabytes, **wanted):
    """World, space and default recipe of a study under a limit."""
    world = dataclasses.replace(world, max_model_bytes=int(megabytes * 1e6))
    return world, *limited(*complete_space(read_space(wanted), default_recipe(TARGET, world), world), world)


@pytest.mark.parametrize("megabytes", [0.3, 1, 2, 5])
def test_under_a_limit_the_default_recipe_is_the_largest_that_keeps_it_and_is_trained_for_longer(world, megabytes):
    free = default_recipe(TARGET, world)
    assert deployed_bytes(free, world) > 5e6
    world, space, default = planned(world, megabytes)
    assert 0.5 * megabytes * 1e6 < deployed_bytes(default, world) <= megabytes * 1e6
    model = model_of(default, world)
    assert expected_tokens(default, model, default.batch_tokens, TARGET, world) / body_parameters(model) > 20
    at_target(default, TARGET, world)
    assert {"none", "int8"} <= set(space["compression"].values)


def test_without_a_limit_nothing_changes(world):
    space, default = complete_space({}, default_recipe(TARGET, world), world)
    assert limited(space, default, world) == (space, default)
    assert (space["compression"], space["norm_embedding"]) == (Fixed("none"), Fixed(True))
    assert size_violation(default, world) == 0.0


def test_recipes_near_the_default_are_made_to_keep_the_limit_and_stay_in_the_space(world):
    world, space, default = planned(world, 1.0)
    for seed in range(100):
        drawn = near(default, space, np.random.default_rng(seed))
        recipe = fitted(drawn, space, world)
        assert size_violation(recipe, world) <= 0
        assert recipe == drawn or size_violation(drawn, world) > 0
        assert recipe.depth <= drawn.depth
        assert recipe.width <= drawn.width
        assert recipe.width % 16 == 0


def test_models_with_other_mixers_keep_a_limit_uncompressed(world):
    world, space, default = planned(world, 0.5, mixer=["attention", "lstm", "conv"])
    assert space["compression"] == Fixed("none"), "no format holds one"
    drawn = [near(default, space, np.random.default_rng(seed)) for seed in range(50)]
    for recipe in [fitted(r, space, world) for r in drawn]:
        assert size_violation(recipe, world) <= 0
        at_target(recipe, TARGET, world)
    assert {r.mixer for r in drawn} == {"attention", "lstm", "conv"}


def test_where_the_smallest_shape_does_not_help_what_else_weighs_something_does(world):
    wanted = {"depth": 2, "width": 64, "norm_embedding": [True, False], "compression": ["none", "int8"]}
    world, _, default = planned(world, 0.25, **wanted)
    assert (default.depth, default.width, default.norm_embedding, default.compression) == (2, 64, False, "int8")


def test_a_space_of_which_nothing_keeps_the_limit_is_refused_with_the_smallest_size_that_there_is(world):
    with pytest.raises(
        ConfigError, match=r"max_model_mb` is 0.1, but the smallest model that the space allows weighs 1.\d+ MB"
    ):
        planned(world, 0.1, depth=4, width=64, compression="none")


def test_the_smallest_size_is_that_of_the_smallest_recipe(world):
    space = {"depth": Range(low=2, high=4), "width": Choices((32, 64)), "compression": Choices(("none", "int8"))}
    model = ModelConfig(vocab_size=512, context_length=64, depth=2, width=32)
    assert least_artefact_bytes(space, 512, 64, ("none",)) == artefact_bytes(model, Compression(option="int8"))
    assert least_artefact_bytes({**space, "compression": Fixed("none")}, 512, 64, ("int8",)) == artefact_bytes(
        model, Compression()
    )


def test_what_a_compression_saves_goes_into_the_shape_of_the_first_recipes_that_have_it(world):
    world, space, default = planned(world, 1.0, compression=["none", "int8"])
    begun = starts(space, default, TARGET, world)
    assert begun["none"] == default
    for seed in range(40):
        drawn = near(default, space, np.random.default_rng(seed))
        recipe = fitted(moved(drawn, default, begun[drawn.compression], space), space, world)
        assert size_violation(recipe, world) <= 0
        for name, domain in space.items():
            assert not isinstance(domain, Range) or domain.low <= getattr(recipe, name) <= domain.high
        if drawn.compression == "none":
            assert (drawn.batch_tokens, drawn.peak_lr) == pytest.approx((recipe.batch_tokens, recipe.peak_lr))
    same = dataclasses.replace(default, compression="int8")
    larger = fitted(moved(same, default, begun["int8"], space), space, world)
    assert body_parameters(model_of(larger, world)) > 2 * body_parameters(model_of(default, world))
    assert deployed_bytes(larger, world) > deployed_bytes(same, world)


def test_most_recipes_that_are_asked_for_keep_the_limit(world):
    world, space, default = planned(world, 2.0, compression=["none", "int8"])
    trials = Trials(optuna.storages.InMemoryStorage(), "limit", space, seed=0)
    trials.begin_with(default, lambda recipe: fitted(recipe, space, world))
    kept = 0
    for _ in range(60):
        number, recipe = trials.ask()
        excess = size_violation(recipe, world)
        kept += excess <= 0
        if excess > 0:
            trials.tell_infeasible(number, {"size_mb": excess})
        else:  # the larger the better, so that it is drawn to where the limit is
            trials.tell(number, 1 / body_parameters(model_of(recipe, world)))
    assert kept >= 30
    assert trials.infeasible() == 60 - kept


def test_a_final_that_is_longer_than_its_target_keeps_the_limit_too(world):
    world, _, default = planned(world, 1.0)
    free = dataclasses.replace(world, max_model_bytes=0)
    longer = [miniature(default, 64 * TARGET, TARGET, w).model for w in (world, free)]
    sizes = [artefact_bytes(model, Compression()) for model in longer]
    assert sizes[0] <= 1e6 < sizes[1]


def test_a_recipe_beyond_the_limit_is_refused_with_its_size(world):
    world, _, default = planned(world, 1.0)
    with pytest.raises(ConfigError, match=r"would weigh \d.* MB, but `search.max_model_mb` is 1. Narrow"):
        at_target(dataclasses.replace(default, width=2 * default.width), TARGET, world)


def test_deeper_and_wider_models_take_longer_for_a_token_and_fewer_bits_less(world):
    recipe = default_recipe(TARGET, world)
    usual = token_milliseconds(recipe, world)
    assert token_milliseconds(dataclasses.replace(recipe, depth=2 * recipe.depth), world) > 1.5 * usual
    assert token_milliseconds(dataclasses.replace(recipe, width=2 * recipe.width), world) > usual
    assert token_milliseconds(dataclasses.replace(recipe, compression="int8"), world) <= usual
    assert token_milliseconds(dataclasses.replace(recipe, compression="shrink-layers"), world) < usual
