"""The trunk: what runs have in common up to the fall of their learning rate, so that it is trained, and charged, once.

A run of a warmup-stable-decay schedule does the same as another one of the same shape, batch, rates, seed and data until its
cool-down begins, whatever that looks like, and almost whatever the length of the two: only the warm-up, a share of the run, is as
short in what a longer run takes over as it was in the shorter one. So such a run leaves a checkpoint there, and later ones begin
from it (Hu et al. 2024, MiniCPM, section 4, arXiv:2404.06395; Hägele et al. 2024, arXiv:2405.18392). Plain arithmetic: no torch, no files.
"""

from typing import Any

from budgetlm.train.config import RunConfig, as_dict

FALL = ("cooldown", "cooldown_shape", "floor")
"""What of a schedule matters only once the trunk has ended."""
MEANS = (
    "micro_batch_sequences",
    "checkpoint_activations",
    "compact_heap",
    "compile",
    "compile_or_fail",
    "eval_tokens",
    "full_eval_tokens",
)
"""What changes how a run is computed or measured, not what is computed."""


def trunk_of(config: RunConfig) -> dict[str, Any]:
    """All that decides what a run's trunk is: those of two runs are one where these are equal."""
    values = as_dict(config)
    schedule = {name: value for name, value in values.pop("schedule").items() if name not in FALL}
    kept = {name: value for name, value in values.items() if name not in MEANS}
    if not config.compression.changes_training:
        kept.pop("compression")
    if not _follows_the_clock(config):  # it is the same for runs of all lengths
        kept |= {"seconds": config.seconds > 0, "steps": config.steps > 0}
    return {**kept, "schedule": schedule}


def trunk_share(config: RunConfig) -> float:
    """Progress at which a run's trunk ends; 0 where it has none.

    Where the trunk is to serve longer runs too, it ends before sequences become whole: those would still have short ones then.
    """
    schedule = config.schedule
    if schedule.shape != "wsd":
        return 0.0
    share = 1 - schedule.cooldown
    if schedule.short_sequences and not _follows_the_clock(config):
        share = min(share, schedule.short_sequences)
    return share if share > schedule.warmup else 0.0


def can_begin_at(config: RunConfig, seconds: float, step: int) -> bool:
    """Whether a run can take a trunk over that ends after so many seconds, or steps: its own warm-up over, its own trunk not."""
    length, at = (config.steps, step) if config.steps else (config.seconds, seconds)
    return config.schedule.warmup * length <= at <= trunk_share(config) * length


def _follows_the_clock(config: RunConfig) -> bool:
    """Whether something beside the rate moves with progress from the first step on, so that runs of two lengths differ from there."""
    schedule = config.schedule
    decays = schedule.weight_decay_schedule != "constant"
    compression = config.compression
    compresses = compression.shrinks or compression.prunes or compression.rounded_share
    return bool(decays or schedule.batch_ramp or schedule.momentum_warmup or config.ema or compresses)
