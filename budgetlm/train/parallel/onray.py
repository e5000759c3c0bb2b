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
    """The tasks of a team, and the line to them. Nothing here waits long, so that who pays for the devices sees the time pass.

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
        self._asked_for: Any = None
        """What the line will have taken."""
        self._address: Any = None
        """What will say where the leader can be met; there are no members before."""
        self._members: list[Any] = []
        self._began = 0.0
        self._here: set[int] = set()
        """Members of this attempt that were heard of."""
        self._lost: StudyError | None = None
        self._returned: list[Any] | None = None
        self._ended, self._ending = False, 0.0
        """Whether this attempt's members were ended by force, and when."""

    def start(self) -> None:
        """Ask for places for all members, and begin as soon as there are."""
        self._group = self._ray.util.placement_group([self._needs] * self._devices, strategy="PACK")
        self._begin()

    def is_alive(self) -> bool:
        """Whether they are still at it; what was lost is begun again."""
        try:
            self._go_on()
        except self._ray.exceptions.RayError as error:
            self._again(error)
        return self._returned is None and self._lost is None

    def heard(self, seconds: float) -> list[Word]:
        """What the members have said; waits up to `seconds` for one of them to end."""
        self._ray.wait(self._members or [self._address], num_returns=1, timeout=seconds)
        over = self._returned is not None or self._lost is not None
        said = self._taken(wait=over)
        if over:  # the last words were said after that question
            said += self._taken(wait=True)
        self._here |= {number for number, _ in said} & set(self._numbers())
        return [word for _, word in said if word is not None]

    def _taken(self, *, wait: bool) -> list[tuple[int, Any]]:
        """What the line has; it may not be there yet when the first is asked for it."""
        self._asked_for = self._asked_for or self._line.take.remote()
        if not wait and not self._ray.wait([self._asked_for], timeout=0)[0]:
            return []
        said: list[tuple[int, Any]] = self._ray.get(self._asked_for)
        self._asked_for = None
        return said

    def ask_to_stop(self) -> None:
        """Ask all members, once, to save what they have and return."""
        if not self._asked:
            self._asked = True
            self._line.ask.remote(self._numbers())

    def outcome(self) -> tuple[RunRecord, list[str]]:
        """What the leader has returned.

        Raises:
            StudyError: they were lost too often, or the cluster has no room for them.
        """
        if self._lost:
            raise self._lost
        assert self._returned is not None, "the team is still at it"
        record, notes = self._returned[0]
        return record, notes

    def end(self) -> None:
        """Leave nothing running, and give the places back."""
        self._end_all()
        if self._members:
            self._ray.wait(self._members, num_returns=self._devices, timeout=GOODBYE_SECONDS, fetch_local=False)
        if self._group is not None:
            self._ray.util.remove_placement_group(self._group)

    def _numbers(self) -> list[int]:
        return [self._attempt * self._devices + rank for rank in range(self._devices)]

    def _begin(self) -> None:
        self._began, self._members, self._here = monotonic(), [], set()
        self._address = self._ray.remote(num_cpus=0)(_address).options(scheduling_strategy=self._place(0)).remote()

    def _place(self, rank: int) -> Any:
        at = self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        return at(self._group, placement_group_bundle_index=rank)

    def _go_on(self) -> None:
        waited = monotonic() - self._began
        if len(self._here) < self._devices and waited > START_SECONDS and (why := self._why_given_up(waited)):
            self._lost = StudyError(f"{why} The same command goes on when there is room.")
        elif self._members:
            ended, _ = self._ray.wait(self._members, num_returns=self._devices, timeout=0)
            returned = self._ray.get(ended)
            self._returned = returned if len(ended) == self._devices else None
        elif self._ray.wait([self._address], timeout=0)[0]:
            self._meet(*self._ray.get(self._address))

    def _why_given_up(self, waited: float) -> str:
        """Why members that were not heard of for so long are waited for no longer; empty where they have their places and may yet be loading."""
        if self._ray.util.placement_group_table(self._group)["state"] != "CREATED":
            return f"the Ray cluster had no room for {self._devices} devices within {waited:.0f} s; others use it, or a node is gone."
        if waited > self._task.hang_seconds:
            return f"of {self._devices} members on the Ray cluster {len(self._here)} had begun after {waited:.0f} s."
        return ""

    def _meet(self, host: str, port: str) -> None:
        # A process of its own for each: a device's memory is free when its member is gone.
        member = self._ray.remote(max_retries=0, max_calls=1, **as_options(self._needs))(_work)
        meeting = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(self._devices), "LOCAL_RANK": "0"}
        meeting |= {"TORCHELASTIC_RESTART_COUNT": str(self._attempt), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        self._members = [
            member.options(scheduling_strategy=self._place(rank)).remote(
                self._task, self._line, number, {**meeting, "RANK": str(rank)}
            )
            for rank, number in enumerate(self._numbers())
        ]
        if self._asked:
            self._line.ask.remote(self._numbers())

    def _again(self, error: Exception) -> None:
        self._end_all()
        _, alive = self._ray.wait(self._members, num_returns=self._devices, timeout=0) if self._members else ([], [])
        if alive and monotonic() - self._ending < GOODBYE_SECONDS:
            return  # looked at again soon: a leader may be writing a checkpoint still
        self._ended, self._attempt = False, self._attempt + 1
        if self._attempt > self._restarts:
            self._lost = lost_too_often(self._attempt, f"the last time by {type(error).__name__}")
        else:
            self._begin()

    def _end_all(self) -> None:
        if not self._ended:
            self._ended, self._ending = True, monotonic()
            for member in self._members:
                self._ray.cancel(member, force=True)
