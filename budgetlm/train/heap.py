"""How this process's heap treats the large blocks that a training step takes and frees again and again.

glibc maps each of them from the system and gives it back when it is freed, so that every step touches fresh pages, which
the kernel must clear first. A roomy heap keeps them: more tokens a second for somewhat more memory. A compact heap gives all of them
back, for runs that would not fit the memory otherwise (figures in docs/LOG.md). Another allocator in its place (`allocator.py`) keeps
blocks by itself.
"""

import ctypes
import sys
from collections.abc import Sequence
from contextlib import suppress

from budgetlm.allocator import keep_freed_memory

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
"""Options of mallopt(3)."""
LARGE_BYTES = 256 * 1024
AHEAD_BYTES = 2**20
NEVER = 2**31 - 1


ROOMY = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, AHEAD_BYTES))
COMPACT = ((M_MMAP_MAX, 65_536), (M_MMAP_THRESHOLD, LARGE_BYTES), (M_TRIM_THRESHOLD, LARGE_BYTES), (M_TOP_PAD, 0))


def set_heap(device: str, *, compact: bool = False) -> None:
    """From now on, keep freed blocks for the next step, or give large ones back at once.

    Without effect on a GPU's run, and where neither allocator is known.
    """
    if device == "cpu" and not keep_freed_memory(keep=not compact):
        _mallopt(COMPACT if compact else ROOMY)


def _mallopt(settings: Sequence[tuple[int, int]]) -> None:
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            for option, value in settings:
                libc.mallopt(option, value)
