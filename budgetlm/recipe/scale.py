"""A recipe at a budget: the transfer rule, as pure functions.

A miniature is the recipe at a share c of the target's device time. It keeps what makes a recipe what it is and scales
the rest:

- tokens per parameter are kept, at the throughput that each size really has, so both fall roughly by sqrt(c);
- the aspect ratio width/depth is kept, but never below two blocks; rounding of the shape is corrected by stopping a little early;
- learning rate and batch move by the exponents of Step Law: `lr ~ N^-0.71 D^0.31`, `batch ~ D^0.57` (arXiv:2503.04715),
  with D the tokens and N the parameters of the blocks. (In models this small the head is most of what computes. Measured, the best
  rate of a 1/16 miniature was 2.7 times the target's, where this says 3.5, and N with the head 1.6: docs/LOG.md.)
- weight decay keeps its averaging time as a share of the run: `lr · decay · steps` is constant (arXiv:2405.13698);
- the schedule is the recipe's own, annealed to the miniature's own end, and so is whatever else is a share of the run: batch
  ramp, warm-up of the momentum, averaging time of the weights;
- where the final would repeat its data, a miniature reads a smaller slice and repeats it as often (arXiv:2305.16264).
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from operator import itemgetter

from budgetlm.compress.layout import artefact_bytes
from budgetlm.errors import ConfigError
from budgetlm.model.size import WIDTH_STEP, ModelConfig, body_parameters, compute_parameters, parameters, round_width
from budgetlm.recipe.oracle import (
    averaging_time,
    compiles,
    compression_of,
    expected_peak_bytes,
    expected_tokens,
    forward_pass,
    model_of,
    of_final,
    too_large,
    whole_sequences,
)
from budgetlm.recipe.recipe import Recipe, shape_values
from budgetlm.recipe.world import World
from budgetlm.train.config import OptimizerConfig, RunConfig
from budgetlm.train.schedule import ScheduleConfig

LR_BY_PARAMETERS, LR_BY_TOKENS, BATCH_BY_TOKENS = -0.712, 0.307, 0.571
"""Exponents of Step Law (arXiv:2503.04715, equation 1)."""
LEAST_SHARE = 0.7
"""A miniature whose rounded shape is too small stops early to keep tokens per parameter, at this share of its rung or later."""
LEAST_DEPTH = 2
"""Miniatures of deeper recipes keep at least two blocks: what two attention layers can do together (induction heads,
arXiv:2209.11895) one cannot, so a single block is another kind of model rather than a smaller one."""
MOST_ASPECT = 4.0
"""How far a miniature's aspect may be from the recipe's. With a factor of 2, small miniatures of two blocks had no shape
narrow enough to keep their tokens per parameter (2 instead of 27)."""
MANY_EPOCHS = 4.0
"""Beyond about this many repetitions, repeated tokens are worth clearly less than new ones (arXiv:2305.16264)."""


def least_bytes(recipe: Recipe, target_seconds: float, world: World) -> float:
    """Memory that the final needs, trained as thriftily as it may be: one sequence at a time, activations checkpointed if that helps."""
    config = replace(_unchecked(recipe, target_seconds, world), micro_batch_sequences=1)
    world = of_final(world, config)
    thrifty = replace(config, compact_heap=world.thrift[-1].compact_heap, products_up_to=0)
    again = {way.checkpoint_activations for way in world.thrift}
    return min(expected_peak_bytes(replace(thrifty, checkpoint_activations=each), world) for each in again)


def memory_violation(recipe: Recipe, target_seconds: float, world: World) -> float:
    """GiB by which the final would exceed the usable memory at its thriftiest; 0 or less where it fits.

    It changes smoothly with the shape, so that a sampler can learn from it how far off a recipe was.
    """
    return (least_bytes(recipe, target_seconds, world) - world.usable_bytes) / 2**30


def at_target(recipe: Recipe, seconds: float, world: World, seed: int = 0) -> RunConfig:
    """The recipe itself, for its whole target of `seconds`.

    Raises:
        ConfigError: the shape is impossible, or would not fit the memory of the devices that are to train it.
    """
    config = _unchecked(recipe, seconds, world, seed)
    if (spread := of_final(world, config)) is not world:
        config, world = _unchecked(recipe, seconds, spread, seed), spread
    return _checked(config, recipe, world)


def _unchecked(recipe: Recipe, seconds: float, world: World, seed: int = 0) -> RunConfig:
    model = model_of(recipe, world)
    return _run_config(recipe, model, recipe.batch_tokens, recipe.peak_lr, recipe.weight_decay, seconds, 0, world, seed)


def _checked(config: RunConfig, recipe: Recipe, world: World) -> RunConfig:
    """The run, if it fits the memory, and its artefact the limit."""
    if too_large(config.model, recipe, world):
        raise ConfigError(
            f"{recipe.summary()} would weigh {artefact_bytes(config.model, config.compression) / 1e6:,.4g} MB, but `search.max_model_mb` is "
            f"{world.max_model_bytes / 1e6:,.3g}. Narrow `space.width` or `space.depth`, or raise it."
        )
    needed = expected_peak_bytes(config, world)
    if needed > world.fitting_bytes(config.compact_heap):
        less = ", set `train.checkpoint_activations` to `auto`" if world.checkpoint_activations == "off" else ""
        raise ConfigError(
            f"{recipe.summary()} needs about {needed / 1e6:,.0f} MB to train, one sequence at a time, but a run may take "
            f"{world.usable_bytes / 1e6:,.1f} MB. Narrow `space.width` or `space.depth`{less}, or raise `train.memory_gb`."
        )
    return config


def at_rung(recipe: Recipe, seconds: float, target_seconds: float, world: World, seed: int = 0) -> RunConfig:
    """The recipe on a rung of `seconds`, as the study has it done: by `miniature` or by `truncated`, which see."""
    scaled = truncated if world.proxy == "truncate" else miniature
    return scaled(recipe, seconds, target_seconds, world, seed)


def at_length(recipe: Recipe, seconds: float, target_seconds: float, world: World, seed: int = 0) -> RunConfig:
    """The recipe for a final that is not as long as its target: larger or smaller by the rule, or of its own shape where its weights are inherited.

    Raises:
        ConfigError: as `miniature`.
    """
    scaled = truncated if world.init else miniature
    return scaled(recipe, seconds, target_seconds, world, seed)


def miniature(recipe: Recipe, seconds: float, target_seconds: float, world: World, seed: int = 0) -> RunConfig:
    """The recipe at `seconds`, where it is meant for `target_seconds`: usually less, but the same rule scales it up.

    Returns:
        A run of at most `seconds`; the recipe itself where that is the target.

    Raises:
        ConfigError: the recipe or its miniature is impossible, or would not fit the device's memory.
    """
    whole = at_target(recipe, target_seconds, world, seed)
    if seconds == target_seconds:
        return whole
    tokens_at_target = expected_tokens(recipe, whole.model, recipe.batch_tokens, target_seconds, world)
    kept = tokens_at_target / compute_parameters(whole.model)
    shape = _nearest_shape(recipe, whole.model, kept, seconds, seconds / target_seconds, world)
    tokens = expected_tokens(recipe, shape, _batch(recipe, seconds / target_seconds), seconds, world)
    share = min(1.0, max(LEAST_SHARE, kept * compute_parameters(shape) / tokens))
    seconds, tokens = seconds * share, tokens * share

    shrunk = body_parameters(shape) / body_parameters(whole.model)
    batch, lr, decay = _carried(recipe, shrunk, tokens_at_target, tokens, world)
    epochs = tokens_at_target / world.train_tokens
    unique = math.ceil(tokens / epochs) if epochs > 1 else 0
    config = _run_config(recipe, shape, batch, lr, decay, seconds, unique, world, seed)
    return _checked(config, recipe, world)


def _carried(
    recipe: Recipe, shrunk: float, tokens_at_target: float, tokens: float, world: World
) -> tuple[float, float, float]:
    """Batch, rate and decay of a recipe for a model with `shrunk` times the parameters that reads other tokens, by the laws above."""
    fewer = tokens / tokens_at_target
    batch = max(float(world.context_length), recipe.batch_tokens * fewer**BATCH_BY_TOKENS)
    lr = recipe.peak_lr * shrunk**LR_BY_PARAMETERS * fewer**LR_BY_TOKENS
    steps, steps_at_target = tokens / batch, tokens_at_target / recipe.batch_tokens
    return batch, lr, recipe.weight_decay * (recipe.peak_lr * steps_at_target) / (lr * steps)


def reshaped(recipe: Recipe, shape: ModelConfig, target_seconds: float, world: World) -> Recipe:
    """The recipe for a model of another shape, whose weights are given: batch, rate and decay move as a miniature's do.

    Args:
        shape: of which what a recipe says of one is taken.
        target_seconds: that both are meant for.
    """
    given = replace(recipe, **shape_values(shape))
    if given == recipe:
        return recipe
    own, model = model_of(recipe, world), model_of(given, world)
    before, now = (expected_tokens(r, m, r.batch_tokens, target_seconds, world) for r, m in ((recipe, own), (given, model)))
    batch, lr, decay = _carried(recipe, body_parameters(model) / body_parameters(own), before, now, world)
    return replace(given, batch_tokens=whole_sequences(batch, world) * world.context_length, peak_lr=lr, weight_decay=decay)


def truncated(recipe: Recipe, seconds: float, target_seconds: float, world: World, seed: int = 0) -> RunConfig:
    """The recipe as it is at its target, for `seconds` only: shape, batch, rates and decay kept, its whole schedule in less time.

    What most searches do (Li et al. 2018, Hyperband, arXiv:1603.06560), to be compared with miniatures (docs/LOG.md). It reads as much of
    the data as it comes to.

    Raises:
        ConfigError: the recipe is impossible, or would not fit the device's memory.
    """
    if seconds == target_seconds:
        return at_target(recipe, seconds, world, seed)
    whole = _checked(_unchecked(recipe, target_seconds, world, seed), recipe, world)  # a rung's is one device alone
    return replace(whole, seconds=seconds, compile=compiles(recipe, seconds, world))


def epochs_at_target(recipe: Recipe, target_seconds: float, world: World) -> float:
    """How often the final would read its training data."""
    model = model_of(recipe, world)
    return expected_tokens(recipe, model, recipe.batch_tokens, target_seconds, world) / world.train_tokens


def _run_config(
    recipe: Recipe,
    model: ModelConfig,
    batch_tokens: float,
    lr: float,
    decay: float,
    seconds: float,
    unique_tokens: int,
    world: World,
    seed: int,
) -> RunConfig:
    sequences = whole_sequences(batch_tokens, world)
    micro, thrift = forward_pass(model, sequences, recipe, world)
    return RunConfig(
        model=model,
        optimizer=OptimizerConfig(
            name=recipe.optimizer,  # type: ignore[arg-type]  # checked by OptimizerConfig
            peak_lr=lr,
            embedding_lr=recipe.embedding_lr,
            weight_decay=min(decay, 0.5 / lr),
            clip=world.clip,
        ),
        schedule=_schedule(recipe),
        ema=averaging_time(recipe),
        batch_sequences=sequences,
        micro_batch_sequences=micro,
        checkpoint_activations=thrift.checkpoint_activations,
        compact_heap=thrift.compact_heap,
        seconds=seconds,
        unique_tokens=unique_tokens,
        eval_tokens=world.eval_tokens,
        precision=world.precision,
        matmul=world.matmul,
        products_up_to=0 if thrift.fused else world.products_up_to,
        bf16_is_fast=world.bf16_is_fast,
        compile=compiles(recipe, seconds, world),
        compile_or_fail=world.must_compile,
        cuda_graphs=world.compile == "graphs",
        compression=compression_of(recipe, world),
        init=world.init,
        device=world.device,
        seed=seed,
    )


def _schedule(recipe: Recipe) -> ScheduleConfig:
    """The recipe's schedule; schedule-free AdamW's rate does not fall, for averaging does its work (arXiv:2405.15682)."""
    return ScheduleConfig(
        shape="constant" if recipe.optimizer == "schedulefree" else recipe.schedule,  # type: ignore[arg-type]
        warmup=recipe.warmup,
        cooldown=recipe.cooldown,
        cooldown_shape=recipe.cooldown_shape,  # type: ignore[arg-type]  # all checked by ScheduleConfig
        weight_decay_schedule=recipe.weight_decay_schedule,  # type: ignore[arg-type]
        batch_ramp=recipe.batch_ramp,
        momentum_warmup=recipe.momentum_warmup,
        short_sequences=recipe.short_sequences,
    )


def _batch(recipe: Recipe, share: float) -> float:
    """The batch at a share of the target's time, before the tokens are known: they fall by about its square root."""
    return float(recipe.batch_tokens * share ** (BATCH_BY_TOKENS / 2))


def _sizes(target: ModelConfig, share: float) -> Iterator[tuple[int, int]]:
    """Depths and widths up to the target's, with an aspect not far from it; larger ones for more than the target's time."""
    aspect, reach = target.width / target.depth, max(1.0, share ** (1 / 3))
    step = WIDTH_STEP * (4 if target.width >= 512 else 1)
    for depth in range(min(LEAST_DEPTH, target.depth), math.ceil(target.depth * reach) + 1):
        for width in range(step, int(target.width * reach) + 1, step):
            if 1 / MOST_ASPECT <= width / depth / aspect <= MOST_ASPECT:
                yield depth, width


def _shape(target: ModelConfig, depth: int, width: int) -> ModelConfig | None:
    """The target's shape at another size; None where there is none.

    An embedding's rank keeps its share of the width, and as many layers in a row share a block as at the target.
    """
    rank = target.embedding_rank and round_width(target.embedding_rank * width / target.width)
    for groups in dict.fromkeys((target.kv_groups, 1)):
        with suppress(ConfigError):  # too few heads for the groups at this width
            return replace(target, depth=depth, width=width, embedding_rank=rank, kv_groups=groups)
    return None


def _nearest_shape(
    recipe: Recipe, whole: ModelConfig, kept: float, seconds: float, share: float, world: World
) -> ModelConfig:
    """The shape that is nearest to the recipe at a share of its target's time.

    Taken by their aspects, so that most need not be weighed: what a shape's aspect alone puts it off is the least that it can be off.
    """
    best, least = None, math.inf
    for away, size in sorted(((_aspect_off(*size, whole), size) for size in _sizes(whole, share)), key=itemgetter(0)):
        if away >= least:
            break
        shape = _shape(whole, *size)
        if shape is None or too_large(shape, recipe, world):  # a final may be longer than the target
            continue
        if (off := away + _tokens_off(shape, kept, recipe, seconds, world)) < least:
            best, least = shape, off
    assert best
    return best


def _aspect_off(depth: int, width: int, whole: ModelConfig) -> float:
    """How far a shape's aspect is from the recipe's, as `_tokens_off` counts."""
    return 0.5 * abs(math.log(width / depth * whole.depth / whole.width))


def _tokens_off(shape: ModelConfig, kept: float, recipe: Recipe, seconds: float, world: World) -> float:
    """How far a shape's tokens per parameter would be from the recipe's at this budget, a logarithm.

    Too many tokens for the shape are mended by stopping early, so up to LEAST_SHARE they count for little.
    """
    guess = _batch(recipe, (parameters(shape) / parameters(model_of(recipe, world))) ** 2)
    tokens = expected_tokens(recipe, shape, guess, seconds, world)
    surplus = math.log(tokens / compute_parameters(shape) / kept)
    mended = min(surplus, -math.log(LEAST_SHARE)) if surplus > 0 else 0.0
    return abs(surplus - mended) + 0.3 * mended
