"""A team of processes on the nodes of a Ray cluster: a task for each device, in a placement group, so that all have their place or none has.

What torch's elastic agent does on one machine is done here: a member that is lost ends all of them, and all begin again from the newest
checkpoint, which is in a folder that every node sees. Ray finds another place for what was on a node that is gone. Source: Ray 2, "Placement groups".
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from time import monotonic
from typing import Any

from budgetlm.budget.clock import Purpose
from budgetlm.errors import StudyError
from budgetlm.records import RunRecord
from budgetlm.train.parallel.launch import GOODBYE_SECONDS, lost_too_often
from budgetlm.train.parallel.member import Task, Word, train_as_member
from budgetlm.workers.job import Spent
from budgetlm.workers.raylink import START_SECONDS, Speaker, as_options, check_node, open_line


class _Voice:
    """A member's line to who asked for it."""

    def __init__(self, speaker: Speaker) -> None:
        self.say, self.asked = speaker.say, speaker.asked

    def spent(self, _run: str, by_purpose: Mapping[Purpose, float]) -> None:
        self.say(Spent(dict(by_purpose)))


def _work(task: Task, line: Any, number: int, meeting: Mapping[str, str]) -> tuple[RunRecord, list[str]]:
    """A Ray task: be a member.

    Args:
        number: under which it speaks.
        meeting: where the members meet, and which of them this is, in the words of `torchrun`.
    """
    import ray

    os.environ.update(meeting)
    speaker = Speaker(line, number)
    try:
        check_node(task.label.passport, task.threads)
        launched = monotonic() - ray.get(line.since.remote(task.launched))  # on this machine's clock
        return train_as_member(replace(task, launched=launched), _Voice(speaker))
    finally:
        speaker.close()


def _address() -> tuple[str, str]:
    """A Ray task: where the leader can be met."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        return ray.util.get_node_ip_address(), str(free.getsockname()[1])


class OnRay:
    """The tasks of a team, and the line to them.

    Args:
        ray: connected.
        task: of all members.
        devices: how many there are.
        needs: of the cluster, by each of them.
        restarts: how often a team that has lost a member begins again from its newest checkpoint.
    """

    def __init__(self, ray: Any, task: Task, devices: int, needs: dict[str, float], restarts: int) -> None:
        self._ray, self._task, self._devices, self._needs, self._restarts = ray, task, devices, needs, restarts
        self._attempt, self._asked, self._line = 0, False, open_line(ray)
        self._group: Any = None
        self._members: list[Any] = []
        self._returned: list[Any] | None = None
        self._lost: StudyError | None = None

    def start(self) -> None:
        """Find places for all members, and begin.

        Raises:
            StudyError: the cluster has none.
        """
        self._group = self._ray.util.placement_group([self._needs] * self._devices, strategy="PACK")
        self._begin()

    def is_alive(self) -> bool:
        """Whether they are still at it; what was lost is begun again."""
        ended, _ = self._ray.wait(self._members, num_returns=self._devices, timeout=0)
        try:
            returned = self._ray.get(ended)
        except self._ray.exceptions.RayError as error:
            return self._again(error)
        self._returned = returned if len(ended) == self._devices else None
        return self._returned is None

    def heard(self, seconds: float) -> list[Word]:
        """What the members have said; waits up to `seconds` for one of them to end."""
        self._ray.wait(self._members, num_returns=1, timeout=seconds)
        return [word for _, word in self._ray.get(self._line.take.remote()) if word is not None]

    def ask_to_stop(self) -> None:
        """Ask all members, once, to save what they have and return."""
        if not self._asked:
            self._asked = True
            self._line.ask.remote(self._numbers())

    def outcome(self) -> tuple[RunRecord, list[str]]:
        """What the leader has returned.

        Raises:
            StudyError: they were lost too often.
        """
        if self._lost:
            raise self._lost
        assert self._returned is not None, "the team is still at it"
        record, notes = self._returned[0]
        return record, notes

    def end(self) -> None:
        """Leave nothing running, and give the places back."""
        self._cancel()
        if self._group is not None:
            self._ray.util.remove_placement_group(self._group)

    def _numbers(self) -> list[int]:
        return [self._attempt * self._devices + rank for rank in range(self._devices)]

    def _begin(self) -> None:
        assert self._group is not None
        if not self._group.wait(START_SECONDS):
            raise StudyError(
                f"the Ray cluster had no room for {self._devices} devices within {START_SECONDS:.0f} s; others use it, or a node is gone. The same "
                "command goes on when there is room."
            )
        at = self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        places = [at(self._group, placement_group_bundle_index=rank) for rank in range(self._devices)]
        address = self._ray.remote(num_cpus=0)(_address).options(scheduling_strategy=places[0])
        host, port = self._ray.get(address.remote())
        # A process of its own for each: a device's memory is free when its member is gone.
        member = self._ray.remote(max_retries=0, max_calls=1, **as_options(self._needs))(_work)
        meeting = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(self._devices), "LOCAL_RANK": "0"}
        meeting |= {"TORCHELASTIC_RESTART_COUNT": str(self._attempt), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        self._members = [
            member.options(scheduling_strategy=place).remote(self._task, self._line, number, {**meeting, "RANK": str(rank)})
            for rank, (place, number) in enumerate(zip(places, self._numbers(), strict=True))
        ]
        if self._asked:
            self._line.ask.remote(self._numbers())

    def _again(self, error: Exception) -> bool:
        """Whether those that have lost a member could begin once more."""
        self._cancel()
        self._attempt += 1
        if self._attempt > self._restarts:
            self._lost = lost_too_often(self._attempt, f"the last time by {type(error).__name__}")
            return False
        self._begin()
        return True

    def _cancel(self) -> None:
        for member in self._members:
            self._ray.cancel(member, force=True)
        if self._members:
            self._ray.wait(self._members, num_returns=len(self._members), timeout=GOODBYE_SECONDS, fetch_local=False)
