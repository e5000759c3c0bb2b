"""Data parallel: every member holds the whole network, reads its part of each batch, and the gradients are added up.

This is not `DistributedDataParallel`, whose buckets are tied to one module's forward pass and to the gradients of its parameters. What is
trained here changes on the way (fp8 and bf16 twins, weights that are rounded from some step on, parts taken out), gradients of bf16 copies go
to their masters at once, CUDA graphs want theirs to stay where they are, and the loss is no forward pass. So the gradients are added up once,
when the last pass of a step is done, in a few large pieces. The price is that no communication hides behind the backward pass: of a step that accumulates over
many passes it would be behind the last one only. Sums are weighted by what each member has read, so batches need not divide evenly.

Not run on a GPU by us. Source: Li et al. 2020, "PyTorch Distributed", section 3 (arXiv:2006.15704).
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from budgetlm.train.parallel.members import Members

BUCKET_BYTES = 64 * 2**20
"""Of gradients that are added up in one piece: few enough that the copy takes little memory, and large enough for a network's speed."""


class DataParallel(Members):
    """Every member holds all weights, and makes the same update of them."""

    def clip(self, weights: Sequence[nn.Parameter], longest: float) -> Tensor:
        """Add up the members' gradients; the norm is that of the sum."""
        add_up([weight.grad for weight in weights if weight.grad is not None])
        return torch.nn.utils.clip_grad_norm_(weights, longest)


def add_up(gradients: list[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Put in the place of gradients their sums over the members of a group, all of them if left out."""
    waiting = [(bucket, *_begun(bucket, group)) for bucket in _buckets(gradients)]
    for bucket, flat, work in waiting:
        work.wait()
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(gradient) for part, gradient in zip(parts, bucket, strict=True)])


def _begun(bucket: list[Tensor], group: dist.ProcessGroup | None) -> tuple[Tensor, dist.Work]:
    """The gradients of a bucket in one row, which is being added up."""
    flat = torch.cat([gradient.flatten() for gradient in bucket])
    work = dist.all_reduce(flat, group=group, async_op=True)
    assert work is not None
    return flat, work


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients in their order, so many at a time."""
    bucket, size = list[Tensor](), 0
    for gradient in gradients:
        if bucket and size + gradient.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket
