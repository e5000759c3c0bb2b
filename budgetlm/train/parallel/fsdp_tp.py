"""Sharded tensor parallel: a few members together compute every matrix product, and what each of them holds of it is divided once more among several such groups.

Along the first dimension of the mesh each group reads its part of a batch, and gathers its parts of a block's weights when it computes the block, as in
`train/parallel/fsdp.py`; along the second its members divide what is computed, as in `train/parallel/tp.py`. So every member holds an even part of weights, gradients and
optimizer state, and only a few of them, the ones with the fast link, wait for each other in every block.

A matrix is cut along one of its dimensions for one, and along the other one for the other, so that no part is of pieces that lie apart. Norms, which no
matrix product divides, are divided among the groups alone.

Not run on a GPU by us. Source: PyTorch's documentation, `torch.distributed.fsdp.fully_shard` and its tutorial of two dimensions.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from budgetlm.model.transformer import LanguageModel
from budgetlm.train.config import RunConfig
from budgetlm.train.parallel.fsdp import shard
from budgetlm.train.parallel.tp import TensorParallel


class ShardedTensorParallel(TensorParallel):
    """Every member holds a part of a part of every matrix."""

    def take(self, network: LanguageModel, config: RunConfig) -> None:
        """Cut the matrices for the members of a group, and what each has of them for the groups."""
        super().take(network, config)
        shard(network, self._mesh["groups"], across)

    def clip(self, weights: Sequence[nn.Parameter], longest: float) -> Tensor:
        """The groups' gradients were added up in the backward pass; complete those of which each member of a group has a part. The norm is that of all parts."""
        self.complete()
        gradients = [weight.grad for weight in weights if isinstance(weight.grad, DTensor)]
        matrices, norms = ([each.to_local() for each in gradients if each.device_mesh.ndim == ways] for ways in (2, 1))
        of_matrices, of_norms = (torch.nn.utils.get_total_norm(parts).square() for parts in (matrices, norms))
        square = of_matrices + of_norms / self._mesh.size(1)  # all members of a group have the same of norms
        dist.all_reduce(square)
        norm = square.sqrt()
        torch._foreach_mul_([*matrices, *norms], (longest / (norm + 1e-6)).clamp(max=1.0))
        return norm


def across(weight: nn.Parameter) -> Shard:
    """The dimension along which a weight is cut that is cut along another one already, or not at all."""
    taken = [each.dim for each in getattr(weight, "placements", ()) if isinstance(each, Shard)]
    return Shard(1 if 0 in taken else 0)
