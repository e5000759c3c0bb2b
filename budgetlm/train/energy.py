"""The energy that a run has taken, as its device's own counter tells it.

On an NVIDIA GPU the counter is the board's (NVML, from the Volta generation on). On a processor it is that of the packages (RAPL), which most machines
let only root read, and of which a run is given the share of the processors that it has threads for: so runs beside each other come to no more than
was taken, and what other programs do at the time is in it.

Not run on a GPU by us. Sources: NVIDIA's NVML reference, `nvmlDeviceGetTotalEnergyConsumption`; the kernel's documentation, power/powercap/powercap.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
LOOK_SECONDS = 60.0
"""How often counters are read, at least: one that counts 262 kJ before it begins anew does so after a quarter of an hour at 300 W."""


class Counter:
    """Joules since some moment.

    Args:
        read: says them.
        capacity: of how many it begins anew.
    """

    def __init__(self, read: Callable[[], float], capacity: float = math.inf) -> None:
        self._read, self._capacity = read, capacity
        self._last = read()

    def since(self) -> float:
        """Joules since it was asked before; 0 where it is no longer there, which is no reason for a training to end."""
        try:
            now = self._read()
        except Exception:  # noqa: BLE001  # whatever NVIDIA's library or a file makes of a device that is gone
            return 0.0
        before, self._last = self._last, now
        return now - before if now >= before else now - before + self._capacity


class EnergyMeter:
    """What a device has taken since this was made.

    Args:
        counters: those that belong to the device; none where it has none that can be read.
        share: of what they count that is this run's.
    """

    def __init__(self, counters: list[Counter], share: float = 1.0) -> None:
        self._counters, self._share = counters, share
        self._looked, self._joules = -math.inf, 0.0

    @classmethod
    def of(cls, device: str) -> "EnergyMeter":
        """The meter of the device that this process computes on, `cpu` or `cuda`."""
        if device == "cuda":
            return cls(boards())
        return cls(packages(POWERCAP), torch.get_num_threads() / (os.cpu_count() or 1))

    def look(self, now: float) -> None:
        """Read the counters if it is time: none may begin anew twice between two looks.

        Args:
            now: seconds on any clock.
        """
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self.joules()

    def joules(self) -> float:
        """What was taken since this was made; 0 where nothing counts it."""
        self._joules += self._share * sum(counter.since() for counter in self._counters)
        return self._joules


def packages(folder: Path) -> list[Counter]:
    """The counters of the processor's packages under a powercap folder; none where they cannot be read."""
    found = list[Counter]()
    for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's have the same name
        try:
            if (zone / "name").read_text().startswith("package"):
                read = partial(_microjoules, zone / "energy_uj")
                found.append(Counter(read, 1e-6 * int((zone / "max_energy_range_uj").read_text())))
        except (OSError, ValueError):
            continue
    return found


def _microjoules(path: Path) -> float:
    return 1e-6 * int(path.read_text())


def boards() -> list[Counter]:
    """The counter of the GPU that PyTorch computes on; none where NVIDIA's library or the board has none."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(
            f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        )
        return [Counter(lambda: 1e-3 * pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))]
    except (pynvml.NVMLError, AttributeError):  # PyTorch for AMD's GPUs names none
        return []
