"""A study file (TOML) and options -> frozen dataclasses -> the file kept with the results.

Only names that something reads are accepted; a misspelt one is refused with the nearest that exists.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from budgetlm.allocator import CHOICES as ALLOCATORS
from budgetlm.data.config import TOGETHER, DataConfig
from budgetlm.errors import ConfigError
from budgetlm.files import checked_name, write_atomic
from budgetlm.recipe.space import read_space, unknown_key
from budgetlm.recipe.world import PROXIES, Proxy
from budgetlm.records import OBJECTIVES
from budgetlm.train.config import MATMULS, PRECISIONS, Matmul
from budgetlm.train.parallel.kinds import check_parallel

STUDIES = Path("studies")
"""Where studies live, relative to the folder that a command is run in."""
STUDY_FILE, DATABASE = "study.toml", "study.db"
"""Files of a study's folder: what it was asked to do, and its database where that is no server's."""


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """How much the search may spend, and what for. Hours of one device."""

    hours: float = 0.0
    """Device-hours that the search may spend."""
    target_hours: float = 24.0
    """Device-hours of the final that the search looks for."""

    def __post_init__(self) -> None:
        for name in ("hours", "target_hours"):
            value = getattr(self, name)
            if not 0 <= value < 1e6:
                raise ConfigError(f"budget.{name} is {value}, but it is a number of hours, above 0. E.g. 24, or 0.1.")
        if self.target_hours == 0:
            raise ConfigError("budget.target_hours is 0, but the final needs some time. E.g. 24, or 0.1.")

    @property
    def seconds(self) -> float:
        """Device-seconds that the search may spend."""
        return self.hours * 3600

    @property
    def target_seconds(self) -> float:
        """Device-seconds of the final."""
        return self.target_hours * 3600


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What all models of a study share."""

    context_length: int = 0
    """Tokens that a model sees at once; 0 for 256 on a CPU and 1,024 on a GPU."""
    objective: str = "clm"
    """What models learn: `clm`, to predict the next token (a decoder), or `mlm`, those that are hidden from it (an encoder)."""
    init: str = ""
    """Folder of a model whose weights all runs begin from (`inherit.py`): a final's `model` folder, what `export` wrote, or a plain Qwen3 or ModernBERT;
    empty for fresh ones."""
    document_attention: bool = False
    """Whether a token attends to its own document only, where several are packed into a sequence; in training and in evaluation
    (`model/documents.py`)."""

    def __post_init__(self) -> None:
        if self.objective not in ("clm", "mlm"):
            raise ConfigError(f"model.objective cannot be {self.objective!r}. Use clm, or mlm.")
        if self.objective == "mlm" and self.document_attention:
            raise ConfigError("model.document_attention is for decoders, but model.objective is mlm. Leave one of them out.")
        if self.context_length and not 8 <= self.context_length <= 2**17:
            raise ConfigError(
                f"model.context_length is {self.context_length}; use 8 to {2**17}, or 0 for the device's default."
            )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How and where the runs of a study train."""

    device: str = "auto"
    """`cpu`, `cuda`, or `auto` for a GPU where there is one."""
    devices: int = 0
    """Devices that a search uses at once, a worker on each; every one of them is charged. 0 for all GPUs, or one CPU. More than
    one CPU worker share the cores."""
    engine: str = "processes"
    """Who runs the workers of a search, and the several devices of a final: `processes` of this machine, or `ray`, on a Ray cluster or a Ray of this machine
    alone."""
    ray_address: str = ""
    """The Ray cluster's address, or `auto` for the one that this machine belongs to; empty to begin one here."""
    gpu_share: float = 1.0
    """What each run of a search takes of a GPU on Ray (`num_gpus`): with 0.5 two runs share one, and its memory. Each place is charged as a device all the same."""
    final_devices: int = 1
    """Devices that train the final together, each of them charged; 0 for all GPUs, or one CPU."""
    parallel: str = "auto"
    """How they do (`train/parallel/kinds.py`): `ddp`, `fsdp`, `tp`, `pp`, `ddp,tp`, `fsdp,tp`, or `auto` for `ddp` where the model fits one GPU, and on a CPU, and `fsdp`
    where it does not."""
    offload: bool = False
    """Whether the final's weights, gradients and optimizer state wait in the processor's memory while they are not computed with, as parts of `fsdp`; on one GPU, too."""
    threads: int = 0
    """CPU threads of a worker; 0 for what is measured to be fastest, at most its share of the cores (`train/choices.py`)."""
    checkpoint_seconds: float = 0.0
    """Seconds between checkpoints; 0 for the interval that costs least in the long run (`train/loop.py`)."""
    allocator: str = "auto"
    """Of memory in the processes that train, in place of the C library's: `tcmalloc`, `jemalloc`, `auto` for the first of these that the system
    has, or `off` (`allocator.py`)."""
    memory_gb: float = 0.0
    """Memory that a run may take beyond what PyTorch itself holds, in 1e9 bytes; 0 for what the device has."""
    precision: str = "auto"
    """`fp32`, `bf16`, or `auto` for bf16 where it is measured to be faster, and for `bf16-master` (`train/halves.py`) where that is, clearly; `fp8` (`train/fp8.py`) only
    where it is asked for."""
    matmul: Matmul = "auto"
    """How exactly fp32 matrices are multiplied: `highest`, `high`, `medium` (`train/numerics.py`), or `auto` for `high` on a GPU, which
    is TF32, and `highest` on a CPU."""
    attention: str = "auto"
    """How training computes attention: `fused` by PyTorch's kernel, `products` by plain matrix products, or `auto` for what is measured to be
    faster on a CPU, and fused on a GPU."""
    checkpoint_activations: str = "auto"
    """Whether only what enters each block is kept for the backward pass and the rest computed again: `on`, `off`, or `auto` where not even one
    sequence fits the memory otherwise. `off` refuses what does not fit then."""
    compile: str = "auto"
    """Whether the blocks of a model are compiled (`torch.compile`): `on`, `off`, `auto` for the runs in which it is expected to earn
    its time back, or `graphs` for `on` with CUDA graphs (`mode="reduce-overhead"`)."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    teacher: str = ""
    """What `distil` learns from: a final's `model` folder, another folder that transformers loads, or a Hugging Face id; with the
    study's tokenizer (`compress/distill.py`)."""
    charge_teacher: bool = False
    """Whether the search pays for the teacher's own training too, as its folder says what that took: for one that was trained for this study."""
    eval_tokens: int = 0
    """Tokens of the validation sample; 0 for as few as tell two recipes apart beside the noise of their seeds, and at most what 2 % of the
    cheapest rung can pay for."""

    def __post_init__(self) -> None:
        choices = {
            "device": ("auto", "cpu", "cuda"),
            "engine": ("processes", "ray"),
            "allocator": ALLOCATORS,
            "precision": ("auto", *PRECISIONS),
            "matmul": MATMULS,
            "attention": ("auto", "fused", "products"),
            "checkpoint_activations": ("auto", "on", "off"),
            "compile": ("auto", "on", "graphs", "off"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"train.{name} cannot be {getattr(self, name)!r}. Use {', '.join(allowed)}.")
        if not 0 < self.gpu_share <= 1:
            raise ConfigError(f"train.gpu_share is {self.gpu_share}, but it is a share of one GPU: above 0, and at most 1.")
        if self.gpu_share < 1 and self.engine != "ray":
            raise ConfigError(
                "train.gpu_share is for Ray, which places several runs on a GPU. Give `--engine ray`, or leave it at 1."
            )
        check_parallel(self.parallel, offload=self.offload)
        if self.charge_teacher and not self.teacher:
            raise ConfigError("train.charge_teacher needs a teacher. Set `train.teacher`, or leave it out.")
        counts = (self.devices, self.final_devices, self.threads, self.checkpoint_seconds, self.memory_gb, self.eval_tokens)
        if min(counts) < 0 or self.clip <= 0:
            raise ConfigError(
                "train.devices, final_devices, threads, checkpoint_seconds, memory_gb and eval_tokens must not be negative, and train.clip must be above 0."
            )


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How the search goes about it."""

    seed: int = 0
    """Decides what is sampled and how the runs are initialised."""
    proxy: Proxy = "miniature"
    """What stands for a recipe on a rung: its `miniature`, or its own shape in less time, `truncate` (`recipe/scale.py`)."""
    objectives: str = "loss"
    """What recipes are judged by: the `loss` at the target, or `loss,size` or `loss,latency`, where no recipe is kept back that is the best
    of its size, or of its time for a token."""
    max_model_mb: float = 0.0
    """Most that the final's weights may weigh on the disk, in 1e6 bytes; 0 for no limit. Recipes beyond it are not trained."""
    least_rung_seconds: float = 4.0
    """Shorter rungs than this measure start-up rather than learning."""
    stop_early: bool = True
    """Whether the search ends before its budget does, when another run is expected to gain less than its seconds would gain in the
    final."""
    max_restarts: int = 3
    """How often a run that its machine has cut off is gone on with."""
    hang_seconds: float = 300.0
    """A run that nothing is heard of for so long is ended. More than its longest step, compilation included."""
    storage: str = ""
    """Address of a server's database for the study (`budget/database.py`), for workers on several machines; empty for a file in its folder."""
    shared: str = ""
    """Address of a bucket (`workers/bucket.py`), for workers on machines that do not see the study's folder; empty for none."""

    def __post_init__(self) -> None:
        if self.storage:
            from budgetlm.budget.database import check_storage

            check_storage(self.storage)
        if self.shared:
            from budgetlm.workers.bucket import check_shared

            check_shared(self.shared)
            if not self.storage:
                raise ConfigError(
                    "search.shared is for workers on machines that do not see the study's folder, so they need a database on a server too. Give "
                    "`--storage postgresql+psycopg://me@host/database`, or leave it out."
                )
        if self.proxy not in PROXIES:
            raise ConfigError(f"search.proxy cannot be {self.proxy!r}. Use {' or '.join(PROXIES)}.")
        if self.objectives not in OBJECTIVES:
            raise ConfigError(f"search.objectives cannot be {self.objectives!r}. Use {' or '.join(OBJECTIVES)}.")
        if not 0 <= self.max_model_mb < 1e9:
            raise ConfigError(
                f"search.max_model_mb is {self.max_model_mb}, but it is a number of megabytes, or 0 for no limit."
            )
        if min(self.least_rung_seconds, self.hang_seconds) <= 0:
            raise ConfigError("search.least_rung_seconds and search.hang_seconds must be above 0.")
        if min(self.seed, self.max_restarts) < 0:
            raise ConfigError("search.seed and search.max_restarts must not be negative.")

    @property
    def max_model_bytes(self) -> int:
        """The limit of size in bytes; 0 for none."""
        return round(self.max_model_mb * 1e6)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Everything that a study is asked to do."""

    name: str = "default"
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelSettings = field(default_factory=ModelSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    space: dict[str, Any] = field(default_factory=dict)
    """The `[space]` table as written; `recipe.space.read_space` gives it its meaning."""

    def __post_init__(self) -> None:
        checked_name(self.name)
        read_space(self.space)

    @property
    def folder(self) -> Path:
        """Where the study lives."""
        return STUDIES / self.name

    @property
    def database(self) -> str:
        """The address of the study's database."""
        from budgetlm.budget.database import file_address

        return self.search.storage or file_address(self.folder / DATABASE)

    @property
    def scope(self) -> str:
        """The study's name where its database is shared with others; empty where it is its own."""
        return self.name if self.search.storage else ""

    def save(self, folder: Path) -> None:
        """Keep the configuration, defaults filled in, with the results."""
        write_atomic(folder / STUDY_FILE, tomli_w.dumps(dataclasses.asdict(self)))


SECTIONS: dict[str, type] = {
    "budget": BudgetConfig,
    "data": DataConfig,
    "model": ModelSettings,
    "train": TrainSettings,
    "search": SearchSettings,
}


def read_study_file(path: Path) -> StudyConfig:
    """Read a study file.

    Raises:
        ConfigError: the file is missing, is not TOML, or says something that nothing understands.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no study file {path}. Check the path; `studies/demo.toml` is one to begin with."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}. Mend that line.") from error
    except OSError as error:
        raise ConfigError(f"could not read {path}: {error.strerror}.") from error
    try:
        return study_config({"name": path.stem, **table})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def study_config(table: Mapping[str, Any]) -> StudyConfig:
    """A study's configuration from a nested dictionary, every name and type checked."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key == "name":
            values[key] = str(value)
        elif key not in (*SECTIONS, "space"):
            raise unknown_key(key, [*SECTIONS, "space", "name"], "a study file")
        elif not isinstance(value, Mapping):
            raise ConfigError(f"`{key}` is a section: write `[{key}]` and its settings below it.")
        else:
            values[key] = dict(value) if key == "space" else _section(key, value)
    return StudyConfig(**values)


def _section(name: str, table: Mapping[str, Any]) -> Any:
    fields = {f.name: f for f in dataclasses.fields(SECTIONS[name])}
    values: dict[str, Any] = {}
    for key, given in table.items():
        if key not in fields:
            raise unknown_key(key, list(fields), f"[{name}]")
        wanted: Any = type(fields[key].default)
        several = (name, key) == ("data", "source") and isinstance(given, list)
        value = TOGETHER.join(map(str, given)) if several else given
        whole = wanted is float and type(value) is int  # `hours = 24` means 24.0
        if type(value) is not wanted and not whole:
            raise ConfigError(f"{name}.{key} is {value!r}, but it must be of type {wanted.__name__}.")
        values[key] = wanted(value)
    return SECTIONS[name](**values)
