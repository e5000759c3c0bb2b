"""What changes over a run, as functions of progress: learning rate, weight decay, batch, momentum, averaging.

Progress is the share of a run's time already spent, from 0 to 1. A ten-second rung and the 24-hour final then follow one
curve, and a resumed run goes on where its clock stands. Plain arithmetic: no torch, no files.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from budgetlm.errors import ConfigError

Shape = Literal["wsd", "cosine", "linear", "one_cycle", "inverse_sqrt", "constant", "step"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
CooldownShape = Literal["linear", "sqrt", "cosine"]
COOLDOWN_SHAPES: tuple[CooldownShape, ...] = get_args(CooldownShape)
DecaySchedule = Literal["constant", "linear"]
DECAY_SCHEDULES: tuple[DecaySchedule, ...] = get_args(DecaySchedule)

CYCLE_FROM = 0.1
"""Share of the peak at both ends of the one cycle (Smith 2018, section 4.1)."""
FIRST_BATCH = 0.25
"""Share of the batch that a ramp begins with."""
PIECES = 4
"""Parts that a sequence is cut into while sequences are short."""
FIRST_MOMENTUM, MOMENTUM = 0.85, 0.95
"""Muon's momentum at the beginning of its warm-up, and after it."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How learning rate, weight decay, batch and momentum move over a run. Shares are of the run's device time."""

    shape: Shape = "linear"
    """Of the learning rate after its warm-up; `lr_factor` says what each is."""
    warmup: float = 0.05
    """Share spent rising to the peak."""
    cooldown: float = 0.4
    """Share spent falling at the end; `wsd` and `one_cycle` only."""
    cooldown_shape: CooldownShape = "linear"
    """How `wsd` falls."""
    floor: float = 0.0
    """Where the fall ends, as a share of the peak. Zero is best for compute-optimal runs (arXiv:2502.15938)."""
    weight_decay_schedule: DecaySchedule = "constant"
    """Whether the weight decay stays (`constant`), or falls to 0 over the run (`linear`)."""
    batch_ramp: float = 0.0
    """Share in which the batch rises to its size; 0 for none."""
    momentum_warmup: float = 0.0
    """Share in which Muon's momentum rises to its value; 0 for none."""
    short_sequences: float = 0.0
    """Share in which sequences are cut into quarters; 0 for none."""

    def __post_init__(self) -> None:
        _check_choice("schedule shape", self.shape, SHAPES)
        _check_choice("cooldown_shape", self.cooldown_shape, COOLDOWN_SHAPES)
        _check_choice("weight_decay_schedule", self.weight_decay_schedule, DECAY_SCHEDULES)
        if not (0 <= self.warmup < 1 and 0 <= self.cooldown <= 1 and 0 <= self.floor <= 1):
            raise ConfigError(
                f"warmup ({self.warmup}), cooldown ({self.cooldown}) and floor ({self.floor}) are shares: between 0 and 1."
            )
        shares = (self.batch_ramp, self.momentum_warmup, self.short_sequences)
        if not all(0 <= share <= 1 for share in shares):
            raise ConfigError(
                f"batch_ramp ({self.batch_ramp}), momentum_warmup ({self.momentum_warmup}) and short_sequences "
                f"({self.short_sequences}) are shares of the run: between 0 and 1. 0 does without."
            )
        if self.shape in ("wsd", "one_cycle") and self.warmup + self.cooldown > 1:
            raise ConfigError(
                f"warmup ({self.warmup}) + cooldown ({self.cooldown}) must not pass 1: they share one run. "
                f"Lower `cooldown` to {1 - self.warmup:.2f} or less."
            )
        if self.shape == "inverse_sqrt" and self.warmup == 0:
            raise ConfigError(
                "an inverse_sqrt schedule falls as sqrt(warmup / progress), so warmup must be above 0. 0.01 to 0.1 is usual."
            )


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} {value!r} is not known. Use one of {', '.join(known)}.")


# --- learning rate ---------------------------------------------------------------------------------------------------


def lr_factor(schedule: ScheduleConfig, progress: float) -> float:
    """Share of the peak learning rate at `progress`; beyond [0, 1] it stays what it is at the ends.

    All rise linearly over `warmup`, and then:

    - `wsd` (warmup-stable-decay) stays, and falls over `cooldown` (Hu et al. 2024, MiniCPM, section 4, arXiv:2404.06395);
    - `linear` falls to the end (Bergsma et al. 2025, arXiv:2502.15938);
    - `cosine` falls to the end along half a cosine (Loshchilov & Hutter 2016, SGDR, section 3, arXiv:1608.03983);
    - `one_cycle` rises from a tenth of the peak and falls back to it, and in `cooldown` to the floor; the paper's cycle is
      even, with a `warmup` of (1 - `cooldown`) / 2 (Smith 2018, section 4.1, arXiv:1803.09820);
    - `inverse_sqrt` falls as sqrt(warmup / progress) (Vaswani et al. 2017, section 5.3, arXiv:1706.03762);
    - `constant` stays;
    - `step` is divided by 10 at half of the run and again at three quarters (He et al. 2015, section 4.2, arXiv:1512.03385).
    """
    progress = min(1.0, max(0.0, progress))
    if progress < schedule.warmup:
        risen = progress / schedule.warmup
        return CYCLE_FROM + (1 - CYCLE_FROM) * risen if schedule.shape == "one_cycle" else risen
    if schedule.shape in ("constant", "step", "inverse_sqrt"):
        return max(schedule.floor, _without_end(schedule, progress))
    if schedule.shape == "one_cycle":
        return _cycle_down(schedule, progress)
    length = schedule.cooldown if schedule.shape == "wsd" else 1 - schedule.warmup
    shape = schedule.cooldown_shape if schedule.shape == "wsd" else schedule.shape
    return schedule.floor + (1 - schedule.floor) * _left(shape, _fallen(progress, length))


def _without_end(schedule: ScheduleConfig, progress: float) -> float:
    """The shapes that do not aim at the end of the run."""
    if schedule.shape == "step":
        return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
    return math.sqrt(schedule.warmup / progress) if schedule.shape == "inverse_sqrt" else 1.0


def _cycle_down(schedule: ScheduleConfig, progress: float) -> float:
    """The second half of the one cycle, and what follows it."""
    foot, turn = max(CYCLE_FROM, schedule.floor), 1 - schedule.cooldown
    if progress < turn:
        return 1 - (1 - foot) * (progress - schedule.warmup) / (turn - schedule.warmup)
    return schedule.floor + (foot - schedule.floor) * (1 - _fallen(progress, schedule.cooldown))


def _fallen(progress: float, length: float) -> float:
    """Share of a fall of this length at the end of the run that has been gone through."""
    return max(0.0, progress - (1 - length)) / length if length else 0.0


def _left(shape: str, fallen: float) -> float:
    """What is left of a fall from 1 to 0. `sqrt`: 1 - sqrt (Hägele et al. 2024, section 3, arXiv:2405.18392)."""
    if shape == "cosine":
        return (1 + math.cos(math.pi * fallen)) / 2
    return 1 - math.sqrt(fallen) if shape == "sqrt" else 1 - fallen


# --- what moves beside it --------------------------------------------------------------------------------------------


def decay_factor(schedule: ScheduleConfig, progress: float) -> float:
    """Share of the weight decay at `progress`: all of it, or falling linearly to 0 at the end.

    Source: Xie et al. 2020, "Understanding and Scheduling Weight Decay" (arXiv:2011.11152), who tie it to the gradient's norm;
    this is a plain form that needs no measurement.
    """
    return 1.0 if schedule.weight_decay_schedule == "constant" else 1 - min(1.0, max(0.0, progress))


def batch_at(schedule: ScheduleConfig, progress: float, batch_sequences: int) -> int:
    """Sequences of the step that begins at `progress`: linearly from a quarter of the batch to the whole over the ramp.

    Source: Geiping & Goldstein 2022, "Cramming", section 4.3 (arXiv:2212.14034).
    """
    risen = min(1.0, progress / schedule.batch_ramp) if schedule.batch_ramp else 1.0
    return max(1, round(batch_sequences * (FIRST_BATCH + (1 - FIRST_BATCH) * risen)))


def mean_batch_share(batch_ramp: float) -> float:
    """Mean over the run's time of the batch, as a share of the whole, where it rises over `batch_ramp` of the run."""
    return 1 - (1 - FIRST_BATCH) / 2 * batch_ramp


def longest_up_to(length: int, context_length: int, short_sequences: float) -> int:
    """The longest of the sequences of a run that have at most so many tokens: whole ones, or those of its first share; 0 for none."""
    lengths = (context_length, context_length // PIECES if short_sequences else 0)
    return max((each for each in lengths if each <= length), default=0)


def pieces_at(schedule: ScheduleConfig, progress: float) -> int:
    """Parts that each sequence of the step at `progress` is cut into: short sequences first, whole ones later.

    What a model learns first, it learns from the few tokens before; short sequences cost less attention meanwhile.
    Source: Press et al. 2020, "Shortformer", section 4 (arXiv:2012.15832); Li et al. 2021 (arXiv:2108.06084).
    """
    return PIECES if progress < schedule.short_sequences else 1


def muon_momentum(schedule: ScheduleConfig, progress: float) -> float:
    """Muon's momentum at `progress`: linearly from 0.85 to 0.95 over the warm-up.

    Source: Jordan et al. 2024, modded-nanogpt, whose speed runs raise it so over their first steps.
    """
    risen = min(1.0, max(0.0, progress) / schedule.momentum_warmup) if schedule.momentum_warmup else 1.0
    return FIRST_MOMENTUM + (MOMENTUM - FIRST_MOMENTUM) * risen


def averaging_weight(ema: float, before: float, after: float) -> float:
    """How far the averaged weights move towards the present ones in a step that took the run from `before` to `after`.

    The decay of a step is exp(-(after - before) / ema), so that `ema`, the averaging time as a share of the run, means the
    same at every budget and step time. The weights before the first step do not count: the average is divided by the sum of
    its coefficients, as Adam's moments are (Kingma & Ba 2014, section 3, arXiv:1412.6980).

    Source: Polyak & Juditsky 1992 for averaging; Morales-Brotons et al. 2024 for its exponential form (arXiv:2411.18704).
    """
    if after <= 0:
        return 1.0
    return math.expm1(-max(0.0, after - before) / ema) / math.expm1(-after / ema)
