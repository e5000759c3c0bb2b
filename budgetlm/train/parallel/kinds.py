"""The kinds of parallel training, and what each cannot do: said before anything is charged. No torch."""

from typing import Literal, get_args

from budgetlm.errors import ConfigError
from budgetlm.train.config import RunConfig

Kind = Literal["ddp", "fsdp"]
"""`ddp`: every device holds the network, and reads its part of each batch; `fsdp`: it holds a part of weights, gradients and optimizer state, too."""
KINDS: tuple[Kind, ...] = get_args(Kind)
SPREAD_OPTIMIZERS = ("adamw", "muon", "adam")
"""Optimizers that train parts of matrices as they train whole ones (`tests/train/parallel/test_parity.py`)."""


def check_devices(devices: int, there: int, says: str) -> None:
    """Refuse more devices than there are.

    Args:
        says: how many there are, in words, and where.

    Raises:
        ConfigError: there are fewer.
    """
    if devices > there:
        raise ConfigError(f"{devices} devices are asked for, but {says}. Give `--devices {there}` or fewer.")


def check_kind(config: RunConfig, kind: Kind, devices: int) -> None:
    """Refuse what a kind cannot do with a run.

    Raises:
        ConfigError: the run is not for this kind, or not for so many devices; the message says why, and what to do.
    """
    if config.batch_sequences < devices:
        raise ConfigError(
            f"a batch of {config.batch_sequences} sequences cannot be divided among {devices} devices. Give `--devices "
            f"{config.batch_sequences}` or fewer, or another trial (`--trial N`) with a larger batch."
        )
    reasons = {
        "compression": config.compression.option != "none" and f"`{config.compression.option}` looks at whole matrices",
        "averaged weights": config.ema > 0 and "`ema` would need a second network in parts",
        "precision": config.precision in ("bf16-master", "fp8") and f"`{config.precision}` keeps copies of whole matrices",
        "optimizer": config.optimizer.name not in SPREAD_OPTIMIZERS
        and f"`{config.optimizer.name}` trains whole matrices; {', '.join(SPREAD_OPTIMIZERS)} train parts of them",
        "mixer": config.model.mixer == "lstm" and "PyTorch's LSTM wants its weights whole and in one place",
        "graphs": config.cuda_graphs and "CUDA graphs want weights that stay where they are",
    }
    for why in (reason for reason in reasons.values() if reason) if kind == "fsdp" else ():
        raise ConfigError(
            f"this final cannot be trained in parts (`fsdp`): {why}. Use `--parallel ddp`, if the model fits one device, or another trial."
        )
