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
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

from budgetlm.compress.apply import Compression, extra_bytes, shrunk
from budgetlm.compress.layout import artefact_bytes
from budgetlm.errors import ConfigError
from budgetlm.model.size import (
    FP32,
    WIDTH_STEP,
    ModelConfig,
    TrainingMemory,
    body_parameters,
    compute_parameters,
    parameters,
    training_memory,
)
from budgetlm.recipe.recipe import Recipe
from budgetlm.train.compilation import EXPECTED, Compilation
from budgetlm.train.config import Matmul, OptimizerConfig, Precision, RunConfig
from budgetlm.train.memory import MemoryModel, run_memory
from budgetlm.train.schedule import ScheduleConfig, longest_up_to, mean_batch_share
from budgetlm.train.throughput import SpeedModel, paced

Proxy = Literal["miniature", "truncate"]
"""What stands for a recipe on a rung: a smaller model by the rule, or the recipe's own shape, batch and rate in less time."""
PROXIES: tuple[Proxy, ...] = get_args(Proxy)
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
FORWARD, BYTES_OF_AN_UPDATE = 1 / 3, 28
"""Share of a step that is its forward pass; and what AdamW reads and writes of a weight, from which the price of a byte of memory is read off: the
weight, its gradient and two moments in, all but the gradient out, in fp32."""
START_SECONDS = 0.1
"""What building a model and its optimizer takes of a run."""
USABLE_MEMORY, USABLE_BY_A_LOOSE_HEAP = 0.9, 0.7
"""Share of the device's memory that a run may be predicted to need; less on a CPU where the heap keeps what is freed, for that
is hard to predict."""
MANY_EPOCHS = 4.0
"""Beyond about this many repetitions, repeated tokens are worth clearly less than new ones (arXiv:2305.16264)."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What all recipes of a study share: data, device, and what was measured of it."""

    vocab_size: int
    context_length: int
    train_tokens: int
    """Tokens of the training split; of a streamed source that was not all there when the study was planned, about."""
    eval_tokens: int
    full_eval_tokens: int
    micro_batch_tokens: int
    precision: Precision
    bf16_is_fast: bool
    compile: str
    """`on`, `graphs`, `off`, or `auto` for runs in which it pays."""
    device: str
    memory_bytes: int
    clip: float
    speed: SpeedModel
    memory: MemoryModel = field(default_factory=MemoryModel)
    compilation: Compilation = EXPECTED["cpu"]
    matmul: Matmul = "auto"
    products_up_to: int = 0
    """Length of the longest sequences whose attention is by plain products."""
    document_end: int | None = None
    """Id of the end-of-text token where attention stays within documents."""
    proxy: Proxy = "miniature"
    objectives: str = "loss"
    """What recipes are judged by (`records.OBJECTIVES`)."""
    max_model_bytes: int = 0
    """Most that the final's artefact may weigh; 0 for no limit."""
    teacher: str = ""
    """Folder or Hugging Face id of the model that `distil` learns from."""
    teacher_parameters: int = 0
    paces: dict[str, float] = field(default_factory=dict)
    """Measured speed of options that change training, as a multiple of what was foretold."""

    def compiles(self, run_seconds: float) -> bool:
        """Whether a run of this length is compiled."""
        return self.compile in ("on", "graphs") or (self.compile == "auto" and self.compilation.pays(run_seconds))

    @property
    def usable_bytes(self) -> float:
        """Memory that a run may be predicted to need at its thriftiest."""
        return USABLE_MEMORY * self.memory_bytes

    @property
    def thrift(self) -> "tuple[Thrift, ...]":
        """What can be done on this device to save memory, the cheapest first."""
        return THRIFT if self.device == "cpu" else THRIFT[:2]

    def fitting_bytes(self, compact_heap: bool) -> float:
        """Memory that a run may be predicted to need with this heap."""
        loose = self.device == "cpu" and not compact_heap
        return (USABLE_BY_A_LOOSE_HEAP if loose else USABLE_MEMORY) * self.memory_bytes


@dataclass(frozen=True)
class Thrift:
    """What is done to save memory beside a smaller micro-batch; each costs time."""

    checkpoint_activations: bool = False
    """And with it attention by the fused kernel, whatever is faster."""
    compact_heap: bool = False


THRIFT = (Thrift(), Thrift(checkpoint_activations=True), Thrift(checkpoint_activations=True, compact_heap=True))


def model_of(recipe: Recipe, world: World) -> ModelConfig:
    """The recipe's shape at the target."""
    return ModelConfig(
        vocab_size=world.vocab_size,
        context_length=world.context_length,
        depth=recipe.depth,
        width=recipe.width,
        kv_groups=recipe.kv_groups,
        mlp_ratio=recipe.mlp_ratio,
        norm_embedding=recipe.norm_embedding,
        tie_embeddings=recipe.tie_embeddings,
        document_end=world.document_end,
    )


def compression_of(recipe: Recipe, world: World) -> Compression:
    """How the recipe compresses its model.

    Raises:
        ConfigError: its options make no sense together.
    """
    return Compression(
        option=recipe.compression,
        sparsity=recipe.sparsity,
        scope=recipe.prune_scope,  # type: ignore[arg-type]  # checked by Compression
        start=recipe.prune_start,
        end=recipe.prune_end,
        qat_share=recipe.qat_share,
        teacher=world.teacher,
        teacher_parameters=world.teacher_parameters,
        distil_weight=recipe.distil_weight,
        distil_temperature=recipe.distil_temperature,
        distil_top_k=recipe.distil_top_k,
    )


def deployed_bytes(recipe: Recipe, world: World) -> int:
    """Bytes of the recipe's model at the target as it would be deployed, compressed (`compress/layout.py`)."""
    return artefact_bytes(model_of(recipe, world), compression_of(recipe, world))


def expected_tokens(recipe: Recipe, model: ModelConfig, batch_tokens: float, seconds: float, world: World) -> float:
    """Tokens that training reads in `seconds`, by the throughput model, the last evaluation's time taken off.

    Of a batch ramp it knows that the batch is smaller in the mean, so that the optimizer's share of a step is larger.
    """
    sequences, thrift = _forward_pass(model, _sequences(batch_tokens, world), recipe, world)
    micro, again = sequences * world.context_length, thrift.checkpoint_activations
    mean_batch = batch_tokens * mean_batch_share(recipe.batch_ramp)
    speed = _speed(model, mean_batch, micro, recipe.optimizer, again, compression_of(recipe, world), world)
    training = seconds - world.eval_tokens / (3 * speed) - START_SECONDS
    if world.compiles(seconds):
        speed, training = speed * world.compilation.gain, training - world.compilation.seconds
    return max(0.5 * seconds, training) * speed


def expected_speed(config: RunConfig, world: World) -> float:
    """Tokens per second of a run's optimisation steps, by the throughput model."""
    model, micro = config.model, config.micro_batch_sequences * config.model.context_length
    name, again = config.optimizer.name, config.checkpoint_activations
    mean_batch = config.batch_tokens * mean_batch_share(config.schedule.batch_ramp)
    gain = world.compilation.gain if config.compile else 1.0
    return gain * _speed(model, mean_batch, micro, name, again, config.compression, world)


def _speed(
    model: ModelConfig,
    batch_tokens: float,
    micro_batch_tokens: float,
    optimizer: str,
    again: bool,
    compression: Compression,
    world: World,
) -> float:
    """Tokens per second in the mean over a run, which compression may make faster or slower on the way."""
    plain = partial(world.speed.tokens_per_second, batch_tokens=batch_tokens, micro_batch_tokens=micro_batch_tokens)
    whole, small = (
        plain(shape, optimizer=optimizer, checkpoint_activations=again) for shape in (model, shrunk(model, compression))
    )
    return world.paces.get(compression.option, 1.0) * paced(whole, small, compression, world.speed)


def expected_peak_bytes(config: RunConfig, world: World) -> float:
    """Memory that a run needs at its fullest moment, by the memory model."""
    return _priced(run_memory(config), config.compact_heap, world)


def least_bytes(recipe: Recipe, target_seconds: float, world: World) -> float:
    """Memory that the final needs, trained as thriftily as can be: one sequence at a time, activations checkpointed if that helps."""
    config = replace(_unchecked(recipe, target_seconds, world), micro_batch_sequences=1)
    thrifty = replace(config, compact_heap=world.thrift[-1].compact_heap, products_up_to=0)
    return min(expected_peak_bytes(replace(thrifty, checkpoint_activations=again), world) for again in (False, True))


def size_violation(recipe: Recipe, world: World) -> float:
    """Megabytes (1e6 bytes) by which the final's artefact would exceed the study's limit; 0 or less where it keeps it, or there is none."""
    return (deployed_bytes(recipe, world) - world.max_model_bytes) / 1e6 if world.max_model_bytes else 0.0


def too_large(model: ModelConfig, recipe: Recipe, world: World) -> bool:
    """Whether a shape that the recipe is carried to would weigh more than the study allows."""
    return 0 < world.max_model_bytes < artefact_bytes(model, compression_of(recipe, world))


def token_milliseconds(recipe: Recipe, world: World) -> float:
    """Milliseconds in which the final's artefact would write one token, alone and from nothing.

    Nothing of it is measured: by the prices of the throughput model it is a forward pass of one token through every block, for which all weights
    are read once as they are stored. It is for telling recipes of one study apart; what a final measures is another figure.
    """
    prices, compression = world.speed.prices, compression_of(recipe, world)
    model = shrunk(model_of(recipe, world), compression)
    count = compute_parameters(model)
    bits = compression.quantised.bits if compression.quantised else 8 * FP32
    begun = FORWARD * prices.passes * (model.depth + 1)
    return 1e3 * (begun + max(count * bits / 8 * prices.updates / BYTES_OF_AN_UPDATE, 2 * count * prices.products))


def fits(model: ModelConfig, world: World) -> bool:
    """Whether a shape can be trained at all, one sequence at a time, by AdamW: no optimizer keeps more beside the weights."""
    return _pass_bytes(model, 2, "adamw", False, 0, world.thrift[-1], 0, world, 1) <= world.usable_bytes


def memory_violation(recipe: Recipe, target_seconds: float, world: World) -> float:
    """GiB by which the final would exceed the usable memory at its thriftiest; 0 or less where it fits.

    It changes smoothly with the shape, so that a sampler can learn from it how far off a recipe was.
    """
    return (least_bytes(recipe, target_seconds, world) - world.usable_bytes) / 2**30


def at_target(recipe: Recipe, seconds: float, world: World, seed: int = 0) -> RunConfig:
    """The recipe itself, for its whole target of `seconds`.

    Raises:
        ConfigError: the shape is impossible, or would not fit the device's memory.
    """
    return _checked(_unchecked(recipe, seconds, world, seed), recipe, world)


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
        raise ConfigError(
            f"{recipe.summary()} needs about {needed / 1e6:,.0f} MB to train, one sequence at a time, but a run may take "
            f"{world.usable_bytes / 1e6:,.1f} MB. Narrow `space.width` or `space.depth`, or raise `train.memory_gb`."
        )
    return config


def at_rung(recipe: Recipe, seconds: float, target_seconds: float, world: World, seed: int = 0) -> RunConfig:
    """The recipe on a rung of `seconds`, as the study has it done: by `miniature` or by `truncated`, which see."""
    scaled = truncated if world.proxy == "truncate" else miniature
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
    shapes = _shapes(whole.model, seconds / target_seconds)
    shape = min(
        (s for s in shapes if not too_large(s, recipe, world)),  # a final may be longer than the target
        key=lambda s: _distance(s, kept, recipe, seconds, world),
    )
    tokens = expected_tokens(recipe, shape, _batch(recipe, seconds / target_seconds), seconds, world)
    share = min(1.0, max(LEAST_SHARE, kept * compute_parameters(shape) / tokens))
    seconds, tokens = seconds * share, tokens * share

    shrunk, fewer = body_parameters(shape) / body_parameters(whole.model), tokens / tokens_at_target
    batch = max(float(world.context_length), recipe.batch_tokens * fewer**BATCH_BY_TOKENS)
    lr = recipe.peak_lr * shrunk**LR_BY_PARAMETERS * fewer**LR_BY_TOKENS
    steps, steps_at_target = tokens / batch, tokens_at_target / recipe.batch_tokens
    decay = recipe.weight_decay * (recipe.peak_lr * steps_at_target) / (lr * steps)
    epochs = tokens_at_target / world.train_tokens
    unique = math.ceil(tokens / epochs) if epochs > 1 else 0
    config = _run_config(recipe, shape, batch, lr, decay, seconds, unique, world, seed)
    return _checked(config, recipe, world)


def truncated(recipe: Recipe, seconds: float, target_seconds: float, world: World, seed: int = 0) -> RunConfig:
    """The recipe as it is at its target, for `seconds` only: shape, batch, rates and decay kept, its whole schedule in less time.

    What most searches do (Li et al. 2018, Hyperband, arXiv:1603.06560), to be compared with miniatures (docs/LOG.md). It reads as much of
    the data as it comes to.

    Raises:
        ConfigError: the recipe is impossible, or would not fit the device's memory.
    """
    whole = at_target(recipe, target_seconds, world, seed)
    return replace(whole, seconds=seconds, compile=world.compiles(seconds))


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
    sequences = _sequences(batch_tokens, world)
    micro, thrift = _forward_pass(model, sequences, recipe, world)
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
        ema=_averaging_time(recipe),
        batch_sequences=sequences,
        micro_batch_sequences=micro,
        checkpoint_activations=thrift.checkpoint_activations,
        compact_heap=thrift.compact_heap,
        seconds=seconds,
        unique_tokens=unique_tokens,
        eval_tokens=world.eval_tokens,
        precision=world.precision,
        matmul=world.matmul,
        products_up_to=0 if thrift.checkpoint_activations else world.products_up_to,
        bf16_is_fast=world.bf16_is_fast,
        compile=world.compiles(seconds),
        cuda_graphs=world.compile == "graphs",
        compression=compression_of(recipe, world),
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


def _averaging_time(recipe: Recipe) -> float:
    """Share of the run over which weights are averaged; none for schedule-free AdamW, which averages them by itself."""
    return 0.0 if recipe.optimizer == "schedulefree" else recipe.ema


def _sequences(batch_tokens: float, world: World) -> int:
    """Whole sequences of a batch."""
    return max(1, round(batch_tokens / world.context_length))


def _forward_pass(model: ModelConfig, batch_sequences: int, recipe: Recipe, world: World) -> tuple[int, Thrift]:
    """Sequences in one forward pass, and what else is done to fit the memory that there is.

    The largest micro-batch that fits; thrift costs time, so only where not even one sequence fits without it. Where nothing
    fits, the thriftiest way.
    """
    most = max(1, min(batch_sequences, world.micro_batch_tokens // world.context_length))
    for thrift in world.thrift:
        averaged, products = _averaging_time(recipe) > 0, 0
        if not thrift.checkpoint_activations:
            products = longest_up_to(world.products_up_to, model.context_length, recipe.short_sequences)
        beside = extra_bytes(model, compression_of(recipe, world))
        peak = partial(_pass_bytes, model, batch_sequences, recipe.optimizer, averaged, products, thrift, beside, world)
        room = world.fitting_bytes(thrift.compact_heap)
        # Memory grows with the micro-batch, but the whole batch at once is apart: it accumulates no gradients.
        fitting = most if peak(most) <= room else bisect_right(range(1, most), room, key=peak)
        if fitting:
            return fitting, thrift
    return 1, world.thrift[-1]


def _pass_bytes(
    model: ModelConfig,
    batch_sequences: int,
    optimizer: str,
    averaged: bool,
    products_length: int,
    thrift: Thrift,
    beside: int,
    world: World,
    micro_batch_sequences: int,
) -> float:
    counted = training_memory(
        model,
        micro_batch_sequences=micro_batch_sequences,
        optimizer=optimizer,
        precision=world.precision,
        checkpoint_activations=thrift.checkpoint_activations,
        accumulates=batch_sequences > micro_batch_sequences or world.compile == "graphs",
        muon_in_bf16=world.bf16_is_fast,
        averaged=averaged,
        products_length=products_length,
        beside=beside,
    )
    return _priced(counted, thrift.compact_heap, world)


def _priced(counted: TrainingMemory, compact_heap: bool, world: World) -> float:
    """What a process needs for which the formula counts this much; a compact heap takes just that."""
    return (MemoryModel() if compact_heap else world.memory).peak_bytes(counted)


def _batch(recipe: Recipe, share: float) -> float:
    """The batch at a share of the target's time, before the tokens are known: they fall by about its square root."""
    return float(recipe.batch_tokens * share ** (BATCH_BY_TOKENS / 2))


def _shapes(target: ModelConfig, share: float) -> Iterator[ModelConfig]:
    """Shapes up to the target's, with an aspect not far from it; larger ones for more than the target's time."""
    aspect, reach = target.width / target.depth, max(1.0, share ** (1 / 3))
    for depth in range(min(LEAST_DEPTH, target.depth), math.ceil(target.depth * reach) + 1):
        step = WIDTH_STEP * (4 if target.width >= 512 else 1)
        for width in range(step, int(target.width * reach) + 1, step):
            if 1 / MOST_ASPECT <= width / depth / aspect <= MOST_ASPECT:
                groups = target.kv_groups
                try:
                    yield replace(target, depth=depth, width=width)
                except ConfigError:  # too few heads for the groups at this width
                    if groups > 1:
                        yield replace(target, depth=depth, width=width, kv_groups=1)


def _distance(shape: ModelConfig, kept: float, recipe: Recipe, seconds: float, world: World) -> float:
    """How far a shape would be from the recipe at this budget, in logarithms of tokens per parameter and of aspect.

    Too many tokens for the shape are mended by stopping early, so up to LEAST_SHARE they count for little.
    """
    whole = model_of(recipe, world)
    guess = _batch(recipe, (parameters(shape) / parameters(whole)) ** 2)
    tokens = expected_tokens(recipe, shape, guess, seconds, world)
    surplus = math.log(tokens / compute_parameters(shape) / kept)
    mended = min(surplus, -math.log(LEAST_SHARE)) if surplus > 0 else 0.0
    aspect = math.log(shape.width / shape.depth * whole.depth / whole.width)
    return abs(surplus - mended) + 0.3 * mended + 0.5 * abs(aspect)
