import dataclasses
import math

import pytest

from budgetlm.errors import ConfigError
from budgetlm.model.size import body_parameters, compute_parameters, parameters
from budgetlm.recipe.oracle import expected_peak_bytes, expected_speed, expected_tokens, model_of
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.scale import at_rung, at_target, memory_violation, miniature, truncated
from budgetlm.train.compilation import Compilation
from budgetlm.train.memory import MemoryModel

TARGET = 10_000.0
RECIPE = Recipe(
    depth=8, width=256, batch_tokens=16_384, peak_lr=4e-3, schedule="wsd", cooldown=0.3, weight_decay=0.1, optimizer="adamw"
)


def per_parameter(config, world):
    return expected_speed(config, world) * config.seconds / compute_parameters(config.model)


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


def test_a_truncated_recipe_is_the_whole_one_in_less_time(world):
    whole, short = at_target(RECIPE, TARGET, world), truncated(RECIPE, TARGET / 64, TARGET, world)
    assert short == dataclasses.replace(whole, seconds=TARGET / 64)
    assert truncated(RECIPE, TARGET, TARGET, world) == whole
    compiling = dataclasses.replace(world, compile="auto", compilation=Compilation(gain=1.2, seconds=30.0))
    assert at_target(RECIPE, TARGET, compiling).compile
    assert not truncated(RECIPE, TARGET / 1024, TARGET, compiling).compile


def test_the_study_says_what_stands_for_a_recipe_on_a_rung(world):
    arguments = (RECIPE, TARGET / 16, TARGET)
    assert at_rung(*arguments, world) == miniature(*arguments, world)
    assert at_rung(*arguments, dataclasses.replace(world, proxy="truncate")) == truncated(*arguments, world)


def test_learning_rate_rises_and_batch_falls_down_the_ladder_by_the_law(world):
    runs = [miniature(RECIPE, TARGET / r, TARGET, world) for r in (1, 4, 16, 64)]
    rates, batches = [r.optimizer.peak_lr for r in runs], [r.batch_tokens for r in runs]
    assert rates == sorted(rates)
    assert batches == sorted(batches, reverse=True)
    small, whole = runs[2], runs[0]
    shrunk = body_parameters(small.model) / body_parameters(whole.model)
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


MOVING = {
    "cooldown_shape": "sqrt",
    "batch_ramp": 0.3,
    "momentum_warmup": 0.1,
    "short_sequences": 0.2,
    "weight_decay_schedule": "linear",
}


def test_what_is_a_share_of_the_run_is_kept_in_miniatures(world):
    recipe = dataclasses.replace(RECIPE, ema=0.1, embedding_lr=2.0, **MOVING)
    for ratio in (1, 16):
        config = miniature(recipe, TARGET / ratio, TARGET, world)
        assert {name: getattr(config.schedule, name) for name in MOVING} == MOVING
        assert (config.ema, config.optimizer.embedding_lr) == (0.1, 2.0)


def test_a_batch_ramp_costs_a_little_speed_because_the_optimizers_part_of_a_step_is_larger(world):
    ramped = dataclasses.replace(RECIPE, batch_ramp=0.4)
    plain, slower = (at_target(recipe, TARGET, world) for recipe in (RECIPE, ramped))
    assert slower.batch_tokens == plain.batch_tokens
    ratio = expected_speed(slower, world) / expected_speed(plain, world)
    assert 0.8 < ratio < 1
    tokens = [expected_tokens(r, plain.model, plain.batch_tokens, TARGET, world) for r in (RECIPE, ramped)]
    assert tokens[1] / tokens[0] == pytest.approx(ratio, rel=0.01)


def test_schedule_free_keeps_its_rate_and_has_no_second_average(world):
    free = dataclasses.replace(RECIPE, optimizer="schedulefree", ema=0.1, warmup=0.02)
    config = miniature(free, TARGET / 16, TARGET, world)
    assert (config.schedule.shape, config.schedule.warmup, config.ema) == ("constant", 0.02, 0.0)


def test_an_average_is_reckoned_with_where_memory_is_short(world):
    averaged = dataclasses.replace(RECIPE, ema=0.1)
    more = memory_violation(averaged, TARGET, world) - memory_violation(RECIPE, TARGET, world)
    assert more * 2**30 == pytest.approx(4 * parameters(model_of(RECIPE, world)))
    tight = with_room_for(peak(at_target(RECIPE, TARGET, world), world), world)
    assert at_target(averaged, TARGET, tight).micro_batch_sequences < at_target(RECIPE, TARGET, tight).micro_batch_sequences


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


def peak(config, world, **changes):
    return expected_peak_bytes(dataclasses.replace(config, **changes), world)


def with_room_for(bytes_: float, world, share=0.7):
    """The world on a device whose usable memory is just so much, by a heap as it is; share 0.9 by a compact one."""
    return dataclasses.replace(world, memory_bytes=math.ceil(bytes_ / share) + 1)


def test_the_micro_batch_is_the_largest_that_fits(world):
    roomy = at_target(RECIPE, TARGET, world)
    assert (roomy.micro_batch_sequences, roomy.checkpoint_activations) == (16, False)
    for sequences in (5, 1):
        tight = with_room_for(peak(roomy, world, micro_batch_sequences=sequences), world)
        config = at_target(RECIPE, TARGET, tight)
        assert (config.micro_batch_sequences, config.checkpoint_activations) == (sequences, False)
        assert config.batch_tokens == roomy.batch_tokens
        assert expected_tokens(RECIPE, config.model, config.batch_tokens, TARGET, tight) < expected_tokens(
            RECIPE, config.model, config.batch_tokens, TARGET, world
        )


LONG = dataclasses.replace(RECIPE, depth=24, width=64)
"""A recipe whose activations outweigh its weights."""


def test_activations_are_checkpointed_only_where_one_sequence_does_not_fit_otherwise(world):
    world = dataclasses.replace(world, context_length=512, micro_batch_tokens=8192, vocab_size=320, eval_tokens=512)
    one = peak(at_target(LONG, TARGET, world), world, micro_batch_sequences=1)
    tight = with_room_for(0.8 * one, world)
    config = at_target(LONG, TARGET, tight)
    assert (config.checkpoint_activations, config.compact_heap) == (True, False)
    assert peak(config, tight) <= tight.fitting_bytes(compact_heap=False)
    more = config.micro_batch_sequences + 1
    assert peak(config, tight, micro_batch_sequences=more) > tight.fitting_bytes(compact_heap=False)
    assert memory_violation(LONG, TARGET, tight) <= 0


def test_checkpointing_is_done_where_it_is_asked_for_and_never_where_it_is_forbidden(world):
    products = dataclasses.replace(world, products_up_to=64)
    config = at_target(RECIPE, TARGET, dataclasses.replace(products, checkpoint_activations="on"))
    assert (config.checkpoint_activations, config.compact_heap, config.products_length) == (True, False, 64)
    one = peak(at_target(LONG, TARGET, world), world, micro_batch_sequences=1)
    thrifty = peak(at_target(LONG, TARGET, world), world, micro_batch_sequences=1, checkpoint_activations=True)
    tight = with_room_for((one + thrifty) / 2, world, share=0.9)
    assert at_target(LONG, TARGET, tight).checkpoint_activations
    assert memory_violation(LONG, TARGET, tight) < 0
    forbidden = dataclasses.replace(tight, checkpoint_activations="off")
    with pytest.raises(ConfigError, match="set `train.checkpoint_activations` to `auto`, or raise `train.memory_gb`"):
        at_target(LONG, TARGET, forbidden)
    assert memory_violation(LONG, TARGET, forbidden) > 0
    roomier = dataclasses.replace(with_room_for(1.01 * one, world, share=0.9), checkpoint_activations="off")
    config = at_target(LONG, TARGET, roomier)
    assert (config.checkpoint_activations, config.compact_heap) == (False, True)


def test_attention_by_products_is_reckoned_with_and_left_where_memory_is_short(world):
    world = dataclasses.replace(world, context_length=512, micro_batch_tokens=8192, vocab_size=320, eval_tokens=512)
    plain, products = world, dataclasses.replace(world, products_up_to=512)
    fused, config = at_target(LONG, TARGET, plain), at_target(LONG, TARGET, products)
    assert config.products_length == 512
    assert peak(config, products) > 1.1 * peak(fused, plain)
    short = dataclasses.replace(world, products_up_to=128)
    assert at_target(dataclasses.replace(LONG, short_sequences=0.5), TARGET, short).products_length == 128
    assert at_target(dataclasses.replace(LONG, short_sequences=0.0), TARGET, short).products_length == 0
    again = peak(config, products, micro_batch_sequences=1, checkpoint_activations=True)
    config = at_target(LONG, TARGET, with_room_for(1.01 * again, products))
    assert (config.checkpoint_activations, config.products_length) == (True, 512)
    config = at_target(LONG, TARGET, with_room_for(0.97 * again, products))
    assert (config.checkpoint_activations, config.products_length) == (True, 0)


def test_a_compact_heap_is_the_last_resort_and_only_on_a_cpu(world):
    world = dataclasses.replace(world, memory=MemoryModel((1.5, 0.0)))
    roomy = at_target(RECIPE, TARGET, world)
    assert not roomy.compact_heap
    least = peak(roomy, world, micro_batch_sequences=1, checkpoint_activations=True, compact_heap=True)
    tight = with_room_for(1.01 * least, world, share=0.9)
    config = at_target(RECIPE, TARGET, tight)
    assert (config.micro_batch_sequences, config.checkpoint_activations, config.compact_heap) == (1, True, True)
    gpu = dataclasses.replace(tight, device="cuda")
    with pytest.raises(ConfigError, match="MB to train"):
        at_target(RECIPE, TARGET, gpu)


def test_a_recipe_too_large_for_the_memory_is_refused_before_it_is_paid_for(world):
    small_machine = dataclasses.replace(world, memory_bytes=2**24)
    with pytest.raises(ConfigError, match="121 MB to train, one sequence at a time, but a run may take 15.1 MB"):
        at_target(RECIPE, TARGET, small_machine)
    with pytest.raises(ConfigError, match="MB to train"):
        miniature(RECIPE, TARGET / 4, TARGET, small_machine)


def test_the_violation_says_by_how_much_the_thriftiest_final_exceeds_the_memory(world):
    violations = [
        memory_violation(dataclasses.replace(RECIPE, width=width), TARGET, world) for width in (64, 128, 256, 512, 1024)
    ]
    assert violations == sorted(violations)
    assert violations[0] == pytest.approx(-0.9 * world.memory_bytes / 2**30, rel=0.05)
    config = at_target(RECIPE, TARGET, world)
    least = min(peak(config, world, micro_batch_sequences=1, checkpoint_activations=c) for c in (False, True))
    assert memory_violation(RECIPE, TARGET, with_room_for(least, world, share=0.9)) == pytest.approx(0.0, abs=1e-6)
    assert memory_violation(RECIPE, TARGET, with_room_for(least - 2**20, world, share=0.9)) == pytest.approx(
        2**20 / 2**30, rel=0.01
    )


def test_grouped_heads_survive_shrinking(world):
    grouped = dataclasses.replace(RECIPE, kv_groups=4)
    assert math.isfinite(miniature(grouped, TARGET / 64, TARGET, world).seconds)
