"""A team of processes on this machine, started and watched by torch's elastic agent, which is what `torchrun` runs."""

import tempfile
import threading
import uuid
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from budgetlm.records import RunRecord
from budgetlm.train.parallel.launch import GOODBYE_SECONDS, TICK_SECONDS, lost_too_often
from budgetlm.train.parallel.member import Task, Word, quieten, work


class Agent(threading.Thread):
    """The elastic agent, in a thread, and the lines to the members.

    Args:
        task: of all of them.
        devices: how many there are.
        restarts: how often a team that has lost a member begins again from its newest checkpoint.
    """

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
            raise lost_too_often(self._restarts + 1, _how(self._error))
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
