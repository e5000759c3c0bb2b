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

    In fp32 the logits of `LOGIT_ROWS` tokens are made, used and overwritten. Under autocast it is PyTorch's function: its plain path
    for small logits, which is faster, and its chunked one for large.
    """
    if features_ND.dtype == torch.float32 and not torch.is_autocast_enabled(features_ND.device.type):
        if reduction == "mean":
            loss: Tensor = _MeanLoss.apply(features_ND, weight_VD, target_N)  # type: ignore[no-untyped-call]
            return loss
        chunks = zip(torch.split(features_ND, LOGIT_ROWS), torch.split(target_N, LOGIT_ROWS), strict=True)
        return torch.cat([F.cross_entropy(F.linear(f_RD, weight_VD), t_R, reduction=reduction) for f_RD, t_R in chunks])
    large = 4 * features_ND.shape[0] * weight_VD.shape[0] > LOGIT_BYTES_BEFORE_CHUNKING
    options = torch.nn.LinearCrossEntropyOptions() if large and reduction == "mean" else None
    return F.linear_cross_entropy(features_ND, weight_VD, target_N, reduction=reduction, options=options)


class _MeanLoss(torch.autograd.Function):
    """The mean loss, whose gradients are made on the way, while the logits are at hand."""

    @staticmethod
    def forward(ctx: Any, features_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        """The gradient of the logits is softmax less the target's one."""
        count, rows = len(features_ND), min(LOGIT_ROWS, len(features_ND))
        logits_RV, softmax_RV = (features_ND.new_empty(rows, len(weight_VD)) for _ in range(2))
        loss, to_features_ND, to_weight_VD = (
            features_ND.new_zeros(()),
            torch.empty_like(features_ND),
            torch.zeros_like(weight_VD),
        )
        for start in range(0, count, rows):
            here_RD, target_R1 = features_ND[start : start + rows], target_N[start : start + rows, None]
            torch.mm(here_RD, weight_VD.T, out=logits_RV[: len(here_RD)])
            p_RV = torch.softmax(logits_RV[: len(here_RD)], 1, out=softmax_RV[: len(here_RD)])
            loss -= p_RV.gather(1, target_R1).clamp(min=LEAST_PROBABILITY).log().sum()
            p_RV.scatter_add_(1, target_R1, p_RV.new_full(target_R1.shape, -1.0))
            torch.mm(p_RV, weight_VD, out=to_features_ND[start : start + rows])
            to_weight_VD.addmm_(p_RV.T, here_RD)
        ctx.save_for_backward(to_features_ND.div_(count), to_weight_VD.div_(count))
        return loss / count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """What was made on the way, scaled where it lies: it is needed once."""
        to_features_ND, to_weight_VD = ctx.saved_tensors
        return to_features_ND.mul_(gradient), to_weight_VD.mul_(gradient), None
