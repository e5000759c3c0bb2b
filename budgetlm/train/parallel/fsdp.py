"""Sharded data parallel: every member holds an even part of weights, gradients and optimizer state, and gathers a block's weights when it computes it.

By PyTorch's `fully_shard` (FSDP2), a block at a time; embedding, last norm and head are a group of their own. With `offload` parts and optimizer are kept
in the processor's memory, and a device holds what it computes with. Each member reads its part of a batch, as in `train/parallel/ddp.py`.

What is saved and exported is whole, as one device alone would have it, so that a run may go on under another kind or number of devices. For that the leader needs
room for all of it in the processor's memory, and a member for the weights when it begins.

Not run on a GPU by us. Source: Zhao et al. 2023, "PyTorch FSDP" (arXiv:2304.11277); PyTorch's documentation, `torch.distributed.fsdp.fully_shard`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard, register_fsdp_forward_method

from budgetlm.budget.clock import Clock
from budgetlm.model.transformer import LanguageModel
from budgetlm.train.parallel.members import Members
from budgetlm.train.parallel.spread import gathered, part_of


class Spread(Members):
    """Members whose weights are parts of whole ones."""

    compiles = False
    """Compiled code would pass by what gathers a block's weights."""

    def clip(self, weights: Sequence[nn.Parameter], longest: float) -> Tensor:
        """The gradients were added up in the backward pass; the norm is that of all parts."""
        return gathered(torch.nn.utils.clip_grad_norm_(weights, longest)).to(self.device)

    def gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """One after the other, so that a device has room for one more."""
        kept: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            whole = gathered(tensor)
            if self.leads:
                kept[name] = whole.cpu()
        return kept

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """This member's part."""
        return part_of(tensor, like)

    def assembled(self, network: LanguageModel) -> LanguageModel:
        """The leader's has all weights; another member's none that mean anything."""
        weights = self.gathered(network.state_dict())
        with torch.device("meta"):
            whole = LanguageModel(network.config)
        if not self.leads:
            return whole
        whole.load_state_dict(weights, assign=True)
        whole.tie()
        whole.model.fill_positions()
        return whole


class Sharded(Spread):
    """Every member holds an even part of everything.

    Args:
        offload: whether parts wait in the processor's memory.
    """

    def __init__(self, clock: Clock, asked: Callable[[], bool], device: str = "cpu", *, offload: bool = False) -> None:
        super().__init__(clock, asked, device)
        self._offload = offload

    def take(self, network: LanguageModel, device: str) -> None:
        """Cut the network into parts."""
        mesh = init_device_mesh(device, (self.size,))
        policy = CPUOffloadPolicy(pin_memory=device == "cuda") if self._offload else OffloadPolicy()
        for block in network.model.layers:
            fully_shard(block, mesh=mesh, offload_policy=policy)
        fully_shard(network, mesh=mesh, offload_policy=policy)
        register_fsdp_forward_method(network, "loss")
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # sums: the losses are weighted already
                module.set_force_sum_reduction_for_comms(True)
