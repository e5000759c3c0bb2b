"""A team of processes, started and watched by torch's elastic agent, which is what `torchrun` runs.

The agent starts a process for each device, and all of them again, from their newest checkpoint, when one is lost. This process keeps the account
meanwhile: whatever becomes of the members, the devices are held, and the time is charged as it passes.
"""

import tempfile
import threading
import uuid
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from budgetlm.budget.clock import Meter
from budgetlm.errors import ConfigError, StudyError
from budgetlm.records import CurvePoint, RunRecord
from budgetlm.train.parallel.member import Ready, Task, Word, quieten, work
from budgetlm.workers.job import TRANSIENT, Failure, Spent

TICK_SECONDS = 0.1
GOODBYE_SECONDS = 10
"""How long members that are to end are waited for before they are ended by force."""


def train_together(
    task: Task,
    devices: int,
    meter: Meter,
    *,
    restarts: int,
    on_point: Callable[[CurvePoint], None],
    should_stop: Callable[[], bool],
    note: Callable[[str], None],
) -> tuple[RunRecord, list[str]]:
    """Let a team of so many devices do a task.

    Args:
        meter: on a clock of seconds, which are charged for all devices; it is told what the leader says that they were for.
        restarts: how often a team that has lost a member begins again from its newest checkpoint.
        should_stop: asked all the time; the team then saves what it has, and the record says `interrupted`.
        note: told when a team begins again.

    Returns:
        The run's record, and what was wrong with checkpoints that were passed over.

    Raises:
        ConfigError, StudyError: as in one process; or the team was lost too often.
    """
    team, begun, last_word, goes_on = _Team(task, devices, restarts), False, meter.clock.now(), True
    try:
        team.start()
        while goes_on:
            goes_on = team.is_alive()  # looked at before its last words are read
            for word in team.heard(TICK_SECONDS if goes_on else 0):
                match word:
                    case Ready():
                        meter.explain({"start": meter.clock.now() - last_word})
                        if begun:
                            note(f"resuming  a process was lost; all {devices} began again from the newest checkpoint")
                        begun = True
                    case Spent():
                        meter.explain({purpose: seconds / devices for purpose, seconds in word.by_purpose.items()})
                    case CurvePoint():
                        on_point(word)
                    case Failure() if word.cause not in TRANSIENT:
                        _raise(word)
                last_word = meter.clock.now()
            meter.tick()
            if should_stop():
                team.ask_to_stop()
        return team.outcome()
    finally:
        team.end()


def _raise(failure: Failure) -> None:
    match failure.cause:
        case "configuration":
            raise ConfigError(failure.message)
        case "study":
            raise StudyError(failure.message)
        case "memory":
            raise StudyError(
                f"{failure.message}. The checkpoint before is kept. Give more devices with `--parallel fsdp`, or another trial."
            )
    raise RuntimeError(f"a process of the team failed:\n{failure.message}")


class _Team(threading.Thread):
    """The elastic agent, in a thread, and the lines to the members."""

    def __init__(self, task: Task, devices: int, restarts: int) -> None:
        super().__init__(name="budgetlm-agent", daemon=True)
        self._task, self._devices, self._restarts = task, devices, restarts
        self._ours: list[Connection] = []
        self._theirs: list[Connection] = []  # kept open, for members that are started again
        for _ in range(devices):
            ours, theirs = Pipe()
            self._ours.append(ours)
            self._theirs.append(theirs)
        self._asked, self._result = False, dict[int, Any]()
        self._error: Exception | None = None

    def run(self) -> None:
        """Work the agent until the task is done, or given up."""
        quieten()
        with tempfile.TemporaryDirectory(prefix="budgetlm-") as logs:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=self._devices,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                max_restarts=self._restarts,
                monitor_interval=TICK_SECONDS,
                shutdown_timeout=GOODBYE_SECONDS,
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
            try:
                self._result = elastic_launch(config, work)(self._task, self._theirs)
            except Exception as error:  # noqa: BLE001  # looked at where it is waited for
                self._error = error

    def heard(self, seconds: float) -> list[Word]:
        """What the members have said; waits up to `seconds` for the first word."""
        words: list[Word] = []
        for line in wait(self._ours, seconds):
            assert isinstance(line, Connection)
            while line.poll():
                words.append(line.recv())
        return words

    def ask_to_stop(self) -> None:
        """Ask all members, once, to save what they have and return."""
        if not self._asked:
            self._asked = True
            for line in self._ours:
                line.send("stop")

    def outcome(self) -> tuple[RunRecord, list[str]]:
        """What the leader has returned."""
        if self._error is None:
            record, notes = self._result[0]
            return record, notes
        if isinstance(self._error, ChildFailedError):
            raise StudyError(
                f"the final lost a process {self._restarts + 1} times ({_how(self._error)}) and gave up. Its newest checkpoint is kept; the same "
                "command goes on from there."
            )
        raise self._error

    def end(self) -> None:
        """Leave nothing running: members without an asker leave at once, and none can be started again."""
        for line in (*self._ours, *self._theirs):
            line.close()
        self.join(GOODBYE_SECONDS)


def _how(error: ChildFailedError) -> str:
    """How the first of a lost team's members ended."""
    rank, failure = error.get_first_failure()
    return f"the last time rank {rank}, with exit code {failure.exitcode}"
