"""Whether it fits: the final on the disk, its training in the memory."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from budgetlm.checks import probes
from budgetlm.checks.case import Case, Finding, judge, needed, size_text
from budgetlm.model.footprint import saved_bytes
from budgetlm.model.size import round_width
from budgetlm.recipe.oracle import model_of
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.scale import least_bytes
from budgetlm.recipe.space import Choices, Domain, Fixed, Space
from budgetlm.recipe.world import USABLE_MEMORY, World

ALLOWANCE = 100 * 10**6
"""Bytes for what does not grow with the model: records, curves, database, tokenizer, report."""


def disk(case: Case) -> Finding:
    """Whether there is room for what a final writes, and for what prepared data still needs."""
    expected = needed(case.expected, "a default recipe")
    default = _final_bytes(expected.default, expected.world)
    largest = _final_bytes(largest_recipe(expected.space, expected.default), expected.world)
    faults, warnings, free_here = [], [], []
    for what, folder, need in (("study", case.config.folder, default), ("cache", case.cache, ALLOWANCE)):
        place = probes.existing_parent(folder)
        free = shutil.disk_usage(place).free
        free_here.append(f"{size_text(free)} free for the {what}")
        if free < need:
            faults.append(
                f"{place} has {size_text(free)} left, but the {what} needs {size_text(need)}. Free some space there."
            )
        elif what == "study" and free < largest:
            warnings.append(
                f"{place} has {size_text(free)} left, too little if the largest recipe is chosen ({size_text(largest)})."
            )
    final = f"a final needs {size_text(default)}, {size_text(largest)} at the space's largest"
    return judge(faults, warnings, f"{', '.join(free_here)}; {final}")


def _final_bytes(recipe: Recipe, world: World) -> int:
    """Bytes that a final writes at its fullest: the checkpoints kept and one more being written, and the exported model."""
    from budgetlm.train.checkpoint import KEEP

    model, averaged = model_of(recipe, world), recipe.ema > 0
    return saved_bytes(model, checkpoints=KEEP + 1, exported=True, averaged=averaged) + ALLOWANCE


def memory(case: Case) -> Finding:
    """Whether training fits, by the prediction that recipes are refused by."""
    expected = needed(case.expected, "a default recipe")
    world, target, default = expected.world, case.config.budget.target_seconds, expected.default
    total, available = _memory_of(case, world)
    corner = largest_recipe(expected.space, default)
    usual, most = least_bytes(default, target, world), least_bytes(corner, target, world)
    says = (
        f"to train the default recipe takes at least {_gib(usual)}, the space's largest (depth {corner.depth} x width "
        f"{corner.width}) {_gib(most)}, of {_gib(total)}, {_gib(available)} now free"
    )
    faults, warnings = [], []
    if usual > USABLE_MEMORY * total:
        faults.append("the default recipe does not fit. Narrow `space.width` or `space.depth`, or use a larger device:")
    elif most > USABLE_MEMORY * total:
        warnings.append(
            "the largest recipes do not fit, and will be refused. `space.width` or `space.depth` could be narrower:"
        )
    elif usual > available:
        warnings.append("the default recipe does not fit beside what is running now. Stop something:")
    return judge(faults, warnings, says)


def _memory_of(case: Case, world: World) -> tuple[int, int]:
    """Bytes that the device has, and that are free now."""
    if world.device == "cuda":
        return world.memory_bytes, case.gpu_free if case.gpu_free is not None else world.memory_bytes
    return world.memory_bytes, min(world.memory_bytes, probes.memory_available() or world.memory_bytes)


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"


def largest_recipe(space: Space, default: Recipe) -> Recipe:
    """The corner of a space whose model weighs most."""
    return replace(
        default,
        depth=int(_extreme(space["depth"], max)),
        width=round_width(_extreme(space["width"], max)),
        batch_tokens=int(_extreme(space["batch_tokens"], max)),
        mlp_ratio=float(_extreme(space["mlp_ratio"], max)),
        kv_groups=1,  # the most keys and values, and possible with any number of heads
        tie_embeddings=bool(_extreme(space["tie_embeddings"], min)),
        share_layers=int(_extreme(space["share_layers"], min)),
        embedding_rank=_heaviest_rank(space["embedding_rank"]),
        ema=float(_extreme(space["ema"], max)) if "ema" in space else default.ema,
    )


def _heaviest_rank(domain: Domain) -> int:
    """An embedding in one piece, where there may be one; else that of the largest factors."""
    return int(0 if _extreme(domain, min) == 0 else _extreme(domain, max))


def _extreme(domain: Domain, which: Callable[[Any], Any]) -> Any:
    """The largest or smallest value of a domain."""
    if isinstance(domain, Fixed):
        return domain.value
    return which(domain.values if isinstance(domain, Choices) else (domain.low, domain.high))
