"""One training run, fully said: what `train` needs to know, and what a record keeps. No torch."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from budgetlm.compress.apply import Compression
from budgetlm.errors import ConfigError
from budgetlm.model.size import ModelConfig, compute_parameters, parameters
from budgetlm.records import RunRecord
from budgetlm.train.schedule import ScheduleConfig, longest_up_to

Precision = Literal["fp32", "bf16", "bf16-master", "fp8"]
"""What matrices are multiplied in; the weights that the optimizer moves are fp32. `bf16` rounds them in every pass (autocast), `bf16-master`
once a step (`train/halves.py`). Of fp8 (`train/fp8.py`) memory, speed and ceiling are foretold as those of
bf16, which is what all but the blocks' products are in: a guess, until a study has learnt its own."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Matmul = Literal["auto", "highest", "high", "medium"]
MATMULS: tuple[Matmul, ...] = get_args(Matmul)
OptimizerName = Literal["adamw", "muon", "adam", "adamax", "sgd", "nadam", "adafactor", "schedulefree"]
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimizer, and its strength."""

    name: OptimizerName = "adamw"
    peak_lr: float = 3e-3
    """Learning rate at the top of the schedule, in AdamW's measure: others are given a multiple (`train/optim.py`)."""
    embedding_lr: float = 1.0
    """Learning rate of the embedding and the head, as a multiple of the others'."""
    weight_decay: float = 0.1
    """Decoupled decay of the blocks' matrices and the embedding; norms are not decayed. `adam` is the one without."""
    beta1: float = 0.9
    """Decay of the mean of gradients a step; the momentum of `sgd`. Muon's momentum is the schedule's."""
    beta2: float = 0.95
    clip: float = 1.0
    """Largest norm of the gradient; longer ones are shortened to it."""

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ConfigError(f"optimizer {self.name!r} is not known. Use one of {', '.join(OPTIMIZERS)}.")
        if not (math.isfinite(self.peak_lr) and self.peak_lr > 0):
            raise ConfigError(f"peak_lr is {self.peak_lr}, but must be above 0. 1e-4 to 1e-2 is usual.")
        if not (math.isfinite(self.embedding_lr) and self.embedding_lr > 0):
            raise ConfigError(f"embedding_lr is {self.embedding_lr}, but must be above 0. 1 gives all the same rate.")
        if self.weight_decay < 0 or self.clip <= 0:
            raise ConfigError(
                f"weight_decay ({self.weight_decay}) must not be negative and clip ({self.clip}) must be above 0."
            )


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a record says of a run beside its configuration."""

    run: str
    kind: Literal["rung", "final"]
    trial: int
    rung: int
    recipe: dict[str, Any]
    target_seconds: float
    passport: str = ""
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A model, how it is trained, and for how long."""

    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: float = 0.0
    """Averaging time of the weights as a share of the run; 0 for none. Evaluations and the exported model use the average."""
    batch_sequences: int
    """Sequences in one optimisation step, once a batch ramp is over."""
    micro_batch_sequences: int
    """Sequences in one forward pass; a step takes as many passes as it needs."""
    seconds: float = 0.0
    """Device-seconds until the deadline, last evaluation included. 0 where `steps` is given."""
    steps: int = 0
    """Optimisation steps, for runs that must not depend on the clock. 0 where `seconds` is given."""
    unique_tokens: int = 0
    """Different training tokens that the run may read; 0 for all there are."""
    eval_tokens: int = 65_536
    """Tokens of the validation sample."""
    full_eval_tokens: int = 0
    """Tokens of a second, larger validation sample, measured once at the end; 0 for none."""
    precision: Precision = "fp32"
    matmul: Matmul = "auto"
    """How exactly fp32 matrices are multiplied, in PyTorch's words (`train/numerics.py`); `auto` is `high` on a GPU, `highest` on a
    CPU."""
    products_up_to: int = 0
    """Length of the longest sequences (tokens) that are trained with attention by plain products, others by the fused kernel."""
    compile: bool = False
    """Whether the blocks are compiled (`torch.compile`); the seconds are charged."""
    compile_or_fail: bool = False
    """Whether a run ends where compiling does not work; otherwise it goes on without, and says so."""
    cuda_graphs: bool = False
    """Whether compiled blocks are recorded as CUDA graphs; without effect on a CPU."""
    checkpoint_activations: bool = False
    """Whether the backward pass computes each block again instead of keeping what it needs of it: less memory, for about
    one more forward pass (Chen et al. 2016, arXiv:1604.06174)."""
    compact_heap: bool = False
    """Whether freed memory goes back at once, which takes time: the last resort on a CPU (`train/heap.py`)."""
    bf16_is_fast: bool = False
    """Whether the device multiplies bf16 matrices faster than fp32 ones (measured)."""
    compression: Compression = field(default_factory=Compression)
    """How the model is compressed, on the way and at the end."""
    init: str = ""
    """Folder of the model whose weights it begins from; empty for fresh ones."""
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.seconds > 0) == (self.steps > 0):
            raise ConfigError(f"a run ends by seconds ({self.seconds}) or by steps ({self.steps}): give exactly one.")
        if min(self.batch_sequences, self.micro_batch_sequences) < 1:
            raise ConfigError("a batch needs at least one sequence. Raise `batch_tokens` to the context length or more.")
        if self.matmul not in MATMULS:
            raise ConfigError(f"matmul cannot be {self.matmul!r}. Use one of {', '.join(MATMULS)}.")
        if not 0 <= self.ema <= 1:
            raise ConfigError(f"ema is {self.ema}, but it is a share of the run: between 0 and 1. 0 does without.")
        if self.ema and self.optimizer.name == "schedulefree":
            raise ConfigError(
                f"schedulefree averages the weights by itself, so there is no second average over {self.ema} of the run. "
                "Set `ema` to 0, or use another optimizer."
            )

    @property
    def batch_tokens(self) -> int:
        """Tokens in one optimisation step, once a batch ramp is over."""
        return self.batch_sequences * self.model.context_length

    @property
    def products_length(self) -> int:
        """Length of the longest sequences whose attention is by products; 0 if that of none is."""
        return longest_up_to(self.products_up_to, self.model.context_length, self.schedule.short_sequences)


def run_config_from(values: dict[str, Any]) -> RunConfig:
    """The configuration that a record keeps, as an object again."""
    parts = {
        "model": ModelConfig(**values["model"]),
        "optimizer": OptimizerConfig(**values["optimizer"]),
        "schedule": ScheduleConfig(**values["schedule"]),
        "compression": Compression(**values.get("compression", {})),
    }
    return RunConfig(**{**values, **parts})


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain values."""
    return dataclasses.asdict(config)


def bare_record(label: Label, config: RunConfig | None) -> RunRecord:
    """What is known of a run that has left no record itself: what was asked of it, and nothing that it did; `failed` until more is known."""
    return RunRecord(
        run=label.run,
        kind=label.kind,
        trial=label.trial,
        rung=label.rung,
        state="failed",
        recipe=label.recipe,
        config=as_dict(config) if config else {},
        seed=config.seed if config else 0,
        target_seconds=label.target_seconds,
        planned_seconds=config.seconds if config else 0.0,
        seconds=0.0,
        by_purpose={},
        steps=0,
        tokens=0,
        parameters=parameters(config.model) if config else 0,
        compute_parameters=compute_parameters(config.model) if config else 0,
        flops=0.0,
        tokens_per_second=0.0,
        bpb=None,
        passport=label.passport,
        why=label.why,
    )
