"""The kinds of parallel training, and what each cannot do: said before anything is charged. No torch."""

from typing import Literal, get_args

from budgetlm.errors import ConfigError
from budgetlm.train.config import RunConfig

Kind = Literal["ddp", "fsdp", "tp", "pp", "ddp,tp", "fsdp,tp"]
"""`ddp`: every device holds the network, and reads its part of each batch; `fsdp`: it holds a part of weights, gradients and optimizer state, too; `tp`: it computes a
part of every matrix product, of all of the batch; `pp`: it holds some of the blocks, and hands on what comes of them; `ddp,tp`: a few devices together hold the network and
compute it as in `tp`, and each few read their part of the batch as in `ddp`; `fsdp,tp`: likewise, but as in `fsdp`, so that a device holds a part of what one of `tp` holds."""
KINDS: tuple[Kind, ...] = get_args(Kind)
IN_GROUPS: tuple[Kind, ...] = ("ddp,tp", "fsdp,tp")
"""Two at once."""
BY_THEMSELVES: tuple[Kind, ...] = ("ddp", "fsdp")
"""What `auto` chooses from. The others depend on how fast devices are joined, which nobody has measured."""
SPREAD_OPTIMIZERS = ("adamw", "muon", "adam")
"""Optimizers that train parts of matrices as they train whole ones (`tests/train/parallel/test_parity.py`)."""


def check_devices(devices: int, there: int, says: str) -> None:
    """Refuse more devices than there are.

    Args:
        says: how many there are, in words, and where.

    Raises:
        ConfigError: there are fewer.
    """
    if devices > there:
        raise ConfigError(f"{devices} devices are asked for, but {says}. Give `--devices {there}` or fewer.")


def readers(kind: Kind, devices: int, parts: int) -> int:
    """Devices that read other sequences than their neighbours, so that a batch is divided among so many.

    Args:
        parts: devices that hold one network together.
    """
    return devices if kind in ("ddp", "fsdp") else devices // parts if kind in IN_GROUPS else 1


def check_parallel(parallel: str, *, offload: bool) -> None:
    """Refuse a kind that there is not, or that leaves nothing to wait in the processor's memory.

    Args:
        parallel: what is asked for, `auto` included.

    Raises:
        ConfigError: it is so.
    """
    if parallel not in ("auto", *KINDS):
        raise ConfigError(
            f"train.parallel cannot be {parallel!r}. Use auto, ddp, fsdp, tp or pp; of two at once there are `ddp,tp` and `fsdp,tp`."
        )
    if offload and parallel not in ("auto", "fsdp"):
        raise ConfigError(
            f"`train.offload` is for the parts of `fsdp`, but `train.parallel` is `{parallel}`, whose weights stay where they are computed with. Use `fsdp` (or `auto`), or leave "
            "`offload` out."
        )


def check_offload(device: str) -> None:
    """Refuse to let weights wait in the processor's memory where that is where they are.

    Args:
        device: `cpu` or `cuda`.

    Raises:
        ConfigError: it is so.
    """
    if device == "cpu":
        raise ConfigError(
            "`train.offload` lets weights wait in the processor's memory, but the device is the processor. Leave it out here."
        )


def check_kind(config: RunConfig, kind: Kind, devices: int, parts: int = 0) -> None:
    """Refuse what a kind cannot do with a run.

    Args:
        parts: devices that hold one network together; all of them if left out.

    Raises:
        ConfigError: the run is not for this kind, or not for so many devices; the message says why, and what to do.
    """
    parts = parts or devices
    if kind in IN_GROUPS and (devices % parts or parts < 2 or devices == parts):
        raise ConfigError(
            f"`{kind}` wants at least two groups of at least two devices each, but {devices} devices do not divide into such of {parts}. Give `--devices 4` or "
            f"another number that is no prime, or one of the two alone (`--parallel {kind.split(',')[0]}`)."
        )
    if config.batch_sequences < (read := readers(kind, devices, parts)):
        raise ConfigError(
            f"a batch of {config.batch_sequences} sequences cannot be divided among {read} devices. Give `--devices "
            f"{config.batch_sequences * devices // read}` or fewer, or another trial (`--trial N`) with a larger batch."
        )
    if kind == "ddp":
        return
    of_its_own = {"fsdp": _not_sharded, "pp": _not_by_stages}.get(kind, _not_by_tensors)(config, parts)
    if kind == "fsdp,tp":
        of_its_own.append(_not_among_groups(config, devices // parts))
    for why in (reason for reason in (*_not_in_parts(config), *of_its_own) if reason):
        raise ConfigError(
            f"this final cannot be trained in parts (`{kind}`) by {devices} devices: {why}. Use `--parallel ddp`, if the model fits one device, or another trial."
        )


Reasons = list[str | bool]
"""Why a kind cannot train a run; those that hold are texts."""


def _not_in_parts(config: RunConfig) -> Reasons:
    return [
        config.compression.option != "none" and f"`{config.compression.option}` looks at whole matrices",
        config.ema > 0 and "`ema` would need a second network in parts",
        config.precision in ("bf16-master", "fp8") and f"`{config.precision}` keeps copies of whole matrices",
        config.cuda_graphs and "CUDA graphs want weights that stay where they are",
    ]


def _not_of_parts(config: RunConfig) -> Reasons:
    optimizer = config.optimizer.name
    return [
        optimizer not in SPREAD_OPTIMIZERS
        and f"`{optimizer}` trains whole matrices; {', '.join(SPREAD_OPTIMIZERS)} train parts of them"
    ]


def _not_sharded(config: RunConfig, _devices: int) -> Reasons:
    return [
        *_not_of_parts(config),
        config.model.mixer == "lstm" and "PyTorch's LSTM wants its weights whole and in one place",
    ]


def _not_by_tensors(config: RunConfig, devices: int) -> Reasons:
    model = config.model
    return [
        *_not_of_parts(config),
        model.unusual and "it divides the heads of a decoder's attention",
        model.embedding_rank > 0 and "an embedding in two factors is not divided by its words",
        model.kv_heads % devices > 0 and f"its {model.kv_heads} key/value heads are not a multiple of that",
        model.hidden % devices > 0 and f"its {model.hidden} hidden units are not a multiple of that",
    ]


def _not_among_groups(config: RunConfig, groups: int) -> str | bool:
    width = config.model.width
    return width % groups > 0 and f"its width of {width} is not a multiple of its {groups} groups"


def _not_by_stages(config: RunConfig, devices: int) -> Reasons:
    model = config.model
    return [
        model.depth < devices and f"each is to have a layer, and there are {model.depth}",
        model.share_layers > 1 and "a block that layers share would be with two of them",
        model.encodes and "an encoder's loss is of tokens that the last device does not see",
        model.document_end is not None and "only the first device sees where documents end",
    ]
