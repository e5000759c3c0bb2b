"""Learning-rate schedules as functions of progress.

Progress is the share of a run's time already spent, from 0 to 1. A ten-second rung and the 24-hour final then follow one
curve, and a resumed run goes on where its clock stands. Plain arithmetic: no torch, no files.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from budgetlm.errors import ConfigError

Shape = Literal["wsd", "cosine", "linear", "constant"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves over a run. Fractions are of the run's device time."""

    shape: Shape = "linear"
    """`wsd` is warmup-stable-decay (arXiv:2404.06395); the others fall all the way, but for `constant`."""
    warmup: float = 0.05
    """Fraction spent rising from 0."""
    cooldown: float = 0.4
    """Fraction spent falling at the end; `wsd` only."""
    floor: float = 0.0
    """Where the fall ends, as a share of the peak. Zero is best for compute-optimal runs (arXiv:2502.15938)."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(f"schedule shape {self.shape!r} is not known. Use one of {', '.join(SHAPES)}.")
        if not (0 <= self.warmup < 1 and 0 <= self.cooldown <= 1 and 0 <= self.floor <= 1):
            raise ConfigError(
                f"warmup ({self.warmup}), cooldown ({self.cooldown}) and floor ({self.floor}) are shares: between 0 and 1."
            )
        if self.shape == "wsd" and self.warmup + self.cooldown > 1:
            raise ConfigError(
                f"warmup ({self.warmup}) + cooldown ({self.cooldown}) must not pass 1: they share one run. "
                f"Lower `cooldown` to {1 - self.warmup:.2f} or less."
            )


def lr_factor(schedule: ScheduleConfig, progress: float) -> float:
    """Share of the peak learning rate at `progress`; beyond [0, 1] it stays what it is at the ends."""
    progress = min(1.0, max(0.0, progress))
    if progress < schedule.warmup:
        return progress / schedule.warmup
    falling = {"wsd": schedule.cooldown, "constant": 0.0}.get(schedule.shape, 1 - schedule.warmup)
    if falling == 0:
        return 1.0
    fallen = max(0.0, progress - (1 - falling)) / falling  # 0 at the start of the fall, 1 at the end of the run
    left = (1 + math.cos(math.pi * fallen)) / 2 if schedule.shape == "cosine" else 1 - fallen
    return schedule.floor + (1 - schedule.floor) * left
