"""Rotary positions (arXiv:2104.09864), the same in decoder and encoder.

Shapes: B batch, H heads (of a table half a head), L length, S head size.
"""

from typing import Any

import torch
from torch import Tensor

from budgetlm.model.size import ModelConfig


def rotary_tables(model: ModelConfig, length: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary positions, each of shape (L, S), fp32."""
    exponents_H = torch.arange(0, model.head_size, 2, device=device).float() / model.head_size
    angles_LH = torch.outer(torch.arange(length, device=device).float(), model.rope_theta**-exponents_H)
    angles_LS = torch.cat([angles_LH, angles_LH], dim=-1)
    return angles_LS.cos(), angles_LS.sin()


def rotate(x_BHLS: Tensor, cos_LS: Tensor, sin_LS: Tensor, *, head_by_head: bool = False) -> Tensor:
    """Turn each head's vector by the angle of its position (the half-and-half layout of Hugging Face).

    Args:
        head_by_head: whether what comes out lies in memory a head after the other, as products read it; otherwise as it came in.
    """
    if torch.compiler.is_compiling():  # a compiler makes one sweep over memory of it
        left, right = x_BHLS.chunk(2, dim=-1)
        return (x_BHLS * cos_LS + torch.cat([-right, left], dim=-1) * sin_LS).to(x_BHLS.dtype)
    turned: Tensor = _Turn.apply(x_BHLS, cos_LS, sin_LS, head_by_head)  # type: ignore[no-untyped-call]
    return turned


class _Turn(torch.autograd.Function):
    """The rotation in two sweeps over memory, and back in two, with a gradient that lies in memory as projections make heads: token by token."""

    @staticmethod
    def forward(ctx: Any, x_BHLS: Tensor, cos_LS: Tensor, sin_LS: Tensor, head_by_head: bool) -> Tensor:
        """Forwards."""
        ctx.save_for_backward(cos_LS, sin_LS)
        layout = torch.contiguous_format if head_by_head else torch.preserve_format
        return _turned(x_BHLS, cos_LS, sin_LS, out_BHLS=torch.empty_like(x_BHLS, memory_format=layout))

    @staticmethod
    def backward(ctx: Any, gradient_BHLS: Tensor) -> tuple[Tensor, None, None, None]:
        """A rotation's gradient is turned back."""
        cos_LS, sin_LS = ctx.saved_tensors
        out_BLHS = gradient_BHLS.new_empty(gradient_BHLS.transpose(1, 2).shape)
        return _turned(gradient_BHLS, cos_LS, -sin_LS, out_BHLS=out_BLHS.transpose(1, 2)), None, None, None


def _turned(x_BHLS: Tensor, cos_LS: Tensor, sin_LS: Tensor, out_BHLS: Tensor) -> Tensor:
    """The vectors, turned and written where they are to be. Both halves of the tables are alike."""
    cos_LH, sin_LH = (table_LS.chunk(2, dim=-1)[0].to(x_BHLS.dtype) for table_LS in (cos_LS, sin_LS))
    (left, right), (to_left, to_right) = x_BHLS.chunk(2, dim=-1), out_BHLS.chunk(2, dim=-1)
    torch.mul(left, cos_LH, out=to_left).addcmul_(right, sin_LH, value=-1)
    torch.mul(right, cos_LH, out=to_right).addcmul_(left, sin_LH)
    return out_BHLS
