"""RMSNorm: each vector at length sqrt(its size) times a weight (arXiv:1910.07467)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.RMSNorm):
    """RMSNorm over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """In fp32 in a form of our own, which on a CPU takes half as long (docs/LOG.md); otherwise PyTorch's, fused on a GPU."""
        assert self.weight is not None
        assert self.eps is not None
        plain = x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        if plain and not torch.compiler.is_compiling():  # a compiler fuses it by itself
            normal: Tensor = _Fewer.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return normal
        return self._pytorchs(x)

    def _pytorchs(self, x: Tensor) -> Tensor:
        return super().forward(x)


class HeadNorm(Norm):
    """The same in the precision of its input, so that under bf16 autocast it stays one fused kernel."""

    def _pytorchs(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class _Fewer(torch.autograd.Function):
    """RMSNorm that keeps the scaled input and not the input, and whose backward pass is five sweeps over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """The input by the root of the mean of its squares, times the weight."""
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        scaled = x * scale
        ctx.save_for_backward(scaled, scale, weight)
        normal: Tensor = scaled * weight
        return normal

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """With n the scaled input, of size D: scale · (g·w - n · mean(g·w·n)) for the input, the sum of g·n for the weight."""
        scaled, scale, weight = ctx.saved_tensors
        each = gradient * scaled
        along = (each @ weight).div_(scaled.shape[-1]).unsqueeze(-1)
        to_weight = each.flatten(0, -2).sum(0)
        to_x = torch.mul(gradient, weight, out=each).addcmul_(scaled, along, value=-1).mul_(scale)
        return to_x, to_weight, None
