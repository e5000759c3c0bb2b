"""Two or more processes of the test's own, and what they do together: small runs of every kind."""

import itertools
import os
import signal
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from budgetlm.budget.clock import ManualClock, Meter
from budgetlm.data.tokens import Tokens
from budgetlm.records import CurvePoint
from budgetlm.train.config import Label, RunConfig
from budgetlm.train.energy import Counter, EnergyMeter
from budgetlm.train.loop import Checkpoints, train
from budgetlm.train.parallel.member import _join, make_team, quieten
from budgetlm.train.parallel.team import ALONE, Team
from budgetlm.train.step import Stepper

LABEL = Label(run="run", kind="final", trial=0, rung=0, recipe={}, target_seconds=0.0)


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    losses: list[float]
    bpb: float | None
    steps: int
    seconds: float
    weights: dict[str, torch.Tensor]
    peak_bytes: int
    tokens_per_second: float
    joules: float


def together(
    function: Callable[..., Any], *arguments: Any, logs: Path, devices: int = 2, start: str = "spawn", restarts: int = 0
) -> dict[int, Any]:
    """What each of so many processes returns."""
    quieten()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=restarts,
        start_method=start,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
    )
    return elastic_launch(config, function)(*arguments)


def trained(
    config: RunConfig,
    tokens: Tokens,
    team: Team = ALONE,
    folder: Path | None = None,
    stop_after: int = 0,
    dies_after: int = 0,
) -> Outcome:
    """A run by steps, or, in the middle of a gang, this member's part of it.

    Args:
        folder: for checkpoints, which it begins from.
        stop_after: ask it to stop at this step.
        dies_after: kill a member that does not lead at this step; checkpoints are written all the time then.
    """
    points: list[CurvePoint] = []
    clock = getattr(team, "clock", None) or ManualClock()
    checkpoints = Checkpoints(folder=folder, every_steps=2 if dies_after else 10**9) if folder else None
    seen = lambda: bool(stop_after and points and points[-1].step >= stop_after)  # noqa: E731

    def see(point: CurvePoint) -> None:
        points.append(point)
        if dies_after and point.step >= dies_after and not team.leads:
            os.kill(os.getpid(), signal.SIGKILL)

    result = train(config, LABEL, tokens, Meter(clock), on_point=see, should_stop=seen, checkpoints=checkpoints, team=team)
    kept = result.network.state_dict() if team.leads and result.record.state == "done" else {}
    weights = {name: value.detach().clone() for name, value in kept.items()}
    return Outcome(
        [p.loss for p in points],
        result.record.bpb,
        result.record.steps,
        result.record.seconds,
        weights,
        result.record.peak_bytes,
        result.record.tokens_per_second,
        result.record.energy_joules,
    )


@dataclass(frozen=True)
class Run:
    """A run that a gang is asked for."""

    kind: str
    config: RunConfig
    folder: Path | None = None
    stop_after: int = 0
    offload: bool = False
    parts: int = 0
    dies_after: int = 0
    """A member dies at this step, of the attempt of this run's number."""


def runs(wanted: Sequence[Run], tokens: Tokens) -> list[Outcome | str]:
    """What came of each, on clocks of which a step moves the leader's by 0.1 s, and another's by 1."""
    torch.set_num_threads(1)
    _join("gloo", timedelta(seconds=60))
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    outcomes, clock = [], ManualClock()
    plain = Stepper.step

    def timed(self, rows, lr):
        clock.move(0.1 if dist.get_rank() == 0 else 1.0)
        return plain(self, rows, lr)

    Stepper.step = timed
    taken = itertools.count()
    EnergyMeter.of = lambda _: EnergyMeter([Counter(lambda: float(next(taken)))], share=dist.get_rank())
    for number, run in enumerate(wanted):
        dies = run.dies_after if number == attempt else 10**9 if run.dies_after else 0
        team = make_team(run.kind, clock, lambda: False, offload=run.offload, parts=run.parts)
        team.agree()
        try:
            outcomes.append(trained(run.config, tokens, team, run.folder, run.stop_after, dies))
        except Exception as error:  # its own test is to fail, and not the others'
            if dies:
                raise
            outcomes.append(f"{type(error).__name__}: {error}")
    dist.barrier()
    dist.destroy_process_group()
    return outcomes
