"""Save and resume a run: weights, their average, optimizers, position. Whole or absent, checked on reading, never a pickle.

A checkpoint is a folder `step-00000123` with `tensors.safetensors` and `state.json`, which holds the checksum of the
former. The data position is the number of sequences read, and the data order is a function of it; PyTorch's own random
state goes along.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from budgetlm.errors import CheckpointError, DiskFull
from budgetlm.files import digest, new_folder, write_json
from budgetlm.model.transformer import LanguageModel, tied_names
from budgetlm.train.parallel.team import ALONE, Team

TENSORS, STATE = "tensors.safetensors", "state.json"
RESERVE_BYTES = 8 * 2**20
"""Room that a checkpoint leaves on the disk, for records and the ledger."""
KEEP = 2
"""Checkpoints kept: the newest, and one before it in case the newest is damaged."""


@dataclass(frozen=True)
class Position:
    """Where a run stands."""

    step: int = 0
    sequences: int = 0
    """Training sequences read so far; the next batch begins there."""
    seconds: float = 0.0
    """Device-seconds of the run when this was written."""
    compile_seconds: float = 0.0
    """Of these, what compiling took: progress goes by the rest."""
    loss: float = math.nan
    """Training loss of the last step."""
    route: tuple[int, ...] = ()
    """Parts of a streamed source that were read so far (`data/batches.py`)."""
    inherited_seconds: float = 0.0
    """Device-seconds that another run has spent on its way here (`train/trunk.py`)."""
    inherited_from: str = ""
    """The name of that run."""
    pruning_updates: int = 0
    """How far pruning had got (`compress/compressor.py`)."""
    shrunk_at: int = -1
    """Sequences read when parts of the network were taken out; -1 if they are still there."""


class Elsewhere(Protocol):
    """Keeps copies of a run's checkpoints where other machines find them. It neither fails nor makes training wait: sending goes on beside it."""

    @property
    def seconds(self) -> float:
        """What it takes to send one; 0 before that is known."""

    def saved(self, checkpoint: Path) -> None:
        """The run's newest checkpoint is whole."""

    def left(self, trunk: Path) -> None:
        """So is its trunk (`train/trunk.py`)."""


_POSITION = {field.name for field in fields(Position)}


def save_checkpoint(
    folder: Path,
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    position: Position,
    config: dict[str, Any],
    average: nn.Module | None = None,
    team: Team = ALONE,
) -> Path:
    """Write a checkpoint and drop all but the newest few.

    Args:
        average: the network with its averaged weights, where the run averages them.
        team: whose members all call this; the leader writes what one device alone would have.

    Raises:
        DiskFull: it would not fit; nothing was written.
    """
    tensors = _weights("model", network) | (_weights("average", average) if average else {})
    groups: list[list[dict[str, Any]]] = []
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        groups.append(state["param_groups"])
        for index, values in state["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{name}": value for name, value in values.items()}
    tensors["random"] = torch.get_rng_state()
    path = checkpoint_folder(folder, position.step)
    tensors = team.gathered(tensors)
    if not team.leads:
        return path
    _make_room(folder, sum(value.nbytes for value in tensors.values()))
    with new_folder(path) as new:
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, new / TENSORS)
        state = {**asdict(position), "config": digest(config)}
        state |= {"groups": groups, "checksum": _checksum(new / TENSORS)}
        write_json(new / STATE, state)
    for old in _checkpoints(folder)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load_newest(
    folder: Path,
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    config: dict[str, Any],
    average: nn.Module | None = None,
    suits: Callable[[Position], bool] = lambda _: True,
    fit: Callable[[Position], None] = lambda _: None,
    team: Team = ALONE,
) -> tuple[Position, list[str]]:
    """Load the newest checkpoint that is whole into the network, its average and the optimizers.

    Args:
        suits: whether one at this position will do.

        fit: called with a checkpoint's position once it is known to be whole, so that network, average and optimizers can be given the shapes
            that they had then.
        team: whose members all call this, and take of what one device alone would have what they hold.

    Returns:
        Where the run stands (at the start if there is none), and what was wrong with those that were passed over.

    Raises:
        CheckpointError: checkpoints are there, but none can be used.
    """
    faults: list[str] = []
    for path in _checkpoints(folder):
        try:
            position = _load(path, network, optimizers, config, average, suits, fit, team)
            if position:
                return position, faults
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError(f"{' '.join(faults)} No other is left. Delete {folder} to begin this run again.")
    return Position(), faults


def _load(
    path: Path,
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    config: dict[str, Any],
    average: nn.Module | None,
    suits: Callable[[Position], bool],
    fit: Callable[[Position], None],
    team: Team,
) -> Position | None:
    """Load a checkpoint, if its position suits."""
    try:
        state = json.loads((path / STATE).read_text())
        position = Position(**{name: state[name] for name in _POSITION & state.keys()})
        position = replace(position, route=tuple(position.route))
        if not suits(position):
            return None
        intact = _checksum(path / TENSORS) == state["checksum"]
        tensors = load_file(path / TENSORS) if intact else {}
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise CheckpointError(f"The checkpoint {path} cannot be read ({type(error).__name__}: {error}).") from error
    if not intact:
        raise CheckpointError(f"The checkpoint {path} is damaged: its checksum does not match.")
    if state["config"] != digest(config):
        raise CheckpointError(f"The checkpoint {path} belongs to another configuration.")
    fit(position)
    _restore("model", network, tensors, team)
    if average:
        _restore("average", average, tensors, team)
    for number, (optimizer, groups) in enumerate(zip(optimizers, state["groups"], strict=True)):
        values: dict[int, dict[str, Any]] = {}
        trained = [weight for group in optimizer.param_groups for weight in group["params"]]
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{number}."):
                index, key = name.split(".")[2:]
                values.setdefault(int(index), {})[key] = team.part(value, trained[int(index)])
        optimizer.load_state_dict({"state": values, "param_groups": groups})
    torch.set_rng_state(tensors["random"])
    return position


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint in a folder; -1 if there is none."""
    return next((step_of(path) for path in _checkpoints(folder)), -1)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, from the name of its folder."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def _weights(name: str, network: nn.Module) -> dict[str, Tensor]:
    """A network's tensors as a checkpoint names them."""
    return {f"{name}.{key}": value for key, value in network.state_dict().items() if key not in _second_names(network)}


def _restore(name: str, network: nn.Module, tensors: dict[str, Tensor], team: Team) -> None:
    """Put the tensors of that name back into a network."""
    found = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    own = network.state_dict()
    weights = {key: team.part(value, own.get(key, value)) for key, value in found.items()}
    missing = network.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys, missing
    assert set(missing.missing_keys) <= _second_names(network), missing


def _make_room(folder: Path, needed: int) -> None:
    """See that a checkpoint of so many bytes fits, at the price of the older one if it must be.

    Raises:
        DiskFull: it does not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed += RESERVE_BYTES
    if shutil.disk_usage(folder).free < needed:
        for old in _checkpoints(folder)[1:]:
            shutil.rmtree(old, ignore_errors=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise DiskFull(
            f"a checkpoint under {folder} needs {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free. Nothing was written or "
            f"damaged. Free {(needed - free) / 1e6:.0f} MB, then repeat the command: it goes on from the checkpoint before."
        )


def _second_names(network: nn.Module) -> set[str]:
    """Names of the head's matrices where they are the embedding's under a second name, which safetensors would refuse to write twice."""
    return set(tied_names(network.config)) if isinstance(network, LanguageModel) else set()


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=step_of, reverse=True)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
