"""RMSNorm: each vector at length sqrt(its size) times a weight (arXiv:1910.07467)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.RMSNorm):
    """RMSNorm over the last dimension. Under autocast what comes out is rounded once for all the products that read it."""

    rounds = True
    """Whether it is; a residual stream that begins with a norm must stay as exact as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """On a CPU in a form of our own, which sweeps over memory less often (docs/LOG.md); otherwise PyTorch's, fused on a GPU."""
        assert self.weight is not None
        assert self.eps is not None
        kind = x.device.type
        halved = self.rounds and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if halved else x.dtype
        if kind == "cpu" and not torch.compiler.is_compiling():  # a compiler fuses it by itself
            normal: Tensor = _Fewer.apply(x, self.weight, self.eps, dtype)  # type: ignore[no-untyped-call]
            return normal
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(dtype)


class ExactNorm(Norm):
    """The same, never rounded."""

    rounds = False


class _Fewer(torch.autograd.Function):
    """RMSNorm that keeps the scaled input and not the input, and whose backward pass is five sweeps over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """The input by the root of the mean of its squares, times the weight."""
        exact = torch.promote_types(x.dtype, torch.float32)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        scaled = torch.mul(x, scale, out=x.new_empty(x.shape, dtype=dtype))
        ctx.save_for_backward(scaled, scale, weight)
        ctx.dtype = x.dtype
        normal: Tensor = scaled * weight.to(dtype)
        return normal

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """With n the scaled input, of size D: scale · (g·w - n · mean(g·w·n)) for the input, the sum of g·n for the weight."""
        scaled, scale, weight = ctx.saved_tensors
        rounded = weight.to(scaled.dtype)
        each = gradient * scaled
        along = (each @ rounded).div_(scaled.shape[-1]).unsqueeze(-1)
        to_weight = each.flatten(0, -2).sum(0, dtype=weight.dtype)
        to_x = torch.mul(gradient, rounded, out=each).addcmul_(scaled, along, value=-1)
        to_x = torch.mul(to_x, scale, out=to_x if to_x.dtype == ctx.dtype else None)
        return to_x, to_weight, None, None
