"""A recipe: everything needed to instantiate the same idea of a model at any budget."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from budgetlm.errors import ConfigError
from budgetlm.model.size import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model and its training, as they are at the target. Smaller budgets get miniatures of it (`recipe/scale.py`)."""

    depth: int
    """Transformer blocks."""
    width: int
    """Size of the residual stream."""
    batch_tokens: int
    """Tokens in one optimisation step."""
    peak_lr: float
    """Learning rate at the top of the schedule, in AdamW's measure for every optimizer."""
    schedule: str = "linear"
    """Shape of the learning rate over the run. With `schedulefree` it stays at its top, whatever is said here."""
    warmup: float = 0.05
    """Share of the run in which the learning rate rises."""
    cooldown: float = 0.4
    """Share of the run in which it falls; `wsd` and `one_cycle` only."""
    cooldown_shape: str = "linear"
    """How it falls then; `wsd` only."""
    optimizer: str = "muon"
    embedding_lr: float = 1.0
    """Learning rate of the embedding and the head, as a multiple of the others'."""
    weight_decay: float = 0.1
    """Decoupled; `adam` is without."""
    weight_decay_schedule: str = "constant"
    """Whether the weight decay stays, or falls to 0 (`linear`)."""
    batch_ramp: float = 0.0
    """Share of the run in which the batch rises from a quarter to the whole."""
    momentum_warmup: float = 0.0
    """Share of the run in which Muon's momentum rises from 0.85 to 0.95."""
    short_sequences: float = 0.5
    """Share of the run in which sequences are cut into quarters."""
    ema: float = 0.0
    """Averaging time of the weights as a share of the run; 0, or with `schedulefree`, for none."""
    mixer: str = "attention"
    """What mixes a decoder's tokens: attention, or another of `model/mixers.py`."""
    mask_rate: float = 0.3
    """Share of the tokens that training hides; encoders only."""
    kv_groups: int = 1
    """Query heads that share a key/value head."""
    window: int = 0
    """Tokens that a token sees in every second block; 0 for all before it."""
    mlp_ratio: float = 3.0
    """Hidden units of the MLP per unit of width."""
    norm_embedding: bool = True
    """Whether a token's vector is normalised before the first block."""
    tie_embeddings: bool = True
    """Whether the embedding is also the output head."""
    share_layers: int = 1
    """Layers in a row that are one block, used so many times; 1 for none."""
    embedding_rank: int = 0
    """Numbers of a token in an embedding of two factors, a multiple of 16; 0 for as many as the width, in one piece."""
    compression: str = "none"
    """What makes the deployed model smaller: options of `compress/apply.py`, joined by `+`."""
    sparsity: float = 0.5
    """Share that pruning takes away: of the blocks' weights, or of heads, hidden units, layers."""
    prune_scope: str = "layer"
    """Whether `prune` takes it of every matrix (`layer`) or of all together (`global`)."""
    prune_start: float = 0.2
    """Share of the run after which pruning begins; heads, hidden units and layers go there at once."""
    prune_end: float = 0.7
    """Share of the run after which nothing more is pruned."""
    qat_share: float = 0.2
    """Share of the run, its last, that trains with rounded weights; options in `-qat` only."""
    distil_weight: float = 0.5
    """Share of the loss that a teacher's probabilities have; `distil` only."""
    distil_temperature: float = 1.0
    """What teacher's and student's logits are divided by for it."""
    distil_top_k: int = 0
    """Likeliest tokens of the teacher that count; 0 for all."""

    def summary(self) -> str:
        """One line for people."""
        schedule = "constant" if self.optimizer == "schedulefree" else self.schedule
        falls = f", the last {self.cooldown:.0%} falling" if schedule in ("wsd", "one_cycle") else ""
        parts = [
            f"depth {self.depth} x width {self.width}, batch {self.batch_tokens:,} tokens, {self.optimizer} at peak lr "
            f"{self.peak_lr:.2e}, {schedule} schedule (warm-up {self.warmup:.0%}{falls}), weight decay {self.weight_decay:.2g}"
        ]
        values = {name: getattr(self, name) for name in UNUSUAL if getattr(self, name) != PARAMETERS[name].default}
        return ", ".join(
            parts + [f"{name} {v:.3g}" if isinstance(v, float) else f"{name} {v}" for name, v in values.items()]
        )


UNUSUAL = (
    "cooldown_shape",
    "embedding_lr",
    "weight_decay_schedule",
    "batch_ramp",
    "momentum_warmup",
    "short_sequences",
    "ema",
    "mixer",
    "mask_rate",
    "window",
    "share_layers",
    "embedding_rank",
    "compression",
)
"""What a summary says only where it differs from its default."""
SHAPE = ("depth", "width", "mlp_ratio", "tie_embeddings")
DECODERS_SHAPE = ("kv_groups", "window", "norm_embedding", "share_layers", "embedding_rank", "mixer")
"""What a recipe says of its model's shape, and of a decoder's alone, by the names that `ModelConfig` has for it."""
PARAMETERS = {field.name: field for field in dataclasses.fields(Recipe)}
"""Every name that a study file's `[space]` may use."""


def shape_values(model: ModelConfig) -> dict[str, Any]:
    """What a recipe says of a model of this shape."""
    return {name: getattr(model, name) for name in (SHAPE if model.encodes else SHAPE + DECODERS_SHAPE)}


def recipe_from(values: dict[str, Any]) -> Recipe:
    """A recipe from plain values, as a record keeps them.

    Raises:
        ConfigError: a value has the wrong type.
    """
    for name, value in values.items():
        wanted = type(PARAMETERS[name].default) if PARAMETERS[name].default is not dataclasses.MISSING else type(value)
        if wanted is float and isinstance(value, int):
            continue
        if not isinstance(value, wanted):
            raise ConfigError(f"{name} is {value!r}, but a recipe's {name} is of type {wanted.__name__}.")
    return Recipe(**values)
