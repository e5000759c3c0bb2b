"""Recipes under a limit on what their artefacts weigh: the smallest that a space has, and the nearest of a recipe that keeps the limit."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from budgetlm.compress.apply import Compression
from budgetlm.compress.layout import artefact_bytes
from budgetlm.errors import ConfigError
from budgetlm.model.size import WIDTH_STEP, ModelConfig, body_parameters
from budgetlm.recipe.oracle import deployed_bytes, model_of, size_violation
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.space import INTEGERS, Choices, Domain, Fixed, Range, Space, default_recipe, nearest
from budgetlm.recipe.world import World

MOVED = ("depth", "width", "batch_tokens", "peak_lr")
"""What of a default recipe follows from how much its weights weigh."""
SHAPE, SWITCHES = (
    ("mixer", "kv_groups", "mlp_ratio", "tie_embeddings", "norm_embedding", "share_layers", "embedding_rank"),
    ("compression", "sparsity"),
)
"""What changes an artefact's weight beside depth and width."""


def fitted(recipe: Recipe, space: Space, world: World) -> Recipe:
    """The recipe itself where it keeps the limit; else the one of the space that is nearest to it and does.

    Depth and width shrink together as far as they must, the aspect kept as well as can be; only where the smallest shape does not help, what else
    weighs something takes its lightest value.

    Raises:
        ConfigError: nothing in the space is that small; the message says how small it gets.
    """
    if size_violation(recipe, world) <= 0:
        return recipe
    aspect = math.log(recipe.width / recipe.depth)
    for lighter in (False, True):
        base = _lightest(recipe, space, world) if lighter else recipe
        sizes = itertools.product(*(_up_to(recipe, name, space) for name in ("depth", "width")))
        fitting = [one for d, w in sizes if _keeps(one := replace(base, depth=d, width=w), world)]
        if fitting:
            return max(fitting, key=lambda r: _size(r, world) - 0.5 * abs(math.log(r.width / r.depth) - aspect))
    raise too_small(deployed_bytes(_least_recipe(recipe, space, world), world), world.max_model_bytes)


def starts(space: Space, default: Recipe, target_seconds: float, world: World) -> dict[str, Recipe]:
    """For every compression of a space, what the default recipe would be if that were the only one: the lighter its weights, the more of them."""
    found = {default.compression: default}
    for compression in map(str, _extremes(space.get("compression", Fixed("none")))):
        if compression not in found:
            own = default_recipe(target_seconds, world, compression)
            found[compression] = replace(default, **{n: getattr(own, n) for n in (*MOVED, "compression")})
    return found


def moved(recipe: Recipe, default: Recipe, start: Recipe, space: Space) -> Recipe:
    """A recipe near the default, as far from `start` instead: what its compression saves goes into its shape, and rate and batch follow."""
    values = {name: getattr(recipe, name) * getattr(start, name) / getattr(default, name) for name in MOVED}
    values = {name: round(v) if name in INTEGERS else v for name, v in values.items()}
    return replace(recipe, **{name: nearest(space[name], value) for name, value in values.items()})


def limited(space: Space, default: Recipe, world: World) -> tuple[Space, Recipe]:
    """A space without depths and widths of which no recipe keeps the limit, and the default recipe fitted to it.

    Raises:
        ConfigError: as `fitted`.
    """
    if not world.max_model_bytes:
        return space, default
    default, narrowed = fitted(default, space, world), dict(space)
    least = _least_recipe(default, space, world)
    for name, domain in space.items():
        if isinstance(domain, Range) and name in ("depth", "width"):
            widest = _sized(least, name, int(domain.high))
            possible = [v for v in _up_to(widest, name, space) if _keeps(_sized(least, name, v), world)]
            narrowed[name] = replace(domain, high=max(possible, default=domain.low))
    return narrowed, default


def _sized(recipe: Recipe, name: str, value: int) -> Recipe:
    return replace(recipe, depth=value) if name == "depth" else replace(recipe, width=value)


def _keeps(recipe: Recipe, world: World) -> bool:
    return _possible(recipe, world) and size_violation(recipe, world) <= 0


def too_small(least: int, limit: int) -> ConfigError:
    """What to say of a limit that nothing in a space keeps."""
    return ConfigError(
        f"`search.max_model_mb` is {limit / 1e6:,.3g}, but the smallest model that the space allows weighs {math.ceil(least / 1e3) / 1e3:,.6g} MB. Raise the "
        "limit, widen `[space]` downwards (`depth`, `width`), or take a smaller vocabulary (`data.vocab_size`)."
    )


def least_artefact_bytes(space: Space, vocab_size: int, context_length: int, options: tuple[str, ...]) -> int:
    """Bytes of the smallest artefact that a space allows, which may be unfinished: what it leaves open is as small as it would be made.

    Args:
        options: compressions that it would be completed with.
    """
    lean: Space = {"depth": Fixed(1), "width": Fixed(2 * WIDTH_STEP), "norm_embedding": Choices((True, False))}
    whole = lean | {"compression": Choices(options)} | space
    start = Recipe(depth=1, width=WIDTH_STEP, batch_tokens=1, peak_lr=1e-3)
    sizes = []
    for recipe in _corners(replace(start, depth=_least(whole["depth"]), width=_least(whole["width"])), whole):
        try:
            model = ModelConfig(
                vocab_size=vocab_size,
                context_length=context_length,
                **{n: getattr(recipe, n) for n in ("depth", "width", *SHAPE)},
            )
        except ConfigError:  # too few heads for the groups
            continue
        sizes.append(artefact_bytes(model, Compression(option=recipe.compression, sparsity=recipe.sparsity)))
    return min(sizes, default=0)


def _least_recipe(recipe: Recipe, space: Space, world: World) -> Recipe:
    return _lightest(replace(recipe, depth=_least(space["depth"]), width=_least(space["width"])), space, world)


def _lightest(recipe: Recipe, space: Space, world: World) -> Recipe:
    """The recipe with whatever else weighs something at its lightest."""
    possible = [r for r in _corners(recipe, space) if _possible(r, world)]
    return min(possible, key=lambda r: deployed_bytes(r, world), default=recipe)


def _corners(recipe: Recipe, space: Space) -> Iterator[Recipe]:
    """The recipe with every combination of extreme values of the switches."""
    names = [name for name in (*SHAPE, *SWITCHES) if name in space]
    for values in itertools.product(*(_extremes(space[name]) for name in names)):
        yield replace(recipe, **dict(zip(names, values, strict=True)))


def _extremes(domain: Domain) -> Sequence[Any]:
    if isinstance(domain, Range):
        return (domain.low, domain.high)
    return domain.values if isinstance(domain, Choices) else (domain.value,)


def _least(domain: Domain) -> int:
    return int(min(_extremes(domain)))


def _up_to(recipe: Recipe, name: str, space: Space) -> list[int]:
    """The values of a size that the space has, up to the recipe's."""
    domain, most = space[name], getattr(recipe, name)
    if not isinstance(domain, Range):
        return [v for v in _extremes(domain) if v <= most]
    return list(range(int(domain.low), most + 1, domain.step or 1))


def _possible(recipe: Recipe, world: World) -> bool:
    try:
        model_of(recipe, world)
    except ConfigError:
        return False
    return True


def _size(recipe: Recipe, world: World) -> float:
    return math.log(body_parameters(model_of(recipe, world)))
