"""Another memory allocator than the C library's for the processes that train: tcmalloc or jemalloc, where the system has one.

A training step takes and frees the same large blocks again and again, which these serve faster (docs/LOG.md). An allocator has to be there
before a process begins, by `LD_PRELOAD` (ld.so(8)); so those who start processes ask here. Imports next to nothing.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from budgetlm.errors import ConfigError

LIBRARIES = {
    "tcmalloc": ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4"),
    "jemalloc": ("libjemalloc.so.2",),
}
"""File names by allocator, the one that is taken first first."""
PACKAGES = {"tcmalloc": "libtcmalloc-minimal4", "jemalloc": "libjemalloc2"}
"""What Debian and Ubuntu call them."""
FOLDERS = tuple(Path(f) for f in ("/usr/lib64", "/usr/lib", "/usr/local/lib", f"{sys.prefix}/lib"))
"""Where libraries lie; Debian has a folder for each architecture in /usr/lib."""
CHOICES = ("auto", *LIBRARIES, "off")
PRELOAD, REPORTS = "LD_PRELOAD", "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD"
MAPS = Path("/proc/self/maps")


def find_allocator(wanted: str) -> Path | None:
    """The library of an allocator; None where there is none, or none is wanted.

    Args:
        wanted: one of `CHOICES`; `auto` takes the first that there is.

    Raises:
        ConfigError: an allocator that is asked for by name is not there.
    """
    names = LIBRARIES if wanted == "auto" else [wanted] if wanted in LIBRARIES else []
    if not sys.platform.startswith("linux"):
        names = []
    folders = [f for folder in FOLDERS for f in (folder, *sorted(folder.glob("*-linux-gnu*")))]
    for name in names:
        for file in LIBRARIES[name]:
            if path := next((folder / file for folder in folders if (folder / file).exists()), None):
                return path
    if wanted in LIBRARIES:
        raise ConfigError(
            f"`train.allocator` is {wanted}, but no {' or '.join(LIBRARIES[wanted])} is found. Install it (`apt install "
            f"{PACKAGES[wanted]}`), or use `auto` or `off`."
        )
    return None


@contextmanager
def preloading(wanted: str) -> Iterator[None]:
    """Processes that are started within have the allocator in place.

    Raises:
        ConfigError: as `find_allocator`.
    """
    before = {name: os.environ.get(name) for name in (PRELOAD, REPORTS)}
    path = find_allocator(wanted)
    if path and not _asked_for(path):
        os.environ.update(_with(path))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def begin_again(wanted: str) -> None:
    """Start this very program again with the allocator in place, for a command that trains in its own process.

    Returns where that is the case already, where there is none, and where the program is another's, which has only imported us.

    Raises:
        ConfigError: as `find_allocator`.
    """
    path, arguments = find_allocator(wanted), sys.argv[1:]
    if path and not _asked_for(path) and arguments and sys.orig_argv[-len(arguments) :] == arguments:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **_with(path)})  # noqa: S606  # ourselves


def loaded_allocator() -> str:
    """The allocator that this process has in place, by name; empty for the C library's."""
    maps = MAPS.read_text() if MAPS.exists() else ""
    return next((name for name, files in LIBRARIES.items() if any(f.split(".so")[0] in maps for f in files)), "")


def keep_freed_memory(keep: bool) -> bool:
    """Let the allocator keep freed memory for the next who wants some, or give it back at once. False where it is the C library's.

    Sources: gperftools, `malloc_extension_c.h`, `tcmalloc.aggressive_memory_decommit`; jemalloc(3), `arena.<i>.dirty_decay_ms`.
    """
    name, library = loaded_allocator(), ctypes.CDLL(None)
    if name == "tcmalloc":
        library.MallocExtension_SetNumericProperty(b"tcmalloc.aggressive_memory_decommit", ctypes.c_size_t(not keep))
    elif name == "jemalloc":
        milliseconds = ctypes.c_ssize_t(10_000 if keep else 0)  # the first is jemalloc's own
        for option in (
            b"arenas.dirty_decay_ms",
            b"arena.4096.dirty_decay_ms",
        ):  # of arenas to come, and of all that there are
            library.mallctl(option, None, None, ctypes.byref(milliseconds), ctypes.c_size_t(ctypes.sizeof(milliseconds)))
    return bool(name)


def _asked_for(path: Path) -> bool:
    """Whether this process was begun with it: also where that did not work, so that it is not tried for ever."""
    return str(path) in os.environ.get(PRELOAD, "").replace(":", " ").split()


def _with(path: Path) -> dict[str, str]:
    """The environment that puts it in place, before what a person has there. tcmalloc reports blocks of a gigabyte; not for us."""
    others = os.environ.get(PRELOAD, "")
    return {PRELOAD: f"{path} {others}".strip(), REPORTS: os.environ.get(REPORTS, str(2**62))}
