"""Training on bf16 weights, of which the network's own are the fp32 master copy.

Under autocast every forward pass rounds all matrices to bf16 anew. Here the blocks' are kept in bf16 beside the network and rounded once
a step, so that a pass computes just what it would compute under autocast; their gradients go to the master's at once, and add up there in
fp32. Norms, embedding and head are the network's own. What is evaluated, averaged, saved and exported is the network itself.

On a GPU it was not measured by us.

Source: Micikevicius et al. 2018, "Mixed Precision Training", section 3.1 (arXiv:1710.03740).
"""

import copy
from functools import partial

import torch
from torch import Tensor

from budgetlm.model.transformer import LanguageModel


class Halves:
    """A network whose blocks' matrices are bf16 copies of another's."""

    def __init__(self, master: LanguageModel) -> None:
        matrices = {id(weight) for weight in master.model.layers.parameters() if weight.ndim == 2}
        others = (*master.parameters(), *master.buffers())
        self.network = copy.deepcopy(master, {id(tensor): tensor for tensor in others if id(tensor) not in matrices})
        self._masters: list[Tensor] = [weight for weight in master.model.layers.parameters() if weight.ndim == 2]
        self._halves: list[Tensor] = [weight for weight in self.network.model.layers.parameters() if weight.ndim == 2]
        for half, weight in zip(self._halves, self._masters, strict=True):
            half.data = weight.data.bfloat16()
            half.register_post_accumulate_grad_hook(partial(_hand_over, weight))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the master's weights again, which have moved."""
        torch._foreach_copy_(self._halves, self._masters)


def _hand_over(master: Tensor, half: Tensor) -> None:
    """Add the gradient of a bf16 weight to its master's, and forget it."""
    assert half.grad is not None
    gradient, half.grad = half.grad.to(master.dtype), None
    master.grad = gradient if master.grad is None else master.grad.add_(gradient)
