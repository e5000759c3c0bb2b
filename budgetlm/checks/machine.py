"""The machine: versions, device, clock, speed in each precision, compiler, and who else is using it.

torch is imported within the checks, so that a broken one is a finding too.
"""

import importlib
import math
import os
import platform
import re
import time
from datetime import UTC, datetime

from budgetlm.checks import probes
from budgetlm.checks.case import Case, Finding, judge, needed
from budgetlm.errors import ConfigError
from budgetlm.train import compilation

REQUIRED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "python": ((3, 11), ()),
    "torch": ((2, 13), (3,)),
    "optuna": ((5,), (6,)),
}
"""Versions from, included, and below, excluded; as in pyproject.toml."""
MADE = datetime(2026, 11, 22, tzinfo=UTC)
"""When this was written: a clock that says less is wrong."""
COARSEST_CLOCK = 0.01
"""A monotonic clock of coarser steps (s) times no optimisation step."""
BUSY_SHARE = 0.25
"""Of the cores, what others may use before timings can no longer be trusted."""
READ_AT_ONCE, SLOW_PRODUCTS = 256, 0.5
"""Rows of a product as in reading a text, and of fp32's speed the share below which those of a compressed model are a warning."""
CUDA_CONTEXT_BYTES = 2**30
"""What our own CUDA context may hold of a device's memory, generously; beyond it memory is in use by others."""


def versions(_: Case) -> Finding:
    """Whether what everything is built on is there, and new enough."""
    found = {name: platform.python_version() if name == "python" else _version_of(name) for name in REQUIRED}
    faults = []
    for name, (least, below) in REQUIRED.items():
        release = tuple(int(part) for part in re.findall(r"\d+", found[name].split("+")[0])[:3])
        if release < least or (below and release >= below):
            wanted = _dotted(least) + (f" or newer, below {_dotted(below)}" if below else " or newer")
            faults.append(f"{name} is {found[name]}, but {wanted} is needed. Run `pip install -r requirements.txt`.")
    return judge(faults, [], ", ".join(f"{name} {version}" for name, version in found.items()))


def _version_of(package: str) -> str:
    try:
        return str(importlib.import_module(package).__version__)
    except (ImportError, OSError) as error:  # OSError: a shared library of it cannot be loaded
        raise ConfigError(f"{package} cannot be imported: {error}. Run `pip install -r requirements.txt`.") from error


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def device(case: Case) -> Finding:
    """Which device will be used; nothing is put there yet."""
    from budgetlm.passport import identify, pick_device

    settings = case.config.train
    picked = pick_device(settings.device, settings.threads)
    try:
        case.identity = identity = identify(picked)
        case.gpu_free = _gpu_memory_free() if picked == "cuda" else None
    except RuntimeError as error:  # a driver that does not fit, or a card that another process has for itself
        case.identity = None
        return (
            "fault",
            f"PyTorch sees a GPU but cannot use it: {_first_line(error)}. Check `nvidia-smi`, or use `--device cpu`.",
        )
    says = f"{identity.device}: {identity.name}, {identity.memory_bytes / 2**30:.1f} GiB, {identity.threads} threads of {probes.cores()} cores"
    if identity.device == "cuda":
        return _gpu(says)
    warnings = []
    granted = min(probes.cores(), probes.core_limit() or math.inf)
    if identity.threads > math.ceil(granted):
        warnings.append(
            f"{identity.threads} threads share {granted:g} cores and will wait for each other. Use `--threads {math.ceil(granted)}`."
        )
    return judge([], warnings, says)


def _gpu_memory_free() -> int:
    import torch

    return int(torch.cuda.mem_get_info()[0])


def _gpu(says: str) -> Finding:
    import torch

    capability = torch.cuda.get_device_capability(0)
    driver = next((row[0] for row in probes.nvidia_smi("gpu=driver_version")), "unknown")
    says += f", compute capability {_dotted(capability)}, driver {driver}, CUDA {torch.version.cuda}"
    faults = []
    if torch.version.cuda and not probes.has_kernels_for(torch.cuda.get_arch_list(), capability):
        faults.append(
            f"this PyTorch is built for {', '.join(torch.cuda.get_arch_list())}, which does not run on compute capability "
            f"{_dotted(capability)}. Install a build that does (https://pytorch.org/get-started/locally)."
        )
    if torch.cuda.device_count() > 1:
        says += f"; the first of {torch.cuda.device_count()} is used"
    return judge(faults, [], says)


def clock(_: Case) -> Finding:
    """Whether time can be measured: the budget is nothing else."""
    faults, warnings = [], []
    step = probes.monotonic_step()
    if step is None or step < 0:
        faults.append(
            "the monotonic clock stands still or runs backwards, so no budget can be kept. Mend the machine's clock."
        )
    elif step > COARSEST_CLOCK:
        warnings.append(f"the monotonic clock moves in steps of {step:.3g} s: short runs will be timed badly.")
    if time.time() < MADE.timestamp():
        warnings.append(
            f"the wall clock says {datetime.now(UTC):%Y-%m-%d}, which is past. Set it; only dates in results suffer."
        )
    boot = probes.boot_id()
    if not boot:
        warnings.append("the kernel names no boot id, so a restart of the machine cannot be told from a pause.")
    seen = f"monotonic steps of {step:.1e} s, " if step else ""
    return judge(
        faults, warnings, f"{seen}wall clock {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, boot id {boot[:8] or 'unknown'}"
    )


def precision(case: Case) -> Finding:
    """The measured ceilings, and whether bf16 is worth having here."""
    from budgetlm.passport import take_passport
    from budgetlm.train.fp8 import check_fp8

    identity = needed(case.identity, "a device")
    try:
        passport = take_passport(identity.device)
    except RuntimeError as error:  # out of memory, a driver that does not fit, a device that has fallen off the bus
        return (
            "fault",
            f"{identity.name} fails at a plain matrix product: {_first_line(error)}. Free its memory, or check its driver.",
        )
    case.passport = passport
    if case.config.train.precision == "fp8":
        check_fp8(identity.device)
    fp32, bf16 = passport.fp32_gflops, passport.bf16_gflops
    says = f"measured {fp32:,.0f} GFLOP/s in fp32, {bf16:,.1f} in bf16: "
    if bf16 > fp32:
        return "ok", says + f"bf16 is {bf16 / fp32:.1f} times faster"
    says += f"bf16 is {fp32 / max(bf16, 1e-9):.0f} times slower (emulated, or without units of its own)"
    if case.config.train.precision.startswith("bf16"):
        return "warning", says + ", but `train.precision` asks for it. Use `auto` or `fp32`."
    return "ok", says + ", so fp32 is used"


def compression(case: Case) -> Finding:
    """Whether the compressions that are searched can be had here, and whether what they make would be slow."""
    from budgetlm.compress.apply import parse
    from budgetlm.compress.quantize import check_here
    from budgetlm.recipe.space import compressions

    device, named = needed(case.identity, "a device").device, compressions(needed(case.expected, "a default recipe").space)
    check_here(named, device, case.config.train.teacher)
    stored = {o.name.removesuffix("-qat") for option in named for o in parse(option) if o.kind == "bits"}
    says, warnings = f"{', '.join(named)} can be had here", []
    for name in sorted(stored):
        writing, reading = (probes.rounded_speed(name, device, rows) for rows in (1, READ_AT_ONCE))
        found = (
            f"{name} multiplies {READ_AT_ONCE} rows at {reading:.2f} times the speed of fp32 here, and one at {writing:.2f}"
        )
        says += f"; {found}"
        if reading < SLOW_PRODUCTS:
            warnings.append(f"{found}: a smaller file, but a slower model. {_instead(name)}")
    return judge([], warnings, says)


def _instead(option: str) -> str:
    if option == "int8-dynamic":
        return "Use int8, unless it is for another device: this one lacks fast products of 8-bit integers."
    return "Use a smaller recipe, or shrink-layers, where it is to be fast."


def compile(case: Case) -> Finding:
    """Whether torch.compile works, really tried where somebody wants it."""
    compiler = compilation.compiler()
    found = f"C++ compiler {compiler}" if compiler else "no C++ compiler is found (it needs one; `apt install g++`)"
    if not case.compile:
        return "ok", f"not checked, for `train.compile` is not on (`--compile` checks it); {found}"
    identity = needed(case.identity, "a device")
    try:
        seconds = probes.try_compile(identity.device)
    except (RuntimeError, OSError) as error:
        asked = case.config.train.compile in ("on", "graphs")
        remedy = "Install a compiler, or set `train.compile` to false." if asked else "Leave `train.compile` off."
        return "fault" if asked else "warning", f"torch.compile fails: {_first_line(error)}; {found}. {remedy}"
    return "ok", f"torch.compile works, {seconds:.1f} s for a tiny function; {found}"


def load(case: Case) -> Finding:
    """Who else uses the processor and the device, over the time that all other checks took."""
    elapsed = time.monotonic() - case.since
    used = probes.cores_used_between(case.processes, probes.process_times(), max(elapsed, 1e-3))
    total, cores, average = sum(p.seconds for p in used), probes.cores(), os.getloadavg()[0]
    heaviest = ", ".join(f"{p.name} {p.seconds:.2f}" for p in used[:3])
    says = f"others kept {total:.2f} of {cores} cores busy for {elapsed:.1f} s"
    says += f" ({heaviest})" if heaviest else ""
    says += f", load average {average:.2f}"
    warnings = []
    if total > BUSY_SHARE * cores or average > 1.5 * cores:
        warnings.append(
            "the processor is shared, so device-seconds buy less, and not always the same. Stop the others if you can:"
        )
    warnings += _gpu_in_use(case)
    return judge([], warnings, says)


def _gpu_in_use(case: Case) -> list[str]:
    """A warning if somebody else has put something on the GPU, with who, as far as nvidia-smi knows."""
    if case.identity is None or case.gpu_free is None:
        return []
    held = case.identity.memory_bytes - case.gpu_free
    if held <= CUDA_CONTEXT_BYTES:
        return []
    users = "; ".join(" ".join(row) for row in probes.nvidia_smi("compute-apps=pid,process_name,used_memory"))
    return [f"{held / 2**30:.1f} GiB of the GPU are in use by others ({users or 'nvidia-smi names nobody'})."]


def _first_line(error: Exception) -> str:
    """Enough of an error for one line: what PyTorch says goes on for pages."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
