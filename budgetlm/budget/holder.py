"""Who holds a lease: a process, known again after a crash, a reboot, or from another machine.

A pid alone is not enough, for it is used again: with it go the boot, the namespace that the pid is counted in, and the
moment, in ticks since boot, at which the process began. None of them is a date.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Holder:
    """A process."""

    machine: str
    """Boot and pid namespace; empty where the system tells neither."""
    pid: int
    started: int
    """Ticks from boot to the start of the process; 0 where the system does not tell."""

    def alive(self) -> bool | None:
        """Whether the process still runs; None where that cannot be seen from here."""
        if not self.machine or self.machine != _machine():
            return None
        return _started(self.pid) == self.started


def this_process() -> Holder:
    """The process that asks."""
    return Holder(_machine(), os.getpid(), _started(os.getpid()) or 0)


@cache
def _machine() -> str:
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None when there is no such process, or it is dead and only not yet buried."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return None if fields[0] in ("Z", "X") else int(fields[19])
