"""What a recipe will take, before anything is paid for: time, memory, and what its artefact weighs."""

from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from budgetlm.compress.apply import Compression, extra_bytes, shrunk
from budgetlm.compress.layout import artefact_bytes
from budgetlm.errors import ConfigError
from budgetlm.model.footprint import TrainingMemory, training_memory
from budgetlm.model.kinds import FP32
from budgetlm.model.size import ModelConfig, compute_parameters
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.world import Thrift, World
from budgetlm.train.config import RunConfig
from budgetlm.train.memory import MemoryModel, run_memory
from budgetlm.train.parallel.kinds import BY_THEMSELVES, Kind, check_kind
from budgetlm.train.schedule import longest_up_to, mean_batch_share
from budgetlm.train.throughput import paced

FORWARD, BYTES_OF_AN_UPDATE = 1 / 3, 28
"""Share of a step that is its forward pass; and what AdamW reads and writes of a weight, from which the price of a byte of memory is read off: the
weight, its gradient and two moments in, all but the gradient out, in fp32."""
START_SECONDS = 0.1
"""What building a model and its optimizer takes of a run."""


def model_of(recipe: Recipe, world: World) -> ModelConfig:
    """The recipe's shape at the target."""
    return ModelConfig(
        vocab_size=world.vocab_size,
        context_length=world.context_length,
        depth=recipe.depth,
        width=recipe.width,
        kv_groups=recipe.kv_groups,
        window=recipe.window,
        mlp_ratio=recipe.mlp_ratio,
        norm_embedding=recipe.norm_embedding,
        tie_embeddings=recipe.tie_embeddings,
        share_layers=recipe.share_layers,
        embedding_rank=recipe.embedding_rank,
        rope_theta=world.rope_theta,
        document_end=world.document_end,
        mixer=recipe.mixer,
        mask_token=world.mask_token,
        mask_rate=recipe.mask_rate,
    )


def compression_of(recipe: Recipe, world: World) -> Compression:
    """How the recipe compresses its model.

    Raises:
        ConfigError: its options make no sense together.
    """
    return _compression(
        option=recipe.compression,
        sparsity=recipe.sparsity,
        scope=recipe.prune_scope,
        start=recipe.prune_start,
        end=recipe.prune_end,
        qat_share=recipe.qat_share,
        teacher=world.teacher,
        teacher_parameters=world.teacher_parameters,
        distil_weight=recipe.distil_weight,
        distil_temperature=recipe.distil_temperature,
        distil_top_k=recipe.distil_top_k,
    )


_compression = lru_cache(256)(Compression)
"""Made once of the same values: shapes of one recipe are weighed by the hundred."""


def deployed_bytes(recipe: Recipe, world: World) -> int:
    """Bytes of the recipe's model at the target as it would be deployed, compressed (`compress/layout.py`)."""
    return artefact_bytes(model_of(recipe, world), compression_of(recipe, world))


def expected_tokens(recipe: Recipe, model: ModelConfig, batch_tokens: float, seconds: float, world: World) -> float:
    """Tokens that training reads in `seconds`, by the throughput model, the last evaluation's time taken off.

    Of a batch ramp it knows that the batch is smaller in the mean, so that the optimizer's share of a step is larger.
    """
    sequences, thrift = forward_pass(model, whole_sequences(batch_tokens, world), recipe, world)
    micro, again = sequences * world.context_length, thrift.checkpoint_activations
    mean_batch = batch_tokens * mean_batch_share(recipe.batch_ramp)
    speed = _speed(model, mean_batch, micro, recipe.optimizer, again, compression_of(recipe, world), world)
    training = seconds - world.eval_tokens / (3 * speed) - START_SECONDS
    if compiles(recipe, seconds, world):
        speed, training = speed * world.compilation.gain, training - world.compilation.seconds
    return max(0.5 * seconds, training) * speed


def compiles(recipe: Recipe, seconds: float, world: World) -> bool:
    """Whether a run of the recipe is compiled (`World.compiles`)."""
    usual = recipe.mixer == "attention" and not compression_of(recipe, world).changes_training
    return world.compiles(seconds, usual=usual)


def reach(recipe: Recipe, target_seconds: float, world: World) -> dict[str, float]:
    """What a recipe itself comes to in its time, as the fields of its records that say so."""
    model = model_of(recipe, world)
    tokens = expected_tokens(recipe, model, recipe.batch_tokens, target_seconds, world)
    return {"target_tokens": tokens, "target_compute_parameters": compute_parameters(model)}


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
    plain = partial(
        world.speed.tokens_per_second,
        batch_tokens=batch_tokens,
        micro_batch_tokens=micro_batch_tokens,
        optimizer=optimizer,
        checkpoint_activations=again,
    )
    whole = plain(model)
    small = plain(shrunk(model, compression)) if compression.shrinks else whole
    return world.paces.get(compression.option, 1.0) * paced(whole, small, compression, world.speed)


def expected_peak_bytes(config: RunConfig, world: World) -> float:
    """Memory that a run needs at its fullest moment, by the memory model."""
    return _priced(run_memory(config, world.shards, offload=world.offload), config.compact_heap, world)


@dataclass(frozen=True)
class Way:
    """A way in which several devices may train together."""

    kind: Kind
    world: World
    """That one of them is in."""
    parts: int = 1
    """Devices that hold a network together."""


def team_ways(world: World, devices: int, parallel: str, *, offload: bool = False) -> list[Way]:
    """The ways in which so many devices may train together, the faster first.

    What is counted of `tp` and `pp` is that weights, gradients and optimizer state are divided evenly, as by `fsdp`; `ddp,tp` divides them among as few as it can, `fsdp,tp` among all, in groups as small as can be. Processes on a CPU share
    its memory, and there parts were measured to take more of it than a whole does (docs/LOG.md): they are for trying out.

    Args:
        parallel: the one that is asked for, or `auto`.
        offload: whether parts are to wait in the processor's memory, so that there are to be parts.
    """
    one = replace(world, memory_bytes=world.memory_bytes // devices) if world.device == "cpu" else world
    counted = one.device != "cpu"

    def way(kind: Kind, shards: int, parts: int = 0) -> Way:
        # Parts keep no copies of whole matrices, and under autocast a step is the same to the bit.
        precision = "bf16" if kind != "ddp" and one.precision == "bf16-master" else one.precision
        spread = replace(
            one,
            shards=shards if counted else 1,
            offload=offload and counted,
            precision=precision,
            final_devices=1,
            final_offload=False,
        )
        return Way(kind, spread, parts or shards)

    groups = [parts for parts in range(2, devices) if devices % parts == 0]
    ways = [
        way("ddp", 1),
        *(way("ddp,tp", parts) for parts in groups or [devices]),
        way("fsdp,tp", devices, min(groups, default=devices)),
        *(way(kind, devices) for kind in ("fsdp", "tp", "pp")),
    ]
    itself = ("fsdp",) if offload else BY_THEMSELVES if counted else BY_THEMSELVES[:1]
    return [each for each in ways if each.kind == parallel or (parallel == "auto" and each.kind in itself)]


def of_final(world: World, config: RunConfig | None = None) -> World:
    """The world of one of the devices that are to train the study's final: spread over all of them as far as may be.

    Args:
        config: of the final, which may be of a kind that is not trained in parts; left out where that is not known.
    """
    if world.device == "cpu" or (world.final_devices == 1 and not world.final_offload):
        return world
    ways = team_ways(world, world.final_devices, world.final_parallel, offload=world.final_offload)
    for way in reversed(ways):
        with suppress(ConfigError):
            if config:
                check_kind(config, way.kind, world.final_devices, way.parts)
            return way.world
    return world


def fits_in(config: RunConfig, world: World) -> bool:
    """Whether a run is predicted to fit."""
    return expected_peak_bytes(config, world) <= world.fitting_bytes(config.compact_heap)


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
    """Whether a shape can be a final's at all, one sequence at a time, by AdamW: no optimizer keeps more beside the weights."""
    world = of_final(world)
    return _pass_bytes(model, 2, "adamw", False, 0, world.thrift[-1], 0, world, 1) <= world.usable_bytes


def averaging_time(recipe: Recipe) -> float:
    """Share of the run over which weights are averaged; none for schedule-free AdamW, which averages them by itself."""
    return 0.0 if recipe.optimizer == "schedulefree" else recipe.ema


def whole_sequences(batch_tokens: float, world: World) -> int:
    """Whole sequences of a batch."""
    return max(1, round(batch_tokens / world.context_length))


def forward_pass(model: ModelConfig, batch_sequences: int, recipe: Recipe, world: World) -> tuple[int, Thrift]:
    """Sequences in one forward pass, and what else is done to fit the memory that there is.

    The largest micro-batch that fits; thrift costs time, so only where not even one sequence fits without it. Where nothing
    fits, the thriftiest way.
    """
    most = max(1, min(batch_sequences, world.micro_batch_tokens // world.context_length))
    for thrift in world.thrift:
        averaged, products = averaging_time(recipe) > 0, 0
        if not thrift.fused:
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
        shards=world.shards,
        offload=world.offload,
        device=world.device,
    )
    return _priced(counted, thrift.compact_heap, world)


def _priced(counted: TrainingMemory, compact_heap: bool, world: World) -> float:
    """What a process needs for which the formula counts this much; a compact heap takes just that."""
    return (MemoryModel() if compact_heap else world.memory).peak_bytes(counted)
