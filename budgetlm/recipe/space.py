"""What may be searched: the ranges of a recipe's parameters, by default and as a study file narrows them.

A study file's `[space]` gives each parameter one value (fixed), a list (choices) or a table with `low` and `high`, and
`log` or `step` if wanted (a range). Parameters that it does not name keep the defaults, which follow from the target: a
compute-optimal size at the measured speed, and learning rate and batch around Step Law (arXiv:2503.04715).
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from budgetlm.compress.apply import BY_NAME, SCOPES, Compression, canonical, check_compression
from budgetlm.compress.layout import artefact_bytes
from budgetlm.errors import ConfigError
from budgetlm.model.size import MIXERS, WIDTH_STEP, ModelConfig, body_parameters, round_width
from budgetlm.recipe.oracle import fits
from budgetlm.recipe.recipe import DECODERS_SHAPE, PARAMETERS, SHAPE, Recipe, recipe_from
from budgetlm.recipe.scale import BATCH_BY_TOKENS, LR_BY_PARAMETERS, LR_BY_TOKENS
from budgetlm.recipe.world import World
from budgetlm.train.config import OPTIMIZERS
from budgetlm.train.schedule import COOLDOWN_SHAPES, DECAY_SCHEDULES, SHAPES

if TYPE_CHECKING:
    import optuna

TOKENS_PER_PARAMETER = 20.0
"""Of the default recipe, the embedding apart (Hoffmann et al. 2022, arXiv:2203.15556). In tiny models the head is most of what
computes, and counted with it they came out too small: 13 a parameter of the blocks, 4 with the head, were best (docs/LOG.md)."""
MOST_DEFAULT_LR = 0.02
"""Step Law was fitted from 60 M parameters up; carried down to 0.1 M it asks for more than the best rate, which was 0.02 to 0.03 there
(docs/LOG.md)."""
OFFERED = ("none", "int8", "int4-qat", "prune+int8")
"""Searched by default where size or latency count: what weighs less the further down, each the best of its way (docs/LOG.md)."""
CHOICES: dict[str, tuple[Any, ...]] = {
    "schedule": SHAPES,
    "cooldown_shape": COOLDOWN_SHAPES,
    "optimizer": OPTIMIZERS,
    "weight_decay_schedule": DECAY_SCHEDULES,
    "mixer": MIXERS,
    "norm_embedding": (True, False),
    "tie_embeddings": (True, False),
    "prune_scope": SCOPES,
}
INTEGERS = ("depth", "width", "batch_tokens", "kv_groups", "window", "share_layers", "embedding_rank", "distil_top_k")
LIMITS: dict[str, tuple[float, float]] = {
    "depth": (1, 256),
    "width": (WIDTH_STEP, 32_768),
    "batch_tokens": (1, 2**28),
    "peak_lr": (1e-8, 10),
    "warmup": (0, 0.5),
    "cooldown": (0, 1),
    "embedding_lr": (0.01, 100),
    "weight_decay": (0, 10),
    "batch_ramp": (0, 1),
    "momentum_warmup": (0, 1),
    "short_sequences": (0, 1),
    "ema": (0, 1),
    "mask_rate": (0.01, 0.9),
    "kv_groups": (1, 64),
    "window": (0, 2**20),
    "mlp_ratio": (0.25, 16),
    "share_layers": (1, 256),
    "embedding_rank": (0, 32_768),
    "sparsity": (0, 0.99),
    "prune_start": (0, 1),
    "prune_end": (0, 1),
    "qat_share": (0, 1),
    "distil_weight": (0, 1),
    "distil_temperature": (0.01, 100),
    "distil_top_k": (0, 2**20),
}
COMPRESSION = (
    "compression",
    "sparsity",
    "prune_scope",
    "prune_start",
    "prune_end",
    "qat_share",
    "distil_weight",
    "distil_temperature",
    "distil_top_k",
)
"""What of a recipe says how its model is compressed; nothing of it is searched by default."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    """Whether to sample evenly in the logarithm."""
    step: int = 0
    """Distance between allowed values; whole numbers only, 0 for none."""


@dataclass(frozen=True)
class Choices:
    """A few values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Fixed:
    """One value: not searched."""

    value: Any


Domain = Range | Choices | Fixed
Space = dict[str, Domain]


def unknown_key(key: str, known: Mapping[str, Any] | list[str], where: str) -> ConfigError:
    """The error for a name that nothing reads, with the nearest one that something does."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(sorted(known))}."
    return ConfigError(f"{where} has no `{key}`. {hint}")


def read_space(table: Mapping[str, Any]) -> Space:
    """The `[space]` of a study file.

    Raises:
        ConfigError: a name or a value that no recipe could have.
    """
    space: Space = {}
    for name, value in table.items():
        if name not in PARAMETERS:
            raise unknown_key(name, dict(PARAMETERS), "[space]")
        if isinstance(value, Mapping):
            space[name] = _read_range(name, value)
        elif isinstance(value, list):
            if not value:
                raise ConfigError(f"space.{name} is an empty list, so nothing could be sampled. Give it at least one value.")
            space[name] = Choices(tuple(_checked(name, v) for v in value))
        else:
            space[name] = Fixed(_checked(name, value))
    return space


def _read_range(name: str, table: Mapping[str, Any]) -> Range:
    if name in CHOICES or name == "compression":
        known = CHOICES.get(name, ("none", *BY_NAME))
        raise ConfigError(f"space.{name} is a choice, not a range. Give a list of {', '.join(map(str, known))}.")
    for key in table:
        if key not in ("low", "high", "log", "step"):
            raise unknown_key(key, ["low", "high", "log", "step"], f"space.{name}")
    if "low" not in table or "high" not in table:
        raise ConfigError(f"space.{name} needs both `low` and `high`, e.g. {name} = {{ low = 1, high = 4 }}.")
    low, high = _checked(name, table["low"]), _checked(name, table["high"])
    if low > high:
        raise ConfigError(f"space.{name} has low {low} above high {high}: no value lies between them. Swap them.")
    if table.get("log") and low <= 0:
        raise ConfigError(f"space.{name} is sampled in the logarithm, so `low` must be above 0, not {low}.")
    step = table.get("step", 0)
    if step and (name not in INTEGERS or not isinstance(step, int) or step < 1 or table.get("log")):
        raise ConfigError(f"space.{name}: `step` is a whole number, for whole-number parameters that are not `log`.")
    return Range(low=low, high=high, log=bool(table.get("log", False)), step=step)


def _checked(name: str, value: Any) -> Any:
    if name == "compression":
        return canonical(str(value))
    if name in CHOICES:
        if value not in CHOICES[name] or isinstance(value, bool) != isinstance(CHOICES[name][0], bool):
            known = ", ".join(map(str, CHOICES[name]))
            raise ConfigError(f"space.{name} cannot be {value!r}. Use {known}.")
        return value
    wanted = int if name in INTEGERS else float
    if isinstance(value, bool) or not isinstance(value, int | float) or (wanted is int and value != int(value)):
        raise ConfigError(f"space.{name} cannot be {value!r}: it is a {'whole ' if wanted is int else ''}number.")
    low, high = LIMITS[name]
    if not low <= value <= high:
        raise ConfigError(f"space.{name} cannot be {value}: it lies between {low:g} and {high:g}.")
    if name in ("width", "embedding_rank") and value % WIDTH_STEP:
        raise ConfigError(f"space.{name} {value} is not a multiple of {WIDTH_STEP}. Use {round_width(value)}.")
    return wanted(value)


def compressions(space: Space) -> tuple[str, ...]:
    """The option strings that a space may give a recipe."""
    domain = space.get("compression", Fixed("none"))
    return domain.values if isinstance(domain, Choices) else (domain.value,) if isinstance(domain, Fixed) else ()


# --- defaults that follow from the target ----------------------------------------------------------------------------


def default_recipe(target_seconds: float, world: World, compression: str = "none", inherited: Space | None = None) -> Recipe:
    """A sensible recipe by rule of thumb: compute-optimal size at the measured speed, the rest by Step Law.

    Where the artefact would weigh more than the study allows, it is the largest that does not, trained for longer.

    Args:
        compression: that it has; none unless a study file leaves no choice.
        inherited: the space, where runs begin from given weights, whose shape it settles.
    """
    if world.init and inherited:
        shape = replace(_usual_model(2 * WIDTH_STEP, world), **_inherited_shape(inherited))
        model, tokens = shape, _tokens_read(shape, target_seconds, world)
    else:
        model, tokens = _optimal_model(target_seconds, world, Compression(option=compression))
    n = body_parameters(model)
    batch = math.exp(-0.556) * tokens**BATCH_BY_TOKENS
    lr = math.exp(0.578) * n**LR_BY_PARAMETERS * tokens**LR_BY_TOKENS
    return Recipe(
        depth=model.depth,
        width=model.width,
        batch_tokens=max(1, round(batch / world.context_length)) * world.context_length,
        peak_lr=float(f"{min(MOST_DEFAULT_LR, lr):.3g}"),
        norm_embedding=model.norm_embedding,
        compression=compression,
    )


def _optimal_model(target_seconds: float, world: World, compression: Compression) -> tuple[ModelConfig, float]:
    """The shape that reaches 20 tokens per parameter of its blocks in the target's time, of those that fit the memory; and those tokens.

    Where it would weigh too much, the one of those that do not that comes nearest. There a norm after the embedding, which makes two embeddings of
    one in the artefact, is done without, and the shape may be up to twice as deep.
    """
    best: tuple[float, ModelConfig, float] | None = None
    for width in range(2 * WIDTH_STEP, 4096 + 1, WIDTH_STEP):
        model = _usual_model(width, world)
        if best and not fits(model, world):
            break
        miss, tokens = _miss(model, target_seconds, world)
        if best is None or miss < best[0]:
            best = (miss, model, tokens)
        if tokens / body_parameters(model) < TOKENS_PER_PARAMETER / 4:
            break
    assert best is not None
    if not 0 < world.max_model_bytes < artefact_bytes(best[1], compression):
        return best[1], best[2]
    lean = [
        replace(_usual_model(w, world), norm_embedding=False) for w in range(2 * WIDTH_STEP, best[1].width + 1, WIDTH_STEP)
    ]
    shapes = [replace(model, depth=depth) for model in lean for depth in range(model.depth, 2 * model.depth + 1)]
    fitting = [
        model for model in shapes if artefact_bytes(model, compression) <= world.max_model_bytes and fits(model, world)
    ] or lean[:1]
    _, tokens, model = min(((*_miss(model, target_seconds, world), model) for model in fitting), key=lambda found: found[0])
    return model, tokens


def _usual_model(width: int, world: World) -> ModelConfig:
    """A shape of this width. Narrow models are best with an aspect of about 32, wide ones of 64 and more."""
    return ModelConfig(
        vocab_size=world.vocab_size,
        context_length=world.context_length,
        depth=max(1, round(width / min(96, 32 + width / 16))),
        width=width,
        norm_embedding=True,
        document_end=world.document_end,
        mask_token=world.mask_token,
    )


def _miss(model: ModelConfig, target_seconds: float, world: World) -> tuple[float, float]:
    """How far a shape is from 20 tokens per parameter in the target's time, in logarithms; and its tokens."""
    tokens = _tokens_read(model, target_seconds, world)
    return abs(math.log(tokens / body_parameters(model) / TOKENS_PER_PARAMETER)), tokens


def _tokens_read(model: ModelConfig, target_seconds: float, world: World) -> float:
    """Tokens that a shape reads in the target's time, about."""
    optimizer = str(PARAMETERS["optimizer"].default)
    speed = world.speed.tokens_per_second(model, 4 * world.micro_batch_tokens, world.micro_batch_tokens, optimizer)
    return speed * target_seconds * (world.compilation.gain if world.compiles(target_seconds) else 1.0)


def _inherited_shape(space: Space) -> dict[str, Any]:
    """What `inherit.py` has settled of the space."""
    return {name: domain.value for name in SHAPE + DECODERS_SHAPE if isinstance(domain := space.get(name), Fixed)}


def default_space(default: Recipe, world: World) -> Space:
    """Ranges around the default recipe; where size or latency count, down to a quarter of it, and with what makes artefacts light."""
    step = max(WIDTH_STEP, 2 ** int(math.log2(max(1, default.width // 8))))
    down = 2 if world.objectives == "loss" else 4
    low_width = max(2 * WIDTH_STEP, default.width // down // step * step)
    counts = (world.max_model_bytes > 0 or world.objectives != "loss") and world.mask_token is None
    context = world.context_length
    return {
        "depth": Range(low=max(1, default.depth // down), high=max(3, 2 * default.depth)),
        "width": Range(low=low_width, high=max(low_width + step, 2 * default.width // step * step), step=step),
        "batch_tokens": Range(
            low=max(context, default.batch_tokens // 4), high=max(4 * context, 4 * default.batch_tokens), log=True
        ),
        "peak_lr": Range(low=default.peak_lr / 6, high=min(0.1, default.peak_lr * 6), log=True),
        "schedule": Choices(("linear", "cosine", "wsd")),
        "warmup": Range(low=0.01, high=0.15),
        "cooldown": Range(low=0.2, high=0.8),
        "cooldown_shape": Fixed("linear"),
        "optimizer": Choices(("muon", "adamw")),
        "embedding_lr": Fixed(1.0),
        "weight_decay": Range(low=0.01, high=0.5, log=True),
        "weight_decay_schedule": Fixed("constant"),
        "batch_ramp": Fixed(0.0),
        "momentum_warmup": Fixed(0.0),
        "short_sequences": Fixed(PARAMETERS["short_sequences"].default),
        "ema": Fixed(0.0),
        "mixer": Fixed("attention"),
        "mask_rate": Fixed(0.3) if world.mask_token is None else Range(low=0.1, high=0.5),
        "kv_groups": Fixed(1),
        "window": Fixed(0),
        "mlp_ratio": Fixed(3.0),
        "norm_embedding": Choices((True, False)) if counts else Fixed(True),
        "tie_embeddings": Fixed(True),
        "share_layers": Fixed(1),
        "embedding_rank": Fixed(0),
        **{name: Fixed(PARAMETERS[name].default) for name in COMPRESSION},
        "compression": Choices(offered(world.device, world.teacher)) if counts else Fixed("none"),
    }


def only_compression(wanted: Space) -> str:
    """The compression that a default recipe has to have: `none`, unless a study file does not allow it."""
    domain = wanted.get("compression", Fixed("none"))
    values = domain.values if isinstance(domain, Choices) else (domain.value,) if isinstance(domain, Fixed) else ()
    return "none" if "none" in values else str(values[0])


def offered(device: str, teacher: str = "") -> tuple[str, ...]:
    """Compressions that are searched by default where size or latency count: one of each way, as far as it can be had on a device."""

    def possible(option: str) -> bool:
        try:
            check_compression(option, device, teacher)
        except ConfigError:
            return False
        return True

    return tuple(filter(possible, OFFERED))


def complete_space(wanted: Space, default: Recipe, world: World) -> tuple[Space, Recipe]:
    """The whole space, with what a study file says of it; and the default recipe moved into it."""
    check_kinds(wanted, world)
    space = default_space(default, world) | ({"compression": Fixed("none")} if _other_mixers(wanted) else {}) | wanted
    moved = {name: nearest(domain, getattr(default, name)) for name, domain in space.items()}
    recipe = replace(default, **moved)
    ModelConfig(
        vocab_size=world.vocab_size,
        context_length=world.context_length,
        depth=recipe.depth,
        width=recipe.width,
        kv_groups=recipe.kv_groups,
        window=recipe.window,
        mask_token=world.mask_token,
        embedding_rank=recipe.embedding_rank,
    )
    return space, recipe


def check_kinds(wanted: Space, world: World) -> None:
    """Refuse what does not go together: compression is for the decoder with attention, and encoders have knobs that decoders lack, and the reverse.

    Raises:
        ConfigError: it is asked for.
    """
    encodes = world.mask_token is not None
    alien = ("mixer", "kv_groups", "window", "norm_embedding") if encodes else ("mask_rate",)
    if names := [name for name in alien if name in wanted]:
        kind, why = ("mlm", "a ModernBERT has no such choice") if encodes else ("clm", "nothing is hidden from a decoder")
        raise ConfigError(f"space.{names[0]} is not for objective {kind}: {why}. Leave it out.")
    others = _other_mixers(wanted)
    if (encodes or others) and any(option != "none" for option in compressions(wanted)):
        raise ConfigError(
            f"space.compression is for decoders with attention, not for {'encoders' if encodes else f'mixer {others[0]!r}'}. Leave it out."
        )


def _other_mixers(wanted: Space) -> list[str]:
    """The mixers of a space whose models are not compressed."""
    return [v for v in _values(wanted.get("mixer", Fixed("attention"))) if v != "attention"]


def _values(domain: Domain) -> tuple[Any, ...]:
    return domain.values if isinstance(domain, Choices) else (domain.value,) if isinstance(domain, Fixed) else ()


def nearest(domain: Domain, value: Any) -> Any:
    """The value of a domain that is nearest to `value`."""
    if isinstance(domain, Fixed):
        return domain.value
    if isinstance(domain, Choices):
        if value in domain.values:
            return value
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in domain.values)
        return min(domain.values, key=lambda v: abs(v - value)) if numbers else domain.values[0]
    inside = min(domain.high, max(domain.low, value))
    if domain.step:
        inside = min(domain.high, domain.low + round((inside - domain.low) / domain.step) * domain.step)
        inside = inside if inside <= domain.high else inside - domain.step
    return type(value)(inside)


def searched(space: Space) -> list[str]:
    """Names of the parameters that really vary."""
    return [
        name for name, d in space.items() if not isinstance(d, Fixed) and not (isinstance(d, Choices) and len(d.values) == 1)
    ]


def suggest(trial: "optuna.Trial", space: Space) -> Recipe:
    """Let Optuna choose a recipe."""
    for name, domain in space.items():
        if isinstance(domain, Choices):
            trial.suggest_categorical(name, list(domain.values))
        elif isinstance(domain, Range) and name in INTEGERS and not domain.log:
            low, high = int(domain.low), int(domain.high)
            high -= (high - low) % (domain.step or 1)
            trial.suggest_int(name, low, high, step=domain.step or 1)
        elif isinstance(domain, Range):
            # Whole numbers that span decades too: TPE takes ten times as long for them, value by value.
            trial.suggest_float(name, domain.low, domain.high, log=domain.log)
    recipe = recipe_of(trial.params, space)
    assert recipe
    return recipe


def recipe_of(params: Mapping[str, Any], space: Space) -> Recipe | None:
    """The recipe that Optuna's parameters stand for; None where some are missing."""
    fixed = {name: domain.value for name, domain in space.items() if isinstance(domain, Fixed)}
    values = {**fixed, **params}
    if set(values) != set(space):
        return None
    return recipe_from({name: round(v) if name in INTEGERS else v for name, v in values.items()})


def parameters_of(recipe: Recipe, space: Space) -> dict[str, Any]:
    """What Optuna must be given to suggest exactly this recipe."""
    return {name: getattr(recipe, name) for name, domain in space.items() if not isinstance(domain, Fixed)}
