"""Tensor parallel: every member holds a part of every matrix, and all compute each sequence together.

By PyTorch's DTensor: of a block's attention the heads are divided, of its MLP the hidden units, so that a block's members meet twice on the way forward and
twice back; embedding and head are divided by the vocabulary, and the loss is made of logits that no member has all of (`loss_parallel`). Norms are
everybody's own. That is for members with a fast link: all read the same sequences, and wait for each other in every block.

Or a few members together do so, and several such groups each read their part of a batch (`ddp,tp`): a mesh of two dimensions, of which the gradients are added up along
the other one, as in `train/parallel/ddp.py`.

Not run on a GPU by us. Sources: Shoeybi et al. 2019, Megatron-LM, section 3 (arXiv:1909.08053); PyTorch's documentation, `torch.distributed.tensor.parallel`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn import functional

from budgetlm.budget.clock import Clock
from budgetlm.model.footprint import LOGIT_ROWS
from budgetlm.model.transformer import Attention, LanguageModel
from budgetlm.train.config import RunConfig
from budgetlm.train.parallel.ddp import add_up
from budgetlm.train.parallel.parts import InParts
from budgetlm.train.parallel.spread import is_spread

COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
"""Matrices of a block of which a member makes a part of what comes out,"""
ROWS = ("self_attn.o_proj", "mlp.down_proj")
"""and those that read such parts, whose results are added up."""


class TensorParallel(InParts):
    """Every member holds a part of every matrix.

    Args:
        parts: how many members hold all of them together; all of them if left out.
    """

    compiles = False
    """Compiled code would pass by what the members tell each other."""

    def __init__(self, clock: Clock, asked: Callable[[], bool], device: str = "cpu", parts: int = 0) -> None:
        groups = dist.get_world_size() // parts if parts else 1
        super().__init__(clock, asked, device, readers=groups)
        # Neighbours hold a network together: they are the ones with the fast link.
        self._mesh = init_device_mesh(device, (groups, self.size // groups), mesh_dim_names=("groups", "parts"))
        self._by_heads: list[nn.Module] = []
        """Norms that all have, and of whose weights' gradients each has its heads' part."""

    def take(self, network: LanguageModel, config: RunConfig) -> None:
        """Cut the matrices into parts."""
        network.to(config.device)
        self._by_heads = []
        mesh = self._mesh["parts"]
        plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in COLUMNS}
        plan |= {name: RowwiseParallel() for name in ROWS}
        for block in network.model.layers:
            parallelize_module(block, mesh, plan)
            assert isinstance(block.self_attn, Attention)
            self._by_heads += [block.self_attn.q_norm, block.self_attn.k_norm]
        parallelize_module(network.model.embed_tokens, mesh, RowwiseParallel(input_layouts=Replicate()))
        parallelize_module(network.lm_head, mesh, ColwiseParallel())
        network.tie()
        network.head_loss = _Loss(mesh)

    def clip(self, weights: Sequence[nn.Parameter], longest: float) -> Tensor:
        """Add up the groups' gradients, and complete those of which each member has a part; the norm is that of all parts of all gradients."""
        together = self.complete()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        parts = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
        wholes = [gradient for gradient in gradients if not is_spread(gradient)]
        if self._readers > 1:
            add_up([*parts, *wholes], self._mesh.get_group("groups"))
        square = torch.nn.utils.get_total_norm(parts).square()
        dist.all_reduce(square, group=together)
        norm = (square + torch.nn.utils.get_total_norm(wholes).square()).sqrt()
        torch._foreach_mul_([*parts, *wholes], (longest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def complete(self) -> dist.ProcessGroup:
        """Add up the gradients of which each member of a group has its heads' part. Returns the group."""
        together = self._mesh.get_group("parts")
        for norm in self._by_heads:
            gradient = norm.weight.grad
            dist.all_reduce(gradient.to_local() if isinstance(gradient, DTensor) else gradient, group=together)
        return together


class _Loss:
    """Cross-entropy of logits of which each member makes those of its words, some tokens at a time, as `head_loss` does."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh

    def __call__(self, features_ND: Tensor, weight_VD: Tensor, target_N: Tensor, reduction: str = "mean") -> Tensor:
        if reduction == "mean":
            loss: Tensor = _MeanLoss.apply(features_ND, weight_VD, target_N, self._mesh)  # type: ignore[no-untyped-call]
            return loss
        chunks = zip(torch.split(features_ND, LOGIT_ROWS), torch.split(target_N, LOGIT_ROWS), strict=True)
        with loss_parallel():
            return torch.cat([_nats(f_RD, weight_VD, t_R, self._mesh, "none") for f_RD, t_R in chunks])


def _nats(features_RD: Tensor, weight_VD: Tensor, target_R: Tensor, mesh: DeviceMesh, reduction: str) -> Tensor:
    """The loss of some tokens, where all have their features."""
    features = DTensor.from_local(features_RD, mesh, [Replicate()], run_check=False)
    target = DTensor.from_local(target_R, mesh, [Replicate()], run_check=False)
    nats = functional.cross_entropy(functional.linear(features, weight_VD).float(), target, reduction=reduction)
    assert isinstance(nats, DTensor)
    return nats.full_tensor()


class _MeanLoss(torch.autograd.Function):
    """The mean loss, whose gradients are made on the way, where `loss_parallel` holds; so the logits of all tokens never exist at once."""

    @staticmethod
    def forward(ctx: Any, features_ND: Tensor, weight_VD: Tensor, target_N: Tensor, mesh: DeviceMesh) -> Tensor:
        """The sums over chunks of the loss and of its gradients, divided by the number of tokens."""
        loss, count = features_ND.new_zeros(()), len(target_N)
        to_features, to_weight = torch.empty_like(features_ND), torch.zeros_like(weight_VD)
        weight = weight_VD.detach().requires_grad_()
        for start in range(0, count, LOGIT_ROWS):
            rows = slice(start, start + LOGIT_ROWS)
            features = features_ND[rows].detach().requires_grad_()
            with torch.enable_grad(), loss_parallel():
                nats = _nats(features, weight, target_N[rows], mesh, "sum")
                to_features[rows], part = torch.autograd.grad(nats / count, [features, weight])
            to_weight += part
            loss += nats.detach() / count
        ctx.save_for_backward(to_features, to_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """What was made on the way, scaled."""
        to_features, to_weight = ctx.saved_tensors
        return to_features * gradient, to_weight * gradient, None, None
