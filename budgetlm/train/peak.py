"""The most memory that a run has held, above what its process held before it.

On a GPU this is what PyTorch's allocator has given out. On a CPU it is the resident memory of the process without the
pages of files (libraries, mapped tokens), which the kernel takes back when it wants them. Linux keeps the highest mark of
resident memory for us, so that measuring costs two short reads of /proc, and nothing while the run goes on.
"""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What sets the highest mark back to the present (proc(5), `clear_refs`)."""


@dataclass(frozen=True)
class PeakMemory:
    """A measurement that has begun."""

    device: str
    held: int
    """Bytes in use when it began."""
    files: int
    """Bytes of file pages that were resident then."""

    @classmethod
    def begin(cls, device: str) -> "PeakMemory":
        """Forget all peaks so far: from here on they count."""
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return cls(device, torch.cuda.memory_allocated(), 0)
        try:
            CLEAR_REFS.write_text(RESET_PEAK)
        except OSError:  # no Linux, or one that forbids it: only what passes the highest mark so far will be seen
            return cls(device, _highest(), _resident_files())
        return cls(device, _status("VmRSS"), _resident_files())

    def bytes(self) -> int:
        """The most that has been held since, above what was held before; 0 where that cannot be seen."""
        if self.device == "cuda":
            return max(0, torch.cuda.max_memory_allocated() - self.held)
        return max(0, _highest() - self.held - max(0, _resident_files() - self.files))


def _highest() -> int:
    """The most resident memory so far, in bytes."""
    if STATUS.exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident_files() -> int:
    return _status("RssFile") if STATUS.exists() else 0


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
