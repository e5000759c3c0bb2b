"""How this process's heap treats the large blocks that a training step takes and frees again and again.

glibc maps each of them from the system and gives it back when it is freed, so that every step touches fresh pages, which
the kernel must clear first. A roomy heap keeps them: more tokens a second for somewhat more memory. A compact heap gives all of them
back, for runs that would not fit the memory otherwise (figures in docs/LOG.md).
"""

import ctypes
import sys
from contextlib import suppress

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
"""Options of mallopt(3)."""
LARGE_BYTES = 256 * 1024
AHEAD_BYTES = 64 * 2**20
NEVER = 2**31 - 1


def roomy_heap() -> None:
    """From now on, keep freed blocks for the next step. Without effect where the C library is not glibc."""
    _mallopt((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, AHEAD_BYTES))


def compact_heap() -> None:
    """From now on, return large freed blocks to the system at once. Without effect where the C library is not glibc."""
    _mallopt((M_MMAP_MAX, 65_536), (M_MMAP_THRESHOLD, LARGE_BYTES), (M_TRIM_THRESHOLD, LARGE_BYTES), (M_TOP_PAD, 0))


def _mallopt(*settings: tuple[int, int]) -> None:
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            for option, value in settings:
                libc.mallopt(option, value)
