"""What the machine and its file systems really do, tried out or read from the kernel. Facts only; `doctor.py` judges them.

Nothing is left behind, nothing needs more rights than its caller has, and what cannot be read is `None` or empty.
"""

import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "fuse.", "lustre", "ceph", "gpfs", "beegfs", "afs", "glusterfs")
"""Beginnings of the names under which Linux mounts what other machines may write to as well."""
LOOKS_AT_A_CLOCK = 1_000_000
PRODUCT_SIZE, PRODUCTS_TIMED = 512, 9
"""Rows and columns of a matrix whose products are timed; how often, the first time to warm up."""


# --- folders ---------------------------------------------------------------------------------------------------------


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest folder above it that there is."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder of one's own where `path` is, or would be made; gone afterwards.

    Raises:
        OSError: nothing can be made there.
    """
    with tempfile.TemporaryDirectory(prefix=".budgetlm-doctor-", dir=existing_parent(path)) as folder:
        yield Path(folder)


def try_writing(path: Path) -> None:
    """Write a file where `path` is, or would be made, and remove it.

    Raises:
        OSError: it cannot be written.
    """
    with scratch_folder(path) as folder:
        with (folder / "written").open("wb") as file:
            file.write(b"budgetlm")
            os.fsync(file.fileno())
        (folder / "written").replace(folder / "renamed")


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock of this file. A lock that is not there is not made."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def try_locking(folder: Path) -> str:
    """What is wrong with file locks in this folder; empty if a second taker is refused, as it should be."""
    path = folder / "lock"
    try:
        with FileLock(path, timeout=0):
            return "" if is_locked(path) else "a lock that is held can be taken again"
    except (OSError, NotImplementedError) as error:
        return f"a lock cannot be taken ({error})"


def try_write_ahead(folder: Path) -> str:
    """What is wrong with SQLite's write-ahead log in this folder; empty if one can read while another writes."""
    path = folder / "probe.db"
    try:
        with closing(sqlite3.connect(path)) as writer, closing(sqlite3.connect(path, timeout=0)) as reader:
            mode = writer.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            if mode != "wal":
                return f"SQLite offers the journal mode {mode!r} instead of a write-ahead log"
            writer.execute("CREATE TABLE probe (value INTEGER)")
            writer.commit()
            writer.execute("INSERT INTO probe VALUES (1)")
            before = reader.execute("SELECT count(*) FROM probe").fetchone()[0]
            writer.commit()
            after = reader.execute("SELECT count(*) FROM probe").fetchone()[0]
    except sqlite3.Error as error:
        return f"SQLite's write-ahead log fails ({error})"
    return "" if (before, after) == (0, 1) else "what SQLite has committed is not seen by a second reader"


def file_system(path: Path) -> str:
    """Kind of file system that holds a path, as Linux calls it; empty where that is not known."""
    where, best = str(existing_parent(path).resolve()), ("", "")
    for line in _read(PROC / "mounts").splitlines():
        _, mounted, kind, *_ = line.split(" ")
        inside = where == mounted or where.startswith(mounted.rstrip("/") + "/")
        if inside and len(mounted) >= len(best[0]):
            best = (mounted, kind)
    return best[1]


def is_network_file_system(kind: str) -> bool:
    """Whether other machines may write there too."""
    return kind.startswith(NETWORK_FILE_SYSTEMS)


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders (`files.py`) whose process is no more: what crashes have left."""
    found = []
    for path in folder.rglob(".*.tmp"):
        number = re.fullmatch(r"\..*\.(\d+)\.tmp", path.name)
        if number and not (PROC / number[1]).exists():
            found.append(path)
    return sorted(found)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


# --- processor, memory, clock ----------------------------------------------------------------------------------------


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def core_limit() -> float | None:
    """Cores' worth of time that the container grants; None for no limit."""
    quota, _, period = _read(CGROUP / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def memory_available() -> int | None:
    """Bytes of main memory that can be had now without swapping."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(PROC / "meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def monotonic_step() -> float | None:
    """The least step of `time.monotonic` that is seen, in seconds; None if it stands still, negative if it runs backwards."""
    before = time.monotonic()
    for _ in range(LOOKS_AT_A_CLOCK):
        if (now := time.monotonic()) != before:
            return now - before
    return None


def boot_id() -> str:
    """The kernel's name for this start of the machine: by it, clocks of two starts are told apart."""
    return _read(PROC / "sys/kernel/random/boot_id").strip()


@dataclass(frozen=True)
class ProcessTime:
    """What a process has used of the processor since it began."""

    name: str
    seconds: float


def process_times() -> dict[int, ProcessTime]:
    """Processor seconds of every other process, by its id; our own and its children are left out."""
    ours, tick, times = os.getpid(), os.sysconf("SC_CLK_TCK"), {}
    for path in PROC.glob("[0-9]*/stat"):
        name, _, rest = _read(path).rpartition(")")
        fields = rest.split()
        if fields and int(path.parent.name) != ours and int(fields[1]) != ours:
            used = (int(fields[11]) + int(fields[12])) / tick
            times[int(path.parent.name)] = ProcessTime(name.partition("(")[2], used)
    return times


def cores_used_between(before: dict[int, ProcessTime], after: dict[int, ProcessTime], seconds: float) -> list[ProcessTime]:
    """How many cores each process kept busy between two looks at `process_times`, busiest first."""
    used = [
        ProcessTime(now.name, (now.seconds - before[id].seconds) / seconds)
        for id, now in after.items()
        if id in before and now.seconds > before[id].seconds
    ]
    return sorted(used, key=lambda p: -p.seconds)


# --- GPU and compiler ------------------------------------------------------------------------------------------------


def nvidia_smi(query: str) -> list[list[str]]:
    """Rows that `nvidia-smi --query-…` answers; none where it is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-{query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603  # our own words
    except (OSError, subprocess.SubprocessError):
        return []
    return [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def has_kernels_for(built_for: list[str], capability: tuple[int, int]) -> bool:
    """Whether a PyTorch built for these architectures runs on a device of this compute capability.

    Machine code (`sm_86`) runs on later minor versions of its major one, PTX (`compute_90`) on everything later. Source: CUDA C++
    Programming Guide, "Binary Compatibility" and "PTX Compatibility".
    """
    for architecture in built_for:
        if found := re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", architecture):
            version = (int(found[2]), int(found[3]))
            if version <= capability and (found[1] == "compute" or version[0] == capability[0]):
                return True
    return False


def try_compile(device: str) -> float:
    """Compile and run a tiny function; seconds that it took.

    Raises:
        RuntimeError, OSError: it did not work.
    """
    import torch

    started = time.perf_counter()
    with warnings.catch_warnings():  # what PyTorch deprecates of itself is not ours to mend
        warnings.simplefilter("ignore")
        doubled = torch.compile(lambda x: (x * 2).relu().sum())(torch.ones(64, device=device))
    if doubled.item() != 128:
        raise RuntimeError(f"the compiled function gave {doubled.item()} instead of 128")
    return time.perf_counter() - started


def rounded_speed(option: str, device: str, rows: int) -> float:
    """How fast products with a matrix in the 8 or 4 bits of a compression option are, as a multiple of the speed of those in fp32.

    Args:
        rows: that are multiplied at once: 1 as in writing, many as in reading.
    """
    import torch

    from budgetlm.compress.apply import BY_NAME
    from budgetlm.compress.quantize import rounding
    from budgetlm.model.size import ModelConfig

    size = PRODUCT_SIZE
    shape = ModelConfig(vocab_size=size, depth=1, width=size, context_length=rows)
    plain, x_RD = torch.randn(size, size, device=device), torch.randn(rows, size, device=device)
    rounded = rounding(BY_NAME[option], shape, activations=True)(plain)

    def seconds(weight: torch.Tensor) -> float:
        started = time.perf_counter()
        float(torch.nn.functional.linear(x_RD, weight).sum())  # a number waits for the device
        return time.perf_counter() - started

    with torch.no_grad():
        pairs = [(seconds(plain), seconds(rounded)) for _ in range(PRODUCTS_TIMED)]
    return statistics.median(a / b for a, b in pairs[1:])


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
