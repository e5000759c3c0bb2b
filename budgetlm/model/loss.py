"""Head and cross-entropy together, some rows at a time, so that the logits of all tokens never exist at once.

Shapes: N tokens, D width, V vocabulary, R rows of a chunk.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from budgetlm.model.footprint import LOGIT_BYTES_BEFORE_CHUNKING, LOGIT_ROWS

HeadLoss = Callable[[Tensor, Tensor, Tensor, str], Tensor]
"""What makes a loss of features, the head's matrix and targets, as `head_loss` does."""
LEAST_PROBABILITY = 1e-38
"""Of a target, so that a hopeless model has a finite loss: 87 nats."""


def head_loss(features_ND: Tensor, weight_VD: Tensor, target_N: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the targets in nats: a scalar, or shape (N,) with `reduction="none"`.

    The logits of `LOGIT_ROWS` tokens are made, used and overwritten: in fp32, or in bf16 under autocast on a CPU. On a GPU, autocast has
    PyTorch's function: its plain path for small logits, which is faster, and its chunked one for large.
    """
    kind = features_ND.device.type
    halved = torch.is_autocast_enabled(kind)
    if halved and kind != "cpu":
        large = 4 * features_ND.shape[0] * weight_VD.shape[0] > LOGIT_BYTES_BEFORE_CHUNKING
        options = torch.nn.LinearCrossEntropyOptions() if large and reduction == "mean" else None
        return F.linear_cross_entropy(features_ND, weight_VD, target_N, reduction=reduction, options=options)
    if reduction == "mean":
        precision = torch.get_autocast_dtype(kind) if halved else features_ND.dtype
        loss: Tensor = _MeanLoss.apply(features_ND, weight_VD, target_N, precision)  # type: ignore[no-untyped-call]
        return loss
    chunks = zip(torch.split(features_ND, LOGIT_ROWS), torch.split(target_N, LOGIT_ROWS), strict=True)
    return torch.cat([F.cross_entropy(F.linear(f_RD, weight_VD), t_R, reduction=reduction) for f_RD, t_R in chunks])


def _less_the_targets(p_RV: Tensor, row_R: Tensor, target_R: Tensor) -> Tensor:
    """Make the gradient of the logits of their softmax, where it lies, and return the targets' cross-entropy, summed.

    In bf16 a probability near 1 is so coarse that what it lacks to 1 is nothing or 0.004: there it is the sum of all others.
    """
    right_R = p_RV[row_R, target_R].float()
    p_RV[row_R, target_R] = 0
    lacks_R = 1 - right_R if p_RV.dtype == torch.float32 else p_RV.sum(1, dtype=torch.float32)
    p_RV[row_R, target_R] = -lacks_R.to(p_RV.dtype)
    log_R = torch.where(right_R > 0.5, torch.log1p(-lacks_R), right_R.clamp(min=LEAST_PROBABILITY).log())
    return -log_R.sum()


class _MeanLoss(torch.autograd.Function):
    """The mean loss, whose gradients are made on the way, while the logits are at hand."""

    @staticmethod
    def forward(ctx: Any, features_ND: Tensor, weight_VD: Tensor, target_N: Tensor, precision: torch.dtype) -> Tensor:
        """The gradient of the logits is softmax less the target's one. `precision` is that of the products; the head's gradient adds up in its own."""
        count, rows = len(features_ND), min(LOGIT_ROWS, len(features_ND))
        read_ND, by_VD = features_ND.to(precision), weight_VD.to(precision)
        logits_RV, softmax_RV = (read_ND.new_empty(rows, len(weight_VD)) for _ in range(2))
        row_R = torch.arange(rows, device=read_ND.device)
        loss, to_features_ND, to_weight_VD = (
            weight_VD.new_zeros(()),
            torch.empty_like(read_ND),
            torch.zeros_like(weight_VD),
        )
        for start in range(0, count, rows):
            here_RD, target_R = read_ND[start : start + rows], target_N[start : start + rows]
            torch.mm(here_RD, by_VD.T, out=logits_RV[: len(here_RD)])
            p_RV = torch.softmax(logits_RV[: len(here_RD)], 1, out=softmax_RV[: len(here_RD)])
            loss += _less_the_targets(p_RV, row_R[: len(here_RD)], target_R)
            torch.mm(p_RV, by_VD, out=to_features_ND[start : start + rows])
            if precision == weight_VD.dtype:
                to_weight_VD.addmm_(p_RV.T, here_RD)
            else:
                to_weight_VD.add_(p_RV.T @ here_RD)
        ctx.save_for_backward(to_features_ND.div_(count), to_weight_VD.div_(count))
        ctx.precision = features_ND.dtype
        return loss / count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """What was made on the way, scaled where it lies: it is needed once."""
        to_features_ND, to_weight_VD = ctx.saved_tensors
        return to_features_ND.mul_(gradient).to(ctx.precision), to_weight_VD.mul_(gradient), None, None
