"""The one list of compression options: their names, what they change, what they cost, what they need. No torch.

An option string names one or several of them, `prune+int8`; they are applied in the order of the list, whatever order was typed. What makes
no sense together, or cannot be had on a device, is refused with the reason. To add an option, add it to `OPTIONS`, do it in
`compress/compressor.py`, and say in `compress/layout.py` what its file holds.
"""

import difflib
import importlib.util
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from budgetlm.errors import ConfigError
from budgetlm.model.kinds import FP32
from budgetlm.model.size import ModelConfig, body_parameters, parameters

Kind = Literal["teacher", "smaller", "sparse", "bits"]
"""What an option works on: what is learnt from, the shape, which weights are zero, or how they are stored."""
Scope = Literal["layer", "global"]
SCOPES: tuple[Scope, ...] = ("layer", "global")
TORCHAO = "the package torchao: pip install 'budgetlm[compress]'"
LEAST_INT8_CAPABILITY = (8, 0)
"""CUDA compute capability from which PyTorch multiplies int8 matrices (`torch._int_mm`)."""


@dataclass(frozen=True)
class Option:
    """One way to compress."""

    name: str
    kind: Kind
    changes: str
    """What it does, in words."""
    price: str
    """What it costs of the device's time, in words; measured in `tests/benchmarks/bench_compress.py`."""
    needs: str = ""
    """What it cannot do without."""
    bits: int = 32
    """Bits of a stored weight."""
    rounds_in_training: bool = False
    """Whether training's last part already computes with the rounded weights."""
    rounds_activations: bool = False


WHILE_TRAINING = "a step of the last part takes about a third longer"
OPTIONS: tuple[Option, ...] = (
    Option("distil", "teacher", "learns from a teacher's probabilities beside the text", "the teacher's forward pass in every step", "a teacher with the same tokenizer (`train.teacher`)"),
    Option("shrink-layers", "smaller", "takes away whole blocks, those that change least", "later steps are faster by that share"),
    Option("shrink-heads", "smaller", "takes away attention heads, with their keys and values", "later steps are faster"),
    Option("shrink-hidden", "smaller", "takes away hidden units of the MLPs", "later steps are faster"),
    Option("prune", "sparse", "sets the smallest weights of the blocks to zero", "next to nothing; the file stores what is left, products are as slow as before"),
    Option("prune24", "sparse", "sets two of every four weights in a row to zero", "next to nothing; the file stores what is left"),
    Option("int8", "bits", "stores weights in 8 bits, a scale for each row", "seconds, at the end", TORCHAO, 8),
    Option("int8-dynamic", "bits", "the same, and rounds activations to 8 bits, so that products are of integers", "seconds, at the end", f"{TORCHAO}; on a GPU, compute capability 8.0", 8, rounds_activations=True),
    Option("int4", "bits", "stores weights in 4 bits, a scale for each group of 32", "seconds, at the end", TORCHAO, 4),
    Option("int8-qat", "bits", "int8, with the weights rounded in training already", WHILE_TRAINING, TORCHAO, 8, True),
    Option("int8-dynamic-qat", "bits", "int8-dynamic, with weights and activations rounded in training already", WHILE_TRAINING, f"{TORCHAO}; on a GPU, compute capability 8.0", 8, True, True),
    Option("int4-qat", "bits", "int4, with the weights rounded in training already", WHILE_TRAINING, TORCHAO, 4, True),
)  # fmt: skip
"""In the order in which they are applied."""
BY_NAME = {option.name: option for option in OPTIONS}
ARCHITECTURE = {
    "tie_embeddings": "one matrix for embedding and head; saves nothing on disk where `norm_embedding` is on",
    "kv_groups": "query heads share keys and values: smaller matrices, faster steps, a smaller cache",
    "mlp_ratio": "fewer hidden units from the start: smaller and faster",
    "share_layers": "layers in a row share a block: as slow as without, smaller where the file keeps it so",
    "embedding_rank": "embedding and head in two factors: a faster head, smaller where the file keeps it so",
}
"""Recipe fields that make a model smaller from the start. They are searched like any other, and stand in the same table of prices."""


@lru_cache(256)  # asked for in every step, and for every shape that is weighed
def parse(text: str) -> tuple[Option, ...]:
    """The options that a string names, in the order in which they are applied; none for `none`.

    Raises:
        ConfigError: a name is not known, or the options make no sense together; the message says why.
    """
    names = [name.strip() for name in text.split("+")]
    if names == ["none"]:
        return ()
    for name in names:
        if name == "none":
            raise ConfigError(
                f"compression {text!r}: `none` is no compression, so nothing can be added to it. Leave it out."
            )
        if name in ARCHITECTURE:
            raise ConfigError(f"compression {name!r} is a choice of the architecture: write `{name} = …` in [space].")
        if name not in BY_NAME:
            near = difflib.get_close_matches(name, BY_NAME, n=1, cutoff=0.5)
            hint = f"Did you mean `{near[0]}`?" if near else f"Known: none, {', '.join(BY_NAME)}; joined by `+`."
            raise ConfigError(f"compression {name!r} is not known. {hint}")
        if names.count(name) > 1:
            raise ConfigError(f"compression {text!r} names {name} twice. Name it once.")
    chosen = tuple(option for option in OPTIONS if option.name in names)
    _check_together(text, chosen)
    return chosen


def canonical(text: str) -> str:
    """The option string with its options in the order in which they are applied."""
    return "+".join(option.name for option in parse(text)) or "none"


def _check_together(text: str, chosen: tuple[Option, ...]) -> None:
    """Refuse what makes no sense together."""
    by_kind: dict[Kind, list[Option]] = {
        kind: [o for o in chosen if o.kind == kind] for kind in ("smaller", "sparse", "bits")
    }
    refused = f"compression {text!r} makes no sense: "
    if len(by_kind["bits"]) > 1:
        names = " and ".join(o.name for o in by_kind["bits"])
        raise ConfigError(f"{refused}weights are stored in one way, not in those of {names}. Choose one.")
    if len(by_kind["sparse"]) > 1:
        raise ConfigError(
            f"{refused}prune24 is a pattern of the zeros that prune would put elsewhere. Choose one; prune24 is always half."
        )
    if by_kind["smaller"] and by_kind["sparse"]:
        raise ConfigError(
            f"{refused}`sparsity` would say two shares at once, of {by_kind['smaller'][0].name} and of {by_kind['sparse'][0].name}. Choose one."
        )
    if by_kind["sparse"] and by_kind["bits"] and by_kind["bits"][0].bits < 8:
        raise ConfigError(
            f"{refused}4-bit weights are packed zeros and all, so pruning would cost quality and save nothing. Use "
            f"{by_kind['sparse'][0].name}+int8, or {by_kind['bits'][0].name} alone."
        )


@dataclass(frozen=True, kw_only=True)
class Compression:
    """How a run compresses its model. With `option` none, nothing else is read."""

    option: str = "none"
    sparsity: float = 0.5
    """Share that is taken away: of the blocks' weights, or of heads, hidden units, layers. `prune24` is always half."""
    scope: Scope = "layer"
    """Whether `prune` takes this share of every matrix, or of all together."""
    start: float = 0.2
    """Progress at which weights begin to be pruned; heads, hidden units and layers go there at once."""
    end: float = 0.7
    """Progress at which the last weights are pruned."""
    qat_share: float = 0.2
    """Share of the run, its last, that computes with rounded weights; options that end in `-qat` only."""
    teacher: str = ""
    """Folder or Hugging Face id of the teacher; `distil` only."""
    distil_weight: float = 0.5
    """Share of the loss that the teacher's probabilities have; the text's own tokens have the rest."""
    distil_temperature: float = 1.0
    """What both models' logits are divided by for it (Hinton et al. 2015, section 2, arXiv:1503.02531)."""
    distil_top_k: int = 0
    """Likeliest tokens of the teacher that count; 0 for all."""
    teacher_parameters: int = 0
    """Of the teacher, which decide what it costs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "option", canonical(self.option))
        if self.scope not in SCOPES:
            raise ConfigError(f"prune_scope cannot be {self.scope!r}. Use {' or '.join(SCOPES)}.")
        shares = {
            "prune_start": self.start,
            "prune_end": self.end,
            "qat_share": self.qat_share,
            "distil_weight": self.distil_weight,
        }
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is {share}, but it is a share: between 0 and 1.")
        if not 0 <= self.sparsity < 1:
            raise ConfigError(f"sparsity is {self.sparsity}, but something must be left: use 0 to 0.99.")
        if self.distil_temperature <= 0 or self.distil_top_k < 0:
            raise ConfigError(
                f"distil_temperature ({self.distil_temperature}) must be above 0 and distil_top_k ({self.distil_top_k}) not below."
            )

    @property
    def options(self) -> tuple[Option, ...]:
        """What is done, in order."""
        return parse(self.option)

    @property
    def prunes(self) -> str:
        """`prune`, `prune24`, or nothing."""
        return next((o.name for o in self.options if o.kind == "sparse"), "")

    @property
    def pruned(self) -> float:
        """Share of the blocks' weights that are pruned."""
        return {"prune": self.sparsity, "prune24": 0.5}.get(self.prunes, 0.0)

    @property
    def quantised(self) -> Option | None:
        """How weights are stored, if in fewer bits."""
        return next((o for o in self.options if o.kind == "bits"), None)

    @property
    def shrinks(self) -> bool:
        """Whether the model becomes a smaller one on the way."""
        return any(o.kind == "smaller" for o in self.options)

    @property
    def rounded_share(self) -> float:
        """Share of the run that trains with rounded weights."""
        return self.qat_share if self.quantised and self.quantised.rounds_in_training else 0.0

    @property
    def changes_training(self) -> bool:
        """Whether steps are other ones than without it, not only what comes after the last."""
        return self.distils or self.shrinks or bool(self.prunes) or self.rounded_share > 0

    @property
    def distils(self) -> bool:
        """Whether a teacher is asked at all."""
        return "distil" in self.option and self.distil_weight > 0


NONE = Compression()


def shrunk(model: ModelConfig, compression: Compression) -> ModelConfig:
    """The shape that is left of a model: whole heads with their keys and values, hidden units in sixteens, whole layers, by rounding.

    A block that layers share goes with all of them.
    """
    names, left = {o.name for o in compression.options}, 1 - compression.sparsity
    if "shrink-layers" in names:
        model = replace(model, depth=min(model.depth, max(1, round(model.blocks * left)) * model.share_layers))
    if "shrink-heads" in names:
        model = replace(model, kept_heads=max(1, round(model.kv_heads * left)) * model.kv_groups)
    if "shrink-hidden" in names:
        model = replace(model, mlp_ratio=max(16, round(model.hidden * left / 16) * 16) / model.width)
    return model


def extra_bytes(model: ModelConfig, compression: Compression) -> int:
    """Memory that training needs for it all the time: masks, rounded copies of the matrices, the teacher."""
    pruned = FP32 * body_parameters(model) if compression.prunes else 0
    rounded = 2 * FP32 * parameters(model) if compression.rounded_share else 0
    return pruned + rounded + (FP32 * compression.teacher_parameters if compression.distils else 0)


def check_compression(option: str, device: str, teacher: str = "", capability: tuple[int, int] | None = None) -> None:
    """Refuse a compression that cannot be had here, before anything is paid for.

    Args:
        device: `cpu` or `cuda`.
        teacher: what `train.teacher` says.
        capability: the GPU's compute capability, where it is known already.

    Raises:
        ConfigError: a package, a unit of the device, or the teacher is missing; the message says which, and what to do.
    """
    for chosen in parse(option):
        if chosen.kind == "bits" and importlib.util.find_spec("torchao") is None:
            raise ConfigError(f"compression {chosen.name} needs {TORCHAO}. Install it, or leave it out of [space].")
        if chosen.rounds_activations and device == "cuda" and capability and capability < LEAST_INT8_CAPABILITY:
            found = ".".join(map(str, capability))
            raise ConfigError(
                f"compression {chosen.name} multiplies 8-bit integers, which needs a GPU of compute capability 8.0, but this one has {found}. Use int8."
            )
        if chosen.kind == "teacher" and not teacher:
            raise ConfigError(
                "compression distil needs a teacher. Set `train.teacher` to the folder of a model with the same tokenizer, or its Hugging Face id."
            )
