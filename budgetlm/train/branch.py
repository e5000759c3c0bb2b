"""Trunk and branch: a run leaves what it shares with others as a checkpoint, and begins from what another has left (`train/trunk.py` says which share one).

Trunks lie in a folder, those of one kind in a folder of their own there, named by how long they are.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from budgetlm.errors import CheckpointError, DiskFull, StudyError
from budgetlm.files import digest
from budgetlm.train.checkpoint import Position, load_newest, save_checkpoint
from budgetlm.train.config import RunConfig
from budgetlm.train.trunk import can_begin_at, trunk_of


def begin_from_trunk(
    trunks: Path,
    config: RunConfig,
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: nn.Module | None,
    fit: Callable[[Position], None],
) -> Position:
    """Take over what another run has trained already, if there is such a one and it can be read: of those that suit, the longest's.

    Args:
        trunks: where they lie.
        config: of the run that begins.
        average: the network with its averaged weights, where the run averages them.
        fit: gives network, average and optimizers the shapes that they had at a position.

    Returns:
        Where the run stands now: at the start if there is none.
    """
    trunk = trunk_of(config)
    for folder in sorted((trunks / digest(trunk)).glob("*"), reverse=True):
        with suppress(CheckpointError):  # then it is trained here, as if it had not been
            position, _ = load_newest(
                folder, network, optimizers, trunk, average, lambda at: can_begin_at(config, at.seconds, at.step), fit
            )
            if position.step:
                return position
    return Position()


def leave_trunk(
    trunks: Path,
    config: RunConfig,
    run: str,
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: nn.Module | None,
    position: Position,
) -> Path | None:
    """Keep the state before the rate falls, as the position that another run begins from. Nobody depends on it: where it cannot be written, it is not kept.

    Args:
        trunks: where they lie.
        config: of the run that leaves it.
        run: its name.
        average: the network with its averaged weights, where the run averages them.
        position: where it stands.

    Returns:
        The checkpoint, if it could be written.
    """
    trunk = trunk_of(config)
    folder = trunks / digest(trunk) / f"{config.seconds or config.steps:014.3f}"
    inherited = replace(position, inherited_seconds=position.seconds, inherited_from=run)
    with suppress(DiskFull, StudyError):
        return save_checkpoint(folder, network, optimizers, inherited, trunk, average)
    return None
