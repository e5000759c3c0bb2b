"""What all recipes of a study share: its data, its device, and what was measured of it."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from budgetlm.train.compilation import EXPECTED, Compilation
from budgetlm.train.config import Matmul, Precision
from budgetlm.train.memory import MemoryModel
from budgetlm.train.throughput import SpeedModel

Proxy = Literal["miniature", "truncate"]
"""What stands for a recipe on a rung: a smaller model by the rule, or the recipe's own shape, batch and rate in less time."""
PROXIES: tuple[Proxy, ...] = get_args(Proxy)
USABLE_MEMORY, USABLE_BY_A_LOOSE_HEAP = 0.9, 0.7
"""Share of the device's memory that a run may be predicted to need; less on a CPU where the heap keeps what is freed, for that
is hard to predict."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What all recipes of a study share: data, device, and what was measured of it."""

    vocab_size: int
    context_length: int
    train_tokens: int
    """Tokens of the training split; of a streamed source that was not all there when the study was planned, about."""
    eval_tokens: int
    full_eval_tokens: int
    micro_batch_tokens: int
    precision: Precision
    bf16_is_fast: bool
    compile: str
    """`on`, `graphs`, `off`, or `auto` for runs in which it pays."""
    device: str
    memory_bytes: int
    clip: float
    speed: SpeedModel
    memory: MemoryModel = field(default_factory=MemoryModel)
    compilation: Compilation = EXPECTED["cpu"]
    matmul: Matmul = "auto"
    checkpoint_activations: str = "auto"
    """`on`, `off`, or `auto` where a run would not fit otherwise."""
    products_up_to: int = 0
    """Length of the longest sequences whose attention is by plain products."""
    document_end: int | None = None
    """Id of the end-of-text token where attention stays within documents."""
    mask_token: int | None = None
    """Id of the token that hides others, where models are encoders; None for decoders."""
    proxy: Proxy = "miniature"
    objectives: str = "loss"
    """What recipes are judged by (`records.OBJECTIVES`)."""
    max_model_bytes: int = 0
    """Most that the final's artefact may weigh; 0 for no limit."""
    teacher: str = ""
    """Folder or Hugging Face id of the model that `distil` learns from."""
    teacher_parameters: int = 0
    init: str = ""
    """Folder of the model whose weights all runs begin from; empty for fresh ones."""
    rope_theta: float = 10_000.0
    """Base of the rotary position frequencies: that of given weights, or the usual one."""
    paces: dict[str, float] = field(default_factory=dict)
    """Measured speed of options that change training, as a multiple of what was foretold."""

    @property
    def must_compile(self) -> bool:
        """Whether runs are compiled whether it pays or not."""
        return self.compile in ("on", "graphs")

    def compiles(self, run_seconds: float, *, usual: bool = True) -> bool:
        """Whether a run of this length is compiled; of other mixers than attention, and of what changes on the way, it is not known what that would gain."""
        return self.must_compile or (usual and self.compile == "auto" and self.compilation.pays(run_seconds))

    shards: int = 1
    """Devices that a run's weights, gradients and optimizer state are spread over."""
    offload: bool = False
    """Whether these wait in the processor's memory while they are not computed with."""
    final_devices: int = 1
    """Devices that are to train the study's final together, how (`train/parallel/kinds.py`, or `auto`), and whether with offload: where it is held in parts, it may be larger than one
    device's memory, and a rung, which one device trains, may not."""
    final_parallel: str = "auto"
    final_offload: bool = False

    @property
    def usable_bytes(self) -> float:
        """Memory that a run may be predicted to need at its thriftiest."""
        return USABLE_MEMORY * self.memory_bytes

    @property
    def thrift(self) -> "tuple[Thrift, ...]":
        """What can be done on this device to save memory, as far as it is allowed, the cheapest first."""
        ways = THRIFT if self.device == "cpu" else THRIFT[:-1]
        if self.checkpoint_activations == "auto":
            return ways
        again = self.checkpoint_activations == "on"
        return tuple(dict.fromkeys(replace(way, checkpoint_activations=again) for way in ways))

    def fitting_bytes(self, compact_heap: bool) -> float:
        """Memory that a run may be predicted to need with this heap."""
        loose = self.device == "cpu" and not compact_heap
        return (USABLE_BY_A_LOOSE_HEAP if loose else USABLE_MEMORY) * self.memory_bytes


@dataclass(frozen=True)
class Thrift:
    """What is done to save memory beside a smaller micro-batch; each costs time."""

    checkpoint_activations: bool = False
    fused: bool = False
    """Attention by the fused kernel, which keeps no weights of pairs of tokens, whatever is faster."""
    compact_heap: bool = False


THRIFT = (Thrift(), Thrift(True), Thrift(True, fused=True), Thrift(True, fused=True, compact_heap=True))
