"""What would go wrong with a study, before it is paid for: every check is really done, and none is charged to a ledger.

The checks run in one order and share what they find: without a device nothing is measured, and without a measured device no
size of model is expected. A check whose ground is missing says so instead of guessing. Only preparing data for the first
time, and compiling, take longer than seconds. torch is imported by the checks, so that a broken one is a finding too.
"""

import importlib
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from budgetlm import probes
from budgetlm.budget.clock import duration
from budgetlm.config import STUDY_FILE, StudyConfig
from budgetlm.errors import BudgetlmError, ConfigError, StudyError
from budgetlm.studies import DATABASE, LOCK, REPORTS
from budgetlm.watch import Watcher

if TYPE_CHECKING:
    from budgetlm.data.tokens import Tokens
    from budgetlm.model.size import ModelConfig
    from budgetlm.passport import Passport
    from budgetlm.recipe.recipe import Recipe
    from budgetlm.recipe.scale import World
    from budgetlm.recipe.space import Domain, Space
    from budgetlm.search.plan import Plan

State = Literal["ok", "warning", "fault"]
"""`warning`: it would run, but not as one might think. `fault`: it would not run, or not to its end."""

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
USABLE_MEMORY = 0.9
"""Share of the device's memory beyond which `recipe/scale.py` refuses a recipe."""
LEAST_MICRO_BATCH = 1024
"""Tokens of the smallest forward pass that calibration settles for."""
CHECKPOINT_BYTES, EXPORT_BYTES = 12, 4
"""Bytes a parameter on disk: weights and AdamW's two moments in fp32; the exported weights."""
ALLOWANCE = 100 * 10**6
"""Bytes for what does not grow with the model: records, curves, database, tokenizer, report."""
BUSY_SHARE = 0.25
"""Of the cores, what others may use before timings can no longer be trusted."""
CUDA_CONTEXT_BYTES = 2**30
"""What our own CUDA context may hold of a device's memory, generously; beyond it memory is in use by others."""
DRAWS = 100
"""Recipes drawn from the space to see whether they are possible."""


@dataclass(frozen=True)
class Check:
    """What came of one check."""

    name: str
    state: State
    says: str
    """What was found, the numbers, and what to do."""


Finding = tuple[State, str]
T = TypeVar("T")


class NotCheckedError(Exception):
    """A check builds on something that an earlier one did not find."""


@dataclass(frozen=True)
class Expected:
    """What the study would train: from its plan, or estimated from the measured ceilings."""

    world: "World"
    space: "Space"
    default: "Recipe"


@dataclass
class Case:
    """The study that is examined, and what has been found of it so far; None where it was not found."""

    config: StudyConfig
    cache: Path
    watcher: Watcher
    compile: bool
    plan: "Plan | None" = None
    identity: "Passport | None" = None
    passport: "Passport | None" = None
    tokens: "Tokens | None" = None
    expected: Expected | None = None
    gpu_free: int | None = None
    """Free bytes of the GPU before anything of ours was put there."""
    unwritable: set[Path] = field(default_factory=set)
    processes: dict[int, probes.ProcessTime] = field(default_factory=probes.process_times)
    since: float = field(default_factory=time.monotonic)


def examine(config: StudyConfig, cache: Path, *, compile: bool = False, watcher: Watcher | None = None) -> list[Check]:
    """Check everything that a search and its final will need.

    Args:
        config: what the search would be asked to do; `budget.hours` of 0 means that they are not known yet.
        cache: where prepared data is kept.
        compile: try torch.compile even if the study does not ask for it.
        watcher: is told how far the preparing of data is.
    """
    case = Case(config, cache, watcher or Watcher(), compile or config.train.compile)
    checks: list[Check] = []
    for name, check in CHECKS.items():
        state, says = _outcome(check, case)
        checks.append(Check(name, state, says))
        if name == "versions" and state == "fault":
            break  # everything else is built on these
    return checks


def _outcome(check: Callable[[Case], Finding], case: Case) -> Finding:
    try:
        return check(case)
    except NotCheckedError as missing:
        return "warning", f"not checked: {missing}"
    except BudgetlmError as error:
        return "fault", str(error)
    except OSError as error:
        return "fault", f"{error.strerror or error} ({error.filename or 'no file named'})."


def _judge(faults: Sequence[str], warnings: Sequence[str], otherwise: str) -> Finding:
    """The worst of what was found, all of it said."""
    state: State = "fault" if faults else "warning" if warnings else "ok"
    return state, " ".join([*faults, *warnings, *([otherwise] if otherwise else [])])


def _needed(value: T | None, what: str) -> T:
    if value is None:
        raise NotCheckedError(f"it needs {what}, which was not found (see above).")
    return value


# --- machine ---------------------------------------------------------------------------------------------------------


def _versions(_: Case) -> Finding:
    found = {name: platform.python_version() if name == "python" else _version_of(name) for name in REQUIRED}
    faults = []
    for name, (least, below) in REQUIRED.items():
        release = tuple(int(part) for part in re.findall(r"\d+", found[name].split("+")[0])[:3])
        if release < least or (below and release >= below):
            wanted = _dotted(least) + (f" or newer, below {_dotted(below)}" if below else " or newer")
            faults.append(f"{name} is {found[name]}, but {wanted} is needed. Run `pip install -r requirements.txt`.")
    return _judge(faults, [], ", ".join(f"{name} {version}" for name, version in found.items()))


def _version_of(package: str) -> str:
    try:
        return str(importlib.import_module(package).__version__)
    except (ImportError, OSError) as error:  # OSError: a shared library of it cannot be loaded
        raise ConfigError(f"{package} cannot be imported: {error}. Run `pip install -r requirements.txt`.") from error


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _device(case: Case) -> Finding:
    from budgetlm.passport import identify, pick_device

    settings = case.config.train
    identity = identify(pick_device(settings.device, settings.threads))
    case.identity = identity
    says = f"{identity.device}: {identity.name}, {identity.memory_bytes / 2**30:.1f} GiB, {identity.threads} threads of {probes.cores()} cores"
    if identity.device == "cuda":
        return _gpu(case, says)
    warnings = []
    granted = min(probes.cores(), probes.core_limit() or math.inf)
    if identity.threads > math.ceil(granted):
        warnings.append(
            f"{identity.threads} threads share {granted:g} cores and will wait for each other. Use `--threads {math.ceil(granted)}`."
        )
    return _judge([], warnings, says)


def _gpu(case: Case, says: str) -> Finding:
    import torch

    case.gpu_free = torch.cuda.mem_get_info()[0]
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
    return _judge(faults, [], says)


def _clock(_: Case) -> Finding:
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
    return _judge(
        faults, warnings, f"{seen}wall clock {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, boot id {boot[:8] or 'unknown'}"
    )


def _precision(case: Case) -> Finding:
    from budgetlm.passport import take_passport

    identity = _needed(case.identity, "a device")
    try:
        passport = take_passport(identity.device)
    except RuntimeError as error:  # out of memory, a driver that does not fit, a device that has fallen off the bus
        reason = str(error).strip().splitlines()[0]
        return "fault", f"{identity.name} fails at a plain matrix product: {reason}. Free its memory, or check its driver."
    case.passport = passport
    fp32, bf16 = passport.fp32_gflops, passport.bf16_gflops
    says = f"measured {fp32:,.0f} GFLOP/s in fp32, {bf16:,.1f} in bf16: "
    if bf16 > fp32:
        return "ok", says + f"bf16 is {bf16 / fp32:.1f} times faster"
    says += f"bf16 is {fp32 / max(bf16, 1e-9):.0f} times slower (emulated, or without units of its own)"
    if case.config.train.precision == "bf16":
        return "warning", says + ", but `train.precision` asks for it. Use `auto` or `fp32`."
    return "ok", says + ", so fp32 is used"


def _compile(case: Case) -> Finding:
    compiler = probes.compiler()
    found = f"C++ compiler {compiler}" if compiler else "no C++ compiler is found (it needs one; `apt install g++`)"
    if not case.compile:
        return "ok", f"not checked, for `train.compile` is off (`--compile` checks it); {found}"
    identity = _needed(case.identity, "a device")
    try:
        seconds = probes.try_compile(identity.device)
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        asked = case.config.train.compile
        remedy = "Install a compiler, or set `train.compile` to false." if asked else "Leave `train.compile` off."
        return "fault" if asked else "warning", f"torch.compile fails: {reason}; {found}. {remedy}"
    return "ok", f"torch.compile works, {seconds:.1f} s for a tiny function; {found}"


def _load(case: Case) -> Finding:
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
    if (
        case.gpu_free is not None
        and case.identity
        and (held := case.identity.memory_bytes - case.gpu_free) > CUDA_CONTEXT_BYTES
    ):
        users = "; ".join(" ".join(row) for row in probes.nvidia_smi("compute-apps=pid,process_name,used_memory"))
        warnings.append(f"{held / 2**30:.1f} GiB of the GPU are in use by others ({users or 'nvidia-smi names nobody'}).")
    return _judge([], warnings, says)


# --- folders ---------------------------------------------------------------------------------------------------------


def _folders(case: Case) -> Finding:
    faults = []
    for what, folder in {"study": case.config.folder, "cache": case.cache, "reports": REPORTS}.items():
        try:
            probes.try_writing(folder)
        except OSError as error:
            case.unwritable.add(folder)
            faults.append(f"the {what} folder {folder} cannot be written: {error.strerror}. Allow it, or work elsewhere.")
    return _judge(faults, [], "" if faults else f"{case.config.folder}, {case.cache} and {REPORTS} can be written")


def _locks(case: Case) -> Finding:
    folder = case.config.folder.parent
    if case.config.folder in case.unwritable:
        raise NotCheckedError("it needs a study folder that can be written (see above).")
    with probes.scratch_folder(folder) as scratch:
        faults = [fault for fault in (probes.try_locking(scratch), probes.try_write_ahead(scratch)) if fault]
    kind = probes.file_system(folder)
    if faults:
        return (
            "fault",
            f"{'; '.join(faults)} under {folder} ({kind or 'file system unknown'}). Keep studies on a local disk.",
        )
    if probes.is_network_file_system(kind):
        return "warning", (
            f"{folder} is on a network file system ({kind}): it works from here, but SQLite's write-ahead log breaks if a second "
            "machine opens the study (sqlite.org/wal.html). Use it from this machine alone, or a local disk."
        )
    return "ok", f"file locks and SQLite's write-ahead log work under {folder} ({kind or 'file system unknown'})"


def _disk(case: Case) -> Finding:
    from budgetlm.recipe.scale import model_of

    expected = _needed(case.expected, "a default recipe")
    default = _final_bytes(model_of(expected.default, expected.world))
    largest = _final_bytes(model_of(largest_recipe(expected.space, expected.default), expected.world))
    faults, warnings, free_here = [], [], []
    for what, folder, need in (("study", case.config.folder, default), ("cache", case.cache, ALLOWANCE)):
        place = probes.existing_parent(folder)
        free = shutil.disk_usage(place).free
        free_here.append(f"{_size(free)} free for the {what}")
        if free < need:
            faults.append(f"{place} has {_size(free)} left, but the {what} needs {_size(need)}. Free some space there.")
        elif what == "study" and free < largest:
            warnings.append(
                f"{place} has {_size(free)} left, too little if the largest recipe is chosen ({_size(largest)})."
            )
    final = f"a final needs {_size(default)}, {_size(largest)} at the space's largest"
    return _judge(faults, warnings, f"{', '.join(free_here)}; {final}")


def _final_bytes(model: "ModelConfig") -> int:
    """Bytes that a final writes at its fullest: the checkpoints kept and one more being written, and the exported model."""
    from budgetlm.model.size import parameters
    from budgetlm.train.checkpoint import KEEP

    return parameters(model) * (CHECKPOINT_BYTES * (KEEP + 1) + EXPORT_BYTES) + ALLOWANCE


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e10 else f"{size / 1e6:,.0f} MB"


# --- study -----------------------------------------------------------------------------------------------------------


def _study(case: Case) -> Finding:
    """An earlier study of this name. Its plan is only believed if it was made for these settings and this machine."""
    from budgetlm.search.plan import load_plan
    from budgetlm.search.study import check_machine, check_settings

    folder = case.config.folder
    warnings = _leftovers(folder, case.cache)
    if not (folder / STUDY_FILE).exists():
        return _judge([], warnings, f"{case.config.name!r} is new")
    check_settings(case.config)
    plan = load_plan(folder)
    if plan and case.identity:
        check_machine(plan, case.identity)
    case.plan = plan
    held = [path for path in (folder / LOCK, *sorted(folder.glob("finals/*/lock"))) if probes.is_locked(path)]
    faults = [f"{path} is locked: another process is at work there. Wait for it, or stop it with Ctrl-C." for path in held]
    settled = "was begun with these settings" if plan else "has no plan yet"
    return _judge(faults, warnings, f"{case.config.name!r} {settled}; {_how_it_stands(folder)}")


def _how_it_stands(folder: Path) -> str:
    from budgetlm.records import read_records

    trials = len({r.trial for r in read_records(folder) if r.kind == "rung"})
    balance = _balance(folder)
    if balance is None:
        return f"{trials} trials, nothing spent yet"
    because = balance.stopped_because or "it did not say why it stopped (killed, perhaps)"
    return f"{trials} trials, {duration(balance.charged_seconds)} of {duration(balance.budget_seconds)} spent; {because}"


def _balance(folder: Path) -> Any:
    """The search's account, if the study has one."""
    from budgetlm.budget.ledger import SEARCH, Ledger, open_database

    if not (folder / DATABASE).exists():
        return None
    ledger = Ledger(open_database(folder / DATABASE))
    return ledger.balance(SEARCH) if SEARCH in ledger.accounts() else None


def _leftovers(*folders: Path) -> list[str]:
    found = [path for folder in folders for path in probes.leftovers(folder)]
    if not found:
        return []
    size = sum(map(probes.size_of, found))
    return [f"crashes have left {len(found)} temporary files ({_size(size)}), the first is {found[0]}. They can be deleted."]


def _data(case: Case) -> Finding:
    from budgetlm.data.batches import Batches, validation_windows
    from budgetlm.data.corpus import prepare_corpus
    from budgetlm.search.study import prepare

    if case.cache in case.unwritable:
        raise NotCheckedError("it needs a cache folder that can be written (see above).")
    vocab_size = _vocabulary(case)
    if vocab_size is None:
        corpus = prepare_corpus(case.config.data, case.cache)
        return "warning", f"{corpus.facts.summary()}; not tokenised, for the vocabulary depends on the device (see above)"
    tokens = prepare(case.config, vocab_size, case.cache, case.watcher)
    facts = tokens.facts
    if case.plan and case.plan.data != facts.fingerprint:
        raise StudyError(
            f"the data of study {case.config.name!r} has changed since it was begun (fingerprint {case.plan.data}, now "
            f"{facts.fingerprint}). Bring the old text back, or give the new search another name with `--study`."
        )
    context = _context(case)
    Batches(tokens.split("train"), context, case.config.search.seed)
    validation_windows(tokens.split("validation"), context, context)
    case.tokens = tokens
    count = " and ".join(f"{facts.tokens[split]:,} tokens to {verb}" for split, verb in SPLITS.items())
    return "ok", f"{tokens.corpus.summary()}; {count}, vocabulary {facts.vocab_size:,}, context {context}"


SPLITS = {"train": "train", "validation": "validate"}


def _vocabulary(case: Case) -> int | None:
    """The vocabulary that the search will use, as far as it is known."""
    from budgetlm.search.plan import suited_vocabulary

    if case.plan:
        return case.plan.world.vocab_size
    suited = suited_vocabulary(case.config.budget.target_seconds, case.passport) if case.passport else None
    return case.config.data.vocab_size or suited


def _context(case: Case) -> int:
    on_gpu = case.identity is not None and case.identity.device == "cuda"
    return case.config.model.context_length or (1024 if on_gpu else 256)


def _recipe(case: Case) -> Finding:
    from budgetlm.model.size import parameters
    from budgetlm.recipe.scale import expected_tokens, model_of

    case.expected = _from_plan(case.plan) if case.plan else _estimate(case)
    world, default = case.expected.world, case.expected.default
    model, target = model_of(default, world), case.config.budget.target_seconds
    tokens = expected_tokens(default, model, default.batch_tokens, target, world)
    basis = "by the study's own measurements" if case.plan else "estimated from the ceilings"
    return "ok", (
        f"the default final of {duration(target)} would be depth {default.depth} x width {default.width}, "
        f"{parameters(model) / 1e6:,.2f} M parameters, {tokens / 1e6:,.1f} M tokens ({basis})"
    )


def _from_plan(plan: "Plan") -> Expected:
    return Expected(plan.world, plan.space, plan.default)


def _estimate(case: Case) -> Expected:
    """What a plan would settle, with the ceiling times UTILISATION in place of measured speeds."""
    from budgetlm.recipe.scale import World
    from budgetlm.recipe.space import complete_space, default_recipe, read_space
    from budgetlm.search.plan import UTILISATION
    from budgetlm.train.throughput import SpeedModel

    config, passport, tokens = case.config, _needed(case.passport, "a measured device"), _needed(case.tokens, "tokens")
    bf16_is_fast = passport.bf16_gflops > passport.fp32_gflops
    wanted = config.train.precision
    bf16 = wanted == "bf16" or (wanted == "auto" and bf16_is_fast)
    ceiling = (passport.bf16_gflops if bf16 else passport.fp32_gflops) * 1e9
    world = World(
        vocab_size=tokens.facts.vocab_size,
        context_length=_context(case),
        train_tokens=tokens.facts.tokens["train"],
        eval_tokens=config.train.eval_tokens,
        full_eval_tokens=0,
        micro_batch_tokens=max(LEAST_MICRO_BATCH, _context(case)),
        precision="bf16" if bf16 else "fp32",
        bf16_is_fast=bf16_is_fast,
        compile=config.train.compile,
        device=passport.device,
        memory_bytes=passport.memory_bytes,
        clip=config.train.clip,
        speed=SpeedModel((1 / (UTILISATION * ceiling), 0.0, 0.0, 0.0)),
    )
    space, default = complete_space(read_space(config.space), default_recipe(config.budget.target_seconds, world), world)
    return Expected(world, space, default)


def _repetition(case: Case) -> Finding:
    from budgetlm.recipe.scale import MANY_EPOCHS, epochs_at_target

    expected = _needed(case.expected, "a default recipe")
    world, target = expected.world, case.config.budget.target_seconds
    epochs = epochs_at_target(expected.default, target, world)
    says = f"the default final would read its {world.train_tokens / 1e6:,.2f} M training tokens {epochs:,.2g} times"
    if epochs <= MANY_EPOCHS:
        return "ok", says
    return "warning", (
        f"{says}; beyond about {MANY_EPOCHS:.0f} times repeated text teaches clearly less (arXiv:2305.16264). Give "
        f"{world.train_tokens / 1e6 * epochs / MANY_EPOCHS:,.1f} M tokens or more: `--data site`, or a source of your own."
    )


def _space(case: Case) -> Finding:
    """Whether recipes drawn as the sampler would at first are possible, at the target and in memory."""
    import optuna

    from budgetlm.recipe.scale import at_target
    from budgetlm.recipe.space import searched, suggest

    expected = _needed(case.expected, "a default recipe")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=case.config.search.seed))
    refused = []
    for _ in range(DRAWS):
        try:
            at_target(suggest(study.ask(), expected.space), case.config.budget.target_seconds, expected.world)
        except ConfigError as error:
            refused.append(str(error))
    names = searched(expected.space)
    says = f"searches {', '.join(names) or 'nothing: every parameter is fixed'}"
    if not refused:
        return "ok" if names else "warning", f"{says}; {DRAWS} recipes drawn from it are all possible"
    state: State = "fault" if len(refused) == DRAWS else "warning"
    return state, f"{len(refused)} of {DRAWS} recipes drawn from the space are impossible, e.g.: {refused[0]}"


def _budget(case: Case) -> Finding:
    from budgetlm.search.climb import MARGIN_SECONDS
    from budgetlm.search.ladder import plan_rungs

    budget, plan = case.config.budget, case.plan
    if budget.hours == 0:
        return "warning", "how much may the search spend? Give `--hours`, then this says what they pay for."
    known = plan.rungs if plan else ()
    rungs = plan_rungs(budget.seconds, budget.target_seconds, case.config.search.least_rung_seconds, known)
    balance = _balance(case.config.folder)
    charged = balance.charged_seconds if balance else 0.0
    if charged > budget.seconds:
        return "fault", f"{budget.hours:.4g} h are less than the {charged / 3600:.4g} h already spent. Give more `--hours`."
    left = budget.seconds - charged
    if left < rungs[0] + MARGIN_SECONDS:
        return "warning", f"the {left:.1f} s left do not pay for another run of {rungs[0]:.1f} s. Raise `--hours` to go on."
    return "ok", (
        f"{duration(left)} pay for a ladder of {len(rungs)} rungs ({', '.join(map(duration, rungs))}), at most "
        f"{int(left / (rungs[0] + MARGIN_SECONDS)):,} runs of the cheapest; the highest is 1/{budget.target_seconds / rungs[-1]:.0f} of the target"
    )


def _memory(case: Case) -> Finding:
    from budgetlm.recipe.scale import model_of

    expected = _needed(case.expected, "a default recipe")
    world, default = expected.world, expected.default
    total, available = _memory_of(case, world)
    needed = _training_bytes(model_of(default, world), min(world.micro_batch_tokens, default.batch_tokens))
    corner = largest_recipe(expected.space, default)
    most = _training_bytes(model_of(corner, world), min(world.micro_batch_tokens, corner.batch_tokens))
    says = (
        f"to train the default recipe takes about {_gib(needed)}, the space's largest (depth {corner.depth} x width "
        f"{corner.width}) {_gib(most)}, of {_gib(total)}, {_gib(available)} now free"
    )
    faults, warnings = [], []
    if needed > USABLE_MEMORY * total:
        faults.append("the default recipe does not fit. Narrow `space.width` or `space.depth`, or use a larger device:")
    elif most > USABLE_MEMORY * total:
        warnings.append(
            "the largest recipes do not fit, and their trials would be wasted. Narrow `space.width` or `space.depth`:"
        )
    elif needed > available:
        warnings.append("the default recipe does not fit beside what is running now. Stop something:")
    return _judge(faults, warnings, says)


def _memory_of(case: Case, world: "World") -> tuple[int, int]:
    """Bytes that the device has, and that are free now."""
    if world.device == "cuda":
        return world.memory_bytes, case.gpu_free if case.gpu_free is not None else world.memory_bytes
    total = min(world.memory_bytes, probes.memory_limit() or world.memory_bytes)
    return total, min(total, probes.memory_available() or total)


def _training_bytes(model: "ModelConfig", micro_batch_tokens: int) -> int:
    """The estimate that recipes are refused by."""
    from budgetlm.model.size import training_bytes

    return training_bytes(model, micro_batch_tokens)


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"


def largest_recipe(space: "Space", default: "Recipe") -> "Recipe":
    """The corner of a space whose model weighs most."""
    from budgetlm.model.size import round_width

    return replace(
        default,
        depth=int(_extreme(space["depth"], max)),
        width=round_width(_extreme(space["width"], max)),
        batch_tokens=int(_extreme(space["batch_tokens"], max)),
        mlp_ratio=float(_extreme(space["mlp_ratio"], max)),
        kv_groups=default.kv_groups,  # the smallest may not divide the heads of the largest; they weigh little
        tie_embeddings=bool(_extreme(space["tie_embeddings"], min)),
    )


def _extreme(domain: "Domain", which: Callable[[Any], Any]) -> Any:
    """The largest or smallest value of a domain."""
    from budgetlm.recipe.space import Choices, Fixed

    if isinstance(domain, Fixed):
        return domain.value
    return which(domain.values if isinstance(domain, Choices) else (domain.low, domain.high))


CHECKS: dict[str, Callable[[Case], Finding]] = {
    "versions": _versions,
    "device": _device,
    "study": _study,
    "folders": _folders,
    "locks": _locks,
    "clock": _clock,
    "precision": _precision,
    "data": _data,
    "recipe": _recipe,
    "repetition": _repetition,
    "space": _space,
    "budget": _budget,
    "memory": _memory,
    "disk": _disk,
    "compile": _compile,
    "load": _load,
}
"""In this order: each may build on those before it."""
