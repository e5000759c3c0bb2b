"""The inside of a team's process: join the others, train, and say how it goes.

The process leaves at once when the one that asked for it is gone. A request to stop comes from there, and is heeded by all at the same step. SIGTERM
may come from a scheduler, which sends it to everybody, or from torch's elastic agent, which ends a team that has lost a member:
it is the former where the request to stop follows.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not said to be

from budgetlm.budget.clock import AttendedClock, Clock, Meter, Purpose
from budgetlm.data.tokens import Tokens
from budgetlm.records import CurvePoint, RunRecord
from budgetlm.train.config import Label, RunConfig
from budgetlm.train.loop import Checkpoints, train
from budgetlm.train.model_folder import write_model
from budgetlm.train.parallel.ddp import DataParallel
from budgetlm.train.parallel.kinds import Kind
from budgetlm.train.parallel.members import Members
from budgetlm.workers.job import Failure, Spent, failure_of

ORPHANED, ENDED = 3, 143
"""Exit codes: nobody is left to work for; ended by SIGTERM, as shells have it."""
PATIENCE_SECONDS = 2.0
"""How long after SIGTERM a request to stop is waited for."""
SECONDS_BETWEEN_WORDS = 0.25
LOST = ("closed by peer", "Connection reset", "Broken pipe", "timed out", "Timed out", "NCCL", "recvValue failed")
"""What the others' errors say when a member is gone."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all members of a team are given."""

    kind: Kind
    config: RunConfig
    label: Label
    tokens: Tokens
    checkpoints: Checkpoints
    folder: Path
    """Where the model is to be."""
    reserve: float
    """Device-seconds before the deadline that are left over for what follows."""
    spent_seconds: float
    """Device-seconds that were used up at `launched`."""
    launched: float
    """The machine's monotonic clock when the devices began to be held."""
    threads: int
    """CPU threads of a member."""
    offload: bool = False
    """Whether parts of weights wait in the processor's memory."""
    parts: int = 0
    """Devices that hold the network together, where not all of them do."""
    hang_seconds: float
    """A member that the others wait for so long is given up."""


@dataclass(frozen=True)
class Ready:
    """The team has met, and begins."""

    device_seconds: float
    """Used up by then, as the leader counts."""


Word = Ready | Spent | CurvePoint | Failure


class Voice(Protocol):
    """A member's line to who asked for it."""

    asked: Callable[[], bool]
    """Whether it is to save what it has and return."""

    def say(self, word: Word) -> None:
        """Let them know."""

    def spent(self, _run: str, by_purpose: Mapping[Purpose, float]) -> None:
        """Let them know what seconds were for."""


def work(task: Task, connections: Sequence[Connection]) -> tuple[RunRecord, list[str]]:
    """Train as a member of the team that torch's elastic agent has started. Returns the record and notes; the leader's count.

    Args:
        connections: to who asked for it, one for each member.
    """
    return train_as_member(task, _Line(connections[int(os.environ["LOCAL_RANK"])]))


def train_as_member(task: Task, line: Voice) -> tuple[RunRecord, list[str]]:
    """The same of any team that meets as `torchrun` has its environment say, and with any line."""
    quieten()
    try:
        return _train(task, line)
    except Exception as error:
        line.say(_failure(error))
        raise


def quieten() -> None:
    """Keep torch's elastic agent from reporting what we say ourselves."""
    talkers = ("torch.distributed.elastic", "torch.multiprocessing")
    for name in [name for name in logging.root.manager.loggerDict if name.startswith(talkers)]:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def make_team(
    kind: Kind, clock: Clock, asked: Callable[[], bool], device: str = "cpu", *, offload: bool = False, parts: int = 0
) -> Members:
    """The team of this kind, of the processes that have met; arguments as of `Members`, `Sharded` and `TensorParallel`."""
    match kind:
        case "ddp":
            return DataParallel(clock, asked, device)
        case "fsdp":
            from budgetlm.train.parallel.fsdp import Sharded

            return Sharded(clock, asked, device, offload=offload)
        case "tp" | "ddp,tp":
            from budgetlm.train.parallel.tp import TensorParallel

            return TensorParallel(clock, asked, device, parts)
        case "fsdp,tp":
            from budgetlm.train.parallel.fsdp_tp import ShardedTensorParallel

            return ShardedTensorParallel(clock, asked, device, parts)
        case "pp":
            from budgetlm.train.parallel.pp import Pipelined

            return Pipelined(clock, asked, device)


def _train(task: Task, line: Voice) -> tuple[RunRecord, list[str]]:
    torch.set_num_threads(task.threads)
    backend = "gloo"
    if task.config.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    _join(backend, timedelta(seconds=task.hang_seconds))
    clock = AttendedClock()  # a member waits for the others in every step
    try:
        team = make_team(task.kind, clock, line.asked, task.config.device, offload=task.offload, parts=task.parts)
        team.agree()
        used = team.heard(task.spent_seconds + team.size * (time.monotonic() - task.launched))
        if team.leads:
            line.say(Ready(used))
        meter = Meter(
            team.clock,
            line.spent if team.leads else None,
            flush_seconds=team.size * SECONDS_BETWEEN_WORDS,
            purpose="start",
        )
        trained = train(
            task.config,
            task.label,
            task.tokens,
            meter,
            on_point=line.say if team.leads else None,
            should_stop=team.stopping,
            checkpoints=task.checkpoints,
            spent_seconds=used,
            reserve=task.reserve,
            team=team,
        )
        record = trained.record
        if team.leads and record.state == "done":
            record = write_model(task.folder, trained, task.tokens)
        meter.flush()
        return record, trained.notes
    finally:
        clock.close()
        dist.destroy_process_group()


def _join(backend: str, patience: timedelta) -> None:
    """Meet the others at the agent's store, or the leader's, where those of an earlier attempt have left addresses at which nobody is any more: under names of one's own."""
    host, port, attempt = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "False"  # nobody else does
    store = TCPStore(host, int(port), size, is_master=hosts, timeout=patience)
    dist.init_process_group(
        backend, store=PrefixStore(f"attempt {attempt}", store), rank=rank, world_size=size, timeout=patience
    )


def _failure(error: Exception) -> Failure:
    """The failure that an error stands for; where it only says that another member is gone, one that may not come again."""
    lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(t in str(error) for t in LOST))
    return Failure("killed", f"a member of the team is gone: {error}") if lost else failure_of(error)


class _Line:
    """A member's line to the process that asked for it."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._asked = connection, threading.Event()
        self.asked = self._asked.is_set
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the asker decides what becomes of it
        ended, ending = os.pipe()
        os.set_blocking(ending, False)
        signal.set_wakeup_fd(ending, warn_on_full_buffer=False)  # heard of also while Python waits for a device
        signal.signal(signal.SIGTERM, lambda *_: None)
        threading.Thread(target=self._listen, args=(ended,), daemon=True).start()

    def say(self, word: Word) -> None:
        with suppress(OSError):  # the listener notices
            self._connection.send(word)

    def spent(self, _run: str, by_purpose: Mapping[Purpose, float]) -> None:
        self.say(Spent(dict(by_purpose)))

    def _listen(self, ended: int) -> None:
        patience: float | None = None
        try:
            while True:
                ready = wait([self._connection, ended], patience)
                if self._connection in ready:
                    self._connection.recv()
                    self._asked.set()
                elif not ready and not self.asked():
                    os._exit(ENDED)
                if ended in ready:
                    os.read(ended, 1)
                patience = PATIENCE_SECONDS if ended in ready and not self.asked() else None
        except (EOFError, OSError):
            os._exit(ORPHANED)
