"""Training with 8-bit floating-point matrix products, by torchao, where a GPU has units for them.

Weights, gradients and the optimizer's state stay fp32. Of the blocks' linear layers, factors of all three matrix products are scaled and
rounded to 8 bits, each tensor by its largest element; everything else is as under bf16 autocast. Only training goes through
them: what is evaluated, averaged, saved and exported is the network itself, whose weights the layers here share.

Not run on a GPU by us: on a CPU the rounding is emulated, in tests.

Source: Micikevicius et al. 2022, "FP8 Formats for Deep Learning" (arXiv:2209.05433); torchao's documentation, `torchao.float8`.
"""

import copy
import importlib.util

import torch
from torch import nn

from budgetlm.errors import ConfigError
from budgetlm.model.transformer import LanguageModel

LEAST_CAPABILITY = (8, 9)
"""CUDA compute capability from which there are fp8 units: Ada, Hopper, Blackwell."""
MULTIPLE = 16
"""What sizes of a matrix must be multiples of for the fp8 product; layers with others stay as they are."""


def check_fp8(device: str) -> None:
    """Refuse fp8 where it cannot be had, before anything is paid for.

    Raises:
        ConfigError: the device has no units for it, or torchao is not installed; the message says which.
    """
    wanted = f"`train.precision` is fp8, which needs a GPU of compute capability {_dotted(LEAST_CAPABILITY)} or newer"
    if device != "cuda":
        raise ConfigError(
            f"{wanted}, but the device is the CPU. Use `auto`, `bf16` or `fp32`, or a machine with such a GPU."
        )
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        raise ConfigError(f"{wanted}, but this one has {_dotted(capability)}. Use `auto`, `bf16` or `fp32`.")
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            "`train.precision` is fp8, which needs the package torchao, and it is not installed. Run "
            "`pip install 'budgetlm[fp8]'`, or use `bf16`."
        )


def fp8_twin(network: LanguageModel, *, emulate: bool = False) -> LanguageModel:
    """The network again, on the very same parameters, with the blocks' linear layers in fp8.

    Args:
        emulate: compute with rounded factors in high precision, for devices without the units; slow.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, shared)
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)  # the number of tokens need not be a multiple
    convert_to_float8_training(twin.model.layers, module_filter_fn=_has_a_product, config=config)
    return twin


def _has_a_product(layer: nn.Module, _name: str) -> bool:
    return isinstance(layer, nn.Linear) and layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
