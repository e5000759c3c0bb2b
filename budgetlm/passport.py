"""The machine: device, versions, measured ceilings. Stamped on every result.

Figures from two machines must never be mixed silently, so every record carries the passport's `id`, and a study keeps the
passport itself. torch is imported only when a passport is taken.
"""

import os
import platform
import subprocess
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import budgetlm
from budgetlm.allocator import loaded_allocator
from budgetlm.errors import ConfigError
from budgetlm.files import digest, read_json, write_json

PRODUCT_SIZE = 1024
"""Side of the square matrices whose product measures a device's ceiling on the CPU; 8 times that on a GPU."""
HIGHER = 1.1
"""A ceiling replaces the one that is remembered when it is this many times as high."""


@dataclass(frozen=True, kw_only=True)
class Passport:
    """What a result was obtained on."""

    device: str
    """`cpu` or `cuda`."""
    name: str
    """The processor's or GPU's own name."""
    threads: int
    """CPU threads that PyTorch uses."""
    memory_bytes: int
    """Memory of the device; of a CPU, no more than the container or job may use."""
    torch: str
    python: str
    budgetlm: str
    system: str
    fp32_gflops: float
    """Measured ceiling of an fp32 matrix product, 1e9 operations a second."""
    bf16_gflops: float
    """The same in bf16; 0 where the device cannot."""
    allocator: str = ""
    """Of memory, where it is not the C library's (`allocator.py`). What it changes is too little to tell machines apart by."""

    @property
    def id(self) -> str:
        """The same for results that may be compared: device, threads and torch version. Measured figures do not enter."""
        return digest([self.device, self.name, self.threads, self.torch, self.system])

    def ceiling_gflops(self, precision: str) -> float:
        """Measured speed of a large matrix product in `fp32` or `bf16`; fp8 is not measured, and taken for bf16."""
        return self.fp32_gflops if precision == "fp32" else self.bf16_gflops

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.name}, {self.threads} threads, {self.memory_bytes / 2**30:.0f} GiB, torch {self.torch}, "
            f"{self.fp32_gflops:.0f} GFLOP/s fp32, {self.bf16_gflops:.0f} bf16{f', {self.allocator}' if self.allocator else ''}"
        )


def pick_device(wanted: str, threads: int) -> str:
    """Settle which device is used, and on how many CPU threads.

    Args:
        wanted: `auto`, `cpu` or `cuda`.
        threads: CPU threads; 0 for one per core that this process may use.

    Raises:
        ConfigError: CUDA is wanted but PyTorch sees no GPU.
    """
    import torch

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device `cuda` was asked for, but PyTorch {torch.__version__} sees no GPU. Use `--device cpu`, or install "
            "the CUDA build of PyTorch and check `nvidia-smi`."
        )
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; found without touching one."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


def identify(device: str) -> Passport:
    """The passport without its measured ceilings: costs nothing, and its `id` is the same."""
    import torch

    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name, memory = properties.name, properties.total_memory
    else:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        name, memory = _processor(), min([physical, *cgroup_limits()])
    return Passport(
        device=device,
        name=name,
        threads=torch.get_num_threads(),
        memory_bytes=memory,
        torch=torch.__version__,
        python=platform.python_version(),
        budgetlm=version(),
        system=f"{platform.system()} {platform.machine()}",
        fp32_gflops=0.0,
        bf16_gflops=0.0,
        allocator=loaded_allocator(),
    )


def take_passport(device: str, cache: Path | None = None) -> Passport:
    """Identify the device and measure its ceilings, in about half a second.

    What is measured on a machine that does something else besides is too low. So the highest figure ever measured here counts,
    and one that is hardly higher changes nothing: what is planned by the ceilings should be the same from study to study.

    Args:
        cache: folder in which the highest figures are kept; only what is measured now counts if left out.
    """
    ceilings = {"fp32": _ceiling(device, "float32"), "bf16": _ceiling(device, "bfloat16")}
    passport = identify(device)
    if cache is not None:
        path = cache / "ceilings" / f"{passport.id}.json"
        known: dict[str, float] = read_json(path) if path.exists() else {}
        higher = {name: gflops for name, gflops in ceilings.items() if gflops > HIGHER * known.get(name, 0.0)}
        ceilings |= known | higher
        if higher:
            write_json(path, ceilings)
    return replace(passport, fp32_gflops=ceilings["fp32"], bf16_gflops=ceilings["bf16"])


@cache
def version() -> str:
    """This package's version, with the commit where it lies in a checkout of its own, and `-dirty` where that was changed: `0.1.0+1a2b3c4`."""
    source = Path(__file__).resolve().parents[1]
    if not (source / ".git").exists():
        return budgetlm.__version__
    asked = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=7", "--exclude", "*"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603  # no part of it is from outside
    except (OSError, subprocess.SubprocessError):
        return budgetlm.__version__
    return f"{budgetlm.__version__}+{said.stdout.strip()}"


def cgroup_limits(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes of memory to which the control groups of this process, and those above them, limit it.

    In a container the groups' folders often are not visible under their own path, but then the root's file is the container's.

    Source: cgroups(7); the kernel's admin-guide, cgroup-v2 `memory.max` and cgroup-v1 `memory.limit_in_bytes`.
    """
    lines = membership.read_text().splitlines() if membership.exists() else []
    files = []
    for controllers, path in (line.split(":", 2)[1:] for line in lines):
        top = root if not controllers else root / "memory"
        name = "memory.max" if not controllers else "memory.limit_in_bytes"
        if not controllers or "memory" in controllers.split(","):
            group = top / path.lstrip("/")
            files += [folder / name for folder in (group, *group.parents) if folder.is_relative_to(top)]
    written = [file.read_text().strip() for file in files if file.exists()]
    return [int(text) for text in written if text.isdigit()]  # v2 writes `max` where there is no limit


def _processor() -> str:
    """The processor's name, with what tells apart those that share it."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def _ceiling(device: str, dtype: str) -> float:
    """GFLOP/s of a large matrix product: the best of the repeats that fit in about 0.15 s."""
    import torch

    size = PRODUCT_SIZE * (8 if device == "cuda" else 1)
    # Processors without bf16 instructions emulate it, 100 times slower: a flat product tells that soon enough.
    rows = size // 16 if dtype == "bfloat16" and device == "cpu" else size // 2
    a = torch.ones(rows, size, device=device, dtype=getattr(torch, dtype))
    b = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))
    best, started, repeats = 0.0, time.monotonic(), 0
    while repeats < 2 or (time.monotonic() - started < 0.15 and repeats < 100):
        before = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        if repeats:  # the first one pays for initialisation
            best = max(best, 2 * a.numel() * size / (time.perf_counter() - before) / 1e9)
        repeats += 1
    return round(best, 1)
