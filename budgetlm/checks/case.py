"""The study that is examined, what has been found of it so far, and what a check may answer."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from budgetlm.checks import probes
from budgetlm.config import StudyConfig
from budgetlm.watch import Watcher

if TYPE_CHECKING:
    from budgetlm.data.tokens import Tokens
    from budgetlm.passport import Passport
    from budgetlm.recipe.recipe import Recipe
    from budgetlm.recipe.space import Space
    from budgetlm.recipe.world import World
    from budgetlm.search.plan import Plan

State = Literal["ok", "warning", "fault"]
"""`warning`: it would run, but not as one might think. `fault`: it would not run, or not to its end."""
Finding = tuple[State, str]
T = TypeVar("T")


class NotCheckedError(Exception):
    """A check builds on something that an earlier one did not find."""


@dataclass(frozen=True)
class Expected:
    """What the study would train: from its plan, or estimated from the measured ceilings."""

    world: "World"
    space: "Space"
    default: "Recipe"


@dataclass
class Case:
    """The study that is examined, and what has been found of it so far; None where it was not found."""

    config: StudyConfig
    cache: Path
    watcher: Watcher
    compile: bool
    plan: "Plan | None" = None
    identity: "Passport | None" = None
    passport: "Passport | None" = None
    tokens: "Tokens | None" = None
    expected: Expected | None = None
    gpu_free: int | None = None
    """Free bytes of the GPU before anything of ours was put there."""
    unwritable: set[Path] = field(default_factory=set)
    processes: dict[int, probes.ProcessTime] = field(default_factory=probes.process_times)
    since: float = field(default_factory=time.monotonic)


def judge(faults: Sequence[str], warnings: Sequence[str], otherwise: str) -> Finding:
    """The worst of what was found, all of it said."""
    state: State = "fault" if faults else "warning" if warnings else "ok"
    return state, " ".join([*faults, *warnings, *([otherwise] if otherwise else [])])


def needed(value: T | None, what: str) -> T:
    """The value itself.

    Raises:
        NotCheckedError: an earlier check did not find it.
    """
    if value is None:
        raise NotCheckedError(f"it needs {what}, which was not found (see above).")
    return value


def size_text(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e10 else f"{size / 1e6:,.0f} MB"
