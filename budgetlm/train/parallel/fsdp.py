"""Sharded data parallel: every member holds an even part of weights, gradients and optimizer state, and gathers a block's weights when it computes it.

By PyTorch's `fully_shard` (FSDP2), a block at a time; embedding, last norm and head are a group of their own. With `offload` parts and optimizer are kept
in the processor's memory, and a device holds what it computes with. Each member reads its part of a batch, as in `train/parallel/ddp.py`.

What is saved and exported is whole, as one device alone would have it, so that a run may go on under another kind or number of devices. For that the leader needs
room for all of it in the processor's memory, and a member for the weights when it begins.

Not run on a GPU by us. Source: Zhao et al. 2023, "PyTorch FSDP" (arXiv:2304.11277); PyTorch's documentation, `torch.distributed.fsdp.fully_shard`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard

from budgetlm.budget.clock import Clock
from budgetlm.model.transformer import LanguageModel
from budgetlm.train.config import RunConfig
from budgetlm.train.parallel.parts import InParts
from budgetlm.train.parallel.spread import gathered


class Sharded(InParts):
    """Every member holds an even part of everything.

    Args:
        offload: whether parts wait in the processor's memory.
    """

    compiles = False
    """Compiled code would pass by what gathers a block's weights."""

    def __init__(self, clock: Clock, asked: Callable[[], bool], device: str = "cpu", *, offload: bool = False) -> None:
        super().__init__(clock, asked, device)
        self._offload = offload

    def clip(self, weights: Sequence[nn.Parameter], longest: float) -> Tensor:
        """The gradients were added up in the backward pass; the norm is that of all parts."""
        return gathered(torch.nn.utils.clip_grad_norm_(weights, longest)).to(self.device)

    def take(self, network: LanguageModel, config: RunConfig) -> None:
        """Cut the network into parts."""
        policy = CPUOffloadPolicy(pin_memory=config.device == "cuda") if self._offload else OffloadPolicy()
        shard(network, init_device_mesh(config.device, (self.size,)), policy=policy)


def shard(
    network: LanguageModel,
    mesh: DeviceMesh,
    along: Callable[[nn.Parameter], Shard] = lambda _: Shard(0),
    policy: OffloadPolicy | None = None,
) -> None:
    """Leave each member of a mesh its part of every weight, a block's to be gathered together, and gradients to be added up as they are: losses are weighted already.

    Args:
        mesh: of one dimension.
        along: which dimension of a weight is cut.
        policy: where parts wait; with their member's device if left out.
    """
    how: dict[str, Any] = {"mesh": mesh, "shard_placement_fn": along, "offload_policy": policy or OffloadPolicy()}
    for block in network.model.layers:
        fully_shard(block, **how)
    fully_shard(network, **how)
    register_fsdp_forward_method(network, "loss")
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
