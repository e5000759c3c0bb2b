"""What everything on Ray shares: the connection, and the line between tasks and who asked for them, which is one small actor beside the asker.

The actor is gone with its asker, and so are the tasks. Source: Ray 2, "Tasks", "Actors", "Scheduling".
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from budgetlm.errors import ConfigError, StudyError

SAY_SECONDS = 0.5
"""How often a task says what it has to say, and hears whether it is to stop."""
START_SECONDS = 60.0
"""What has no place after so long has none: a node is gone, or others use the cluster."""


class Line:
    """What tasks and their asker have to say to each other; an actor."""

    def __init__(self) -> None:
        self._said: list[tuple[int, Any]] = []
        self._asked: set[int] = set()

    def say(self, task: int, events: list[Any]) -> bool:
        """Keep what a task says, None for that it has begun; returns whether it is to stop."""
        self._said += [(task, event) for event in events]
        return task in self._asked

    def take(self) -> list[tuple[int, Any]]:
        """All that was said since the last time."""
        said, self._said = self._said, []
        return said

    def ask(self, tasks: list[int]) -> None:
        """Ask tasks to stop."""
        self._asked.update(tasks)

    def since(self, moment: float) -> float:
        """Seconds since a moment of the monotonic clock of the asker's machine, which is this actor's."""
        return time.monotonic() - moment


class Speaker:
    """A task's end of the line, which is spoken into now and then, by a thread of its own."""

    def __init__(self, line: Any, task: int) -> None:
        self._line, self._task, self._said, self._lock = line, task, list[Any]([None]), threading.Lock()
        self._asked, self._over = threading.Event(), threading.Event()
        self.asked: Callable[[], bool] = self._asked.is_set
        self._thread = threading.Thread(target=self._speak, daemon=True)
        self._thread.start()

    def say(self, event: Any) -> None:
        """Let the asker know, soon."""
        with self._lock:
            self._said.append(event)

    def close(self) -> None:
        """Say what was not said yet."""
        self._over.set()
        self._thread.join()
        self._once()

    def _speak(self) -> None:
        while not self._over.is_set():
            self._once()
            self._over.wait(SAY_SECONDS)

    def _once(self) -> None:
        import ray

        with self._lock:
            said, self._said = self._said, []
        try:
            if ray.get(self._line.say.remote(self._task, said)):
                self._asked.set()
        except ray.exceptions.RayError:  # the asker is gone
            self._asked.set()


def connect(address: str) -> Any:
    """The `ray` module, connected.

    Args:
        address: of the cluster, `auto` for the one that this machine belongs to; empty to begin one here.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    # 15 otherwise: what a run learns in its seconds must not hang on who else computes.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise ConfigError("Ray is not installed: `pip install 'budgetlm[ray]'`.") from None
    try:
        if not ray.is_initialized():
            ray.init(
                address=address or None,
                log_to_driver=False,
                include_dashboard=None if address else False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"there is no Ray cluster at {address!r}: {str(error).splitlines()[0]}. Start one with `ray start --head`, or leave "
            "`--ray-address` out to use this machine alone."
        ) from None
    return ray


def needs_of(ray: Any, device: str, threads: int, gpu_share: float = 1.0) -> dict[str, float]:
    """What a place takes of the cluster: a GPU, or a share of one, or the cores of its threads.

    Args:
        device: `cpu`, `cuda`, or `auto` for a GPU where the cluster has any.
        gpu_share: of a GPU, at most 1.
    """
    on_gpus = device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0.0) >= 1)
    return {"GPU": gpu_share} if on_gpus else {"CPU": float(threads or 1)}


def room(ray: Any, needs: dict[str, float]) -> int:
    """How many places the cluster has now; a place's share of a GPU is all of one GPU's."""
    there = ray.cluster_resources()
    if (share := needs.get("GPU", 1.0)) < 1:
        return int(there.get("GPU", 0.0)) * int(1 / share + 1e-9)
    return min(int(there.get(name, 0.0) / amount) for name, amount in needs.items())


def as_options(needs: dict[str, float]) -> dict[str, float]:
    """The same as tasks are given it."""
    return {"num_gpus": needs["GPU"]} if "GPU" in needs else {"num_cpus": needs["CPU"]}


def open_line(ray: Any) -> Any:
    """A line whose actor is on this machine, which uses it for nothing but this."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Line).options(scheduling_strategy=here).remote()


def check_node(passport: str, threads: int) -> None:
    """Refuse to train on another kind of machine than a study is made for: a cluster may have several.

    Args:
        passport: the id of the study's.
        threads: CPU threads of a worker; 0 for PyTorch's own choice.

    Raises:
        StudyError: this is another one.
    """
    import torch

    from budgetlm.passport import identify

    torch.set_num_threads(threads or torch.get_num_threads())
    here = identify("cuda" if torch.cuda.is_available() else "cpu")
    if here.id != passport:
        raise StudyError(
            f"Ray put a run on {here.name} with {here.threads} threads and torch {here.torch}, which is not what the study was begun on. "
            "Device-seconds of the two cannot be compared. Give it nodes of one kind."
        )
