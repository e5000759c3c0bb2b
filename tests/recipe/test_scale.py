import dataclasses
import math

import pytest

from budgetlm.errors import ConfigError
from budgetlm.model.size import compute_parameters
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.scale import at_target, expected_tokens, miniature, model_of

TARGET = 10_000.0
RECIPE = Recipe(depth=8, width=256, batch_tokens=16_384, peak_lr=4e-3, schedule="wsd", cooldown=0.3, weight_decay=0.1)


def per_parameter(config, world):
    speed = world.speed.tokens_per_second(config.model, config.batch_tokens, world.micro_batch_tokens, config.optimizer.name)
    return speed * config.seconds / compute_parameters(config.model)


def test_at_its_target_a_recipe_is_itself(world):
    config = miniature(RECIPE, TARGET, TARGET, world)
    assert (config.model.depth, config.model.width) == (8, 256)
    assert (config.batch_tokens, config.optimizer.peak_lr, config.optimizer.weight_decay) == (16_384, 4e-3, 0.1)
    assert config.seconds == TARGET
    assert config == at_target(RECIPE, TARGET, world)


@pytest.mark.parametrize("ratio", [4, 16, 64])
def test_a_miniature_keeps_tokens_per_parameter_and_aspect_within_its_time(world, ratio):
    whole, small = at_target(RECIPE, TARGET, world), miniature(RECIPE, TARGET / ratio, TARGET, world)
    assert small.seconds <= TARGET / ratio
    assert per_parameter(small, world) == pytest.approx(per_parameter(whole, world), rel=0.25)
    aspect = small.model.width / small.model.depth
    assert 0.6 < aspect / (256 / 8) < 1.6
    assert compute_parameters(small.model) < compute_parameters(whole.model)


def test_learning_rate_rises_and_batch_falls_down_the_ladder_by_the_law(world):
    runs = [miniature(RECIPE, TARGET / r, TARGET, world) for r in (1, 4, 16, 64)]
    rates, batches = [r.optimizer.peak_lr for r in runs], [r.batch_tokens for r in runs]
    assert rates == sorted(rates)
    assert batches == sorted(batches, reverse=True)
    small, whole = runs[2], runs[0]
    shrunk = compute_parameters(small.model) / compute_parameters(whole.model)
    tokens = [expected_tokens(RECIPE, r.model, r.batch_tokens, r.seconds, world) for r in (small, whole)]
    law = shrunk**-0.712 * (tokens[0] / tokens[1]) ** 0.307
    assert rates[2] / rates[0] == pytest.approx(law, rel=0.1)


def test_weight_decay_keeps_its_averaging_time_as_a_share_of_the_run(world):
    def strength(config):
        steps = expected_tokens(RECIPE, config.model, config.batch_tokens, config.seconds, world) / config.batch_tokens
        return config.optimizer.peak_lr * config.optimizer.weight_decay * steps

    whole = miniature(RECIPE, TARGET, TARGET, world)
    for ratio in (4, 16):
        assert strength(miniature(RECIPE, TARGET / ratio, TARGET, world)) == pytest.approx(strength(whole), rel=0.1)


def test_the_schedule_is_the_recipes_own_whole_one(world):
    small = miniature(RECIPE, TARGET / 16, TARGET, world)
    assert (small.schedule.shape, small.schedule.cooldown) == ("wsd", 0.3)


def test_where_the_final_repeats_its_data_a_miniature_repeats_a_slice_as_often(world):
    whole = at_target(RECIPE, TARGET, world)
    tokens = expected_tokens(RECIPE, whole.model, whole.batch_tokens, TARGET, world)
    scarce = dataclasses.replace(world, train_tokens=int(tokens / 5))
    small = miniature(RECIPE, TARGET / 16, TARGET, scarce)
    read = expected_tokens(RECIPE, small.model, small.batch_tokens, small.seconds, scarce)
    assert read / small.unique_tokens == pytest.approx(5, rel=0.1)
    assert miniature(RECIPE, TARGET / 16, TARGET, world).unique_tokens == 0


def test_a_longer_time_than_the_target_gives_a_larger_model(world):
    longer = miniature(RECIPE, 16 * TARGET, TARGET, world)
    assert compute_parameters(longer.model) > 1.5 * compute_parameters(model_of(RECIPE, world))
    assert longer.optimizer.peak_lr < RECIPE.peak_lr


def test_a_recipe_too_large_for_the_memory_is_refused_before_it_is_paid_for(world):
    small_machine = dataclasses.replace(world, memory_bytes=2**24)
    with pytest.raises(ConfigError, match="GiB to train, but the device has 0.0 GiB"):
        at_target(RECIPE, TARGET, small_machine)


def test_grouped_heads_survive_shrinking(world):
    grouped = dataclasses.replace(RECIPE, kv_groups=4)
    assert math.isfinite(miniature(grouped, TARGET / 64, TARGET, world).seconds)
