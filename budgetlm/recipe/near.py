"""Recipes near the one that the laws give: where a search begins, as wide as the laws are unsure."""

import math
from typing import Any

import numpy as np

from budgetlm.recipe.recipe import Recipe, recipe_from
from budgetlm.recipe.space import INTEGERS, Choices, Domain, Range, Space, nearest, searched

UNSURE = {"peak_lr": 0.5, "batch_tokens": 0.5, "depth": 0.35, "width": 0.25, "weight_decay": 0.8}
"""How far a law or a rule of thumb may be off, in natural logarithms: the best rate and batch of miniatures lay within a factor 1.3 to
2.3 of Step Law's (docs/LOG.md), and shapes within a factor 1.4 of the best differ by hardly more than noise."""
OTHERWISE = 0.15
"""The same for other numbers, as a share of their range."""
CHANGED = 0.5
"""Probability that a number is moved at all: what differs in few things from a good recipe is likelier to be good."""
SWITCHED = 0.2
"""Likewise of a choice."""
UNKNOWN = {"compression": 0.5, "mixer": 0.5}
"""Likewise of choices of which no law says what is best."""


def near(recipe: Recipe, space: Space, chance: np.random.Generator) -> Recipe:
    """A recipe of the space that differs from `recipe` in about half of what is searched, by what the laws are unsure of."""
    values: dict[str, Any] = {name: getattr(recipe, name) for name in space}
    for name in searched(space):
        values[name] = nearest(space[name], _moved(name, space[name], values[name], chance))
    return recipe_from(values)


def _moved(name: str, domain: Domain, value: Any, chance: np.random.Generator) -> Any:
    changed, step = chance.random(), chance.standard_normal()  # both always, so that one knob's luck is not another's
    if isinstance(domain, Choices):
        drawn = domain.values[chance.integers(len(domain.values))]
        return drawn if changed < UNKNOWN.get(name, SWITCHED) else value
    assert isinstance(domain, Range)
    if changed >= CHANGED:
        return value
    if name not in UNSURE:
        return value + OTHERWISE * (domain.high - domain.low) * step
    moved = value * math.exp(UNSURE[name] * step)
    return round(moved) if name in INTEGERS else moved
