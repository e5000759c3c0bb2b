"""A recipe: everything needed to instantiate the same idea of a model at any budget."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from budgetlm.errors import ConfigError


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
    """Learning rate at the top of the schedule."""
    schedule: str = "linear"
    """Shape of the learning rate over the run."""
    warmup: float = 0.05
    """Share of the run in which the learning rate rises."""
    cooldown: float = 0.4
    """Share of the run in which it falls; `wsd` only."""
    optimizer: str = "adamw"
    weight_decay: float = 0.1
    kv_groups: int = 1
    """Query heads that share a key/value head."""
    mlp_ratio: float = 3.0
    """Hidden units of the MLP per unit of width."""
    tie_embeddings: bool = True
    """Whether the embedding is also the output head."""

    def summary(self) -> str:
        """One line for people."""
        falls = f", the last {self.cooldown:.0%} falling" if self.schedule == "wsd" else ""
        return (
            f"depth {self.depth} x width {self.width}, batch {self.batch_tokens:,} tokens, {self.optimizer} at peak lr "
            f"{self.peak_lr:.2e}, {self.schedule} schedule (warm-up {self.warmup:.0%}{falls}), weight decay {self.weight_decay:.2g}"
        )


PARAMETERS = {field.name: field for field in dataclasses.fields(Recipe)}
"""Every name that a study file's `[space]` may use."""


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
