"""Weights in 8 or 4 bits, by torchao: of a finished model, or rounded already in the last part of its training.

All matrices are rounded, embedding and head included, which in small models are most of the bytes: to 8 bits with a scale for each row, or to
4 with one for each group of 32 weights of a row, symmetrically and to the nearest. Norms stay as they are. Training with rounded weights
computes with exactly the numbers that would be deployed; gradients pass the rounding as if it were not there, and go to fp32 weights.

Source: Jacob et al. 2017, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
sections 2 and 3 (arXiv:1712.05877); Bengio et al. 2013 for the gradient (arXiv:1308.3432).
"""

import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from budgetlm.compress.apply import Compression, Option, check_compression
from budgetlm.compress.layout import group_of, stored_form
from budgetlm.model.size import ModelConfig
from budgetlm.model.transformer import Factor, LanguageModel

INT4: torch.dtype = torch.int4  # type: ignore[attr-defined]  # its type stubs do not know it
Rounding = Callable[[Tensor], Tensor]
"""A matrix -> the same one as a torchao tensor, which behaves like it and holds fewer bits."""


def quantised(network: LanguageModel, option: Option) -> LanguageModel:
    """A copy of a model in the form in which it is stored (`compress/layout.py`) whose matrices are rounded."""
    copied = copy.deepcopy(network).requires_grad_(False)
    by_weight: dict[int, nn.Parameter] = {}  # a tied matrix is rounded once, and stays tied
    for module in copied.modules():
        if isinstance(module, nn.Linear | nn.Embedding | Factor):
            weight, active = module.weight, isinstance(module, nn.Linear)
            if id(weight) not in by_weight:
                rounded = rounding(option, copied.config, activations=active)(weight.detach())
                by_weight[id(weight)] = nn.Parameter(rounded, requires_grad=False)
            module.weight = by_weight[id(weight)]
    return copied


def rounded_twin(network: LanguageModel, option: Option) -> LanguageModel:
    """The network again, on the very same parameters, computing with rounded weights, and activations where the option rounds them.

    Where a norm follows the embedding, it is the normalised vectors that are deployed, and so rounded, unless the model is stored in its own form.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    shared[id(network.model.compiled)] = []  # those would compute by the network's own blocks
    twin = copy.deepcopy(network, shared)
    weights = _StraightThrough(rounding(option, network.config, activations=False))
    for module in twin.modules():
        if isinstance(module, nn.Linear | Factor):
            register_parametrization(module, "weight", weights, unsafe=True)
            if option.rounds_activations and isinstance(module, nn.Linear) and module is not twin.lm_head:
                module.register_forward_pre_hook(lambda _, inputs: (_rounded_rows(inputs[0]),))
    if option.rounds_activations:  # the head's, which the loss multiplies itself
        (twin.head_factor or twin.model.norm).register_forward_hook(lambda _module, _inputs, output: _rounded_rows(output))
    own = stored_form(network.config, Compression(option=option.name)) == network.config
    embedded = twin.model.embed_tokens if own else twin.model.embed_norm or twin.model.embed_tokens
    embedded.register_forward_hook(lambda _module, _inputs, output: weights(output.flatten(0, 1)).view_as(output))
    return twin


def rounding(option: Option, model: ModelConfig, *, activations: bool) -> Rounding:
    """How an option rounds a matrix.

    Args:
        activations: whether what it is multiplied with may be rounded too, if the option does so.
    """
    ao = torchao_tensors()
    if option.bits == 4:
        block = (1, group_of(model))
        return lambda weight: ao.IntxUnpackedToInt8Tensor.from_hp(weight, block, INT4)
    dynamic = option.rounds_activations
    reduced = dynamic and ao.should_reduce_range(torch.device("cpu"))  # or sums would overflow on a CPU without VNNI
    kwargs = ao.QuantizeTensorToInt8Kwargs(ao.PerRow(), reduce_range=reduced) if dynamic and activations else None
    return lambda weight: ao.Int8Tensor.from_hp(weight, ao.PerRow(), act_quant_kwargs=kwargs, reduce_range=reduced)


def check_here(options: Iterable[str], device: str, teacher: str = "") -> None:
    """Refuse compressions that this machine's device cannot do, before anything is paid for.

    Raises:
        ConfigError: as `check_compression`.
    """
    capability = torch.cuda.get_device_capability() if device == "cuda" else None
    for option in options:
        check_compression(option, device, teacher, capability)


def import_torchao() -> None:
    """Import torchao, if it is there, without its remarks on what else it would like to find."""
    if importlib.util.find_spec("torchao") is None:
        return
    logging.getLogger("torchao").setLevel(logging.ERROR)
    noisy = logging.getLogger("torch.utils._pytree")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchao.prototype.safetensors.safetensors_support
        import torchao.quantization  # noqa: F401
    noisy.setLevel(level)


def torchao_tensors() -> Any:
    """What we use of torchao to hold rounded numbers."""
    import_torchao()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import Int8Tensor, IntxUnpackedToInt8Tensor, PerRow
        from torchao.quantization.quantize_.workflows.int8.int8_tensor import QuantizeTensorToInt8Kwargs
        from torchao.utils import should_reduce_range
    return SimpleNamespace(
        Int8Tensor=Int8Tensor,
        IntxUnpackedToInt8Tensor=IntxUnpackedToInt8Tensor,
        PerRow=PerRow,
        QuantizeTensorToInt8Kwargs=QuantizeTensorToInt8Kwargs,
        should_reduce_range=should_reduce_range,
    )


class _StraightThrough(nn.Module):
    """Rounded numbers forward, the gradient as it is backward."""

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        self._rounding = rounding

    def forward(self, weight: Tensor) -> Tensor:
        """The matrix rounded, in its own precision."""
        with torch.no_grad():
            change: Tensor = self._rounding(weight.detach()).dequantize() - weight
        rounded: Tensor = weight + change
        return rounded


def _rounded_rows(x_BLD: Tensor) -> Tensor:
    """Activations as int8 products see them: each row by its own scale."""
    ao = torchao_tensors()
    with torch.no_grad():
        rows = x_BLD.detach().flatten(0, -2)
        reduced = ao.should_reduce_range(torch.device("cpu"))
        change = ao.Int8Tensor.from_hp(rows, ao.PerRow(), reduce_range=reduced).dequantize().view_as(x_BLD) - x_BLD
    rounded: Tensor = x_BLD + change
    return rounded
