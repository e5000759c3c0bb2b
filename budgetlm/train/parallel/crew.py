"""Which devices train together, and who starts and watches their processes: torch's elastic agent on this machine, or Ray on a cluster."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from budgetlm.passport import visible_gpus
from budgetlm.train.parallel.kinds import check_devices
from budgetlm.workers.raylink import connect, needs_of, room

if TYPE_CHECKING:
    from budgetlm.train.parallel.launch import Processes
    from budgetlm.train.parallel.member import Task


@dataclass(frozen=True)
class Crew:
    """So many devices."""

    count: int
    threads: int
    """CPU threads of each one's process."""
    where: str = ""
    """In words, unless it is here."""
    ray: Any = None
    """The module, where it is connected to a cluster that trains."""
    needs: dict[str, float] = field(default_factory=dict)
    """Of the cluster, by each of them."""

    def hire(self, task: "Task", restarts: int) -> "Processes":
        """The processes that do a task, not yet started.

        Args:
            restarts: how often a team that has lost a member begins again from its newest checkpoint.
        """
        if self.ray:
            from budgetlm.train.parallel.onray import OnRay

            return OnRay(self.ray, task, self.count, self.needs, restarts)
        from budgetlm.train.parallel.agent import Agent

        return Agent(task, self.count, restarts)


def crew_here(wanted: int, device: str) -> Crew:
    """Devices of this machine.

    Args:
        wanted: how many; 0 for all GPUs, or one CPU.
        device: `cpu`, whose cores they share, or `cuda`.

    Raises:
        ConfigError: there are not so many.
    """
    cores, gpus = os.cpu_count() or 1, len(visible_gpus()) if device == "cuda" else 0
    if device == "cuda":
        check_devices(wanted, gpus, f"this machine has {gpus} GPUs to use (see CUDA_VISIBLE_DEVICES)")
    else:
        check_devices(wanted, cores, f"this machine has {cores} cores to use")
    count = wanted or gpus or 1
    return Crew(count, max(1, min(torch.get_num_threads(), cores // count)))


def crew_on_ray(wanted: int, device: str, address: str, threads: int) -> Crew:
    """Devices of a Ray cluster.

    Args:
        wanted: how many; 0 for all that it has.
        device: `cpu` or `cuda`.
        address: as of `connect`.
        threads: CPU threads of each.

    Raises:
        ConfigError: Ray is not installed, there is no such cluster, or it has not so many.
    """
    ray = connect(address)
    needs = needs_of(ray, device, threads)
    there = room(ray, needs)
    check_devices(wanted or 1, there, f"the Ray cluster has places for {there}")
    return Crew(wanted or there, threads, " on the Ray cluster", ray, needs)
