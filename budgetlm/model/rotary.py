"""Rotary positions (arXiv:2104.09864), the same in decoder and encoder.

Shapes: B batch, H heads, L length, S head size.
"""

import torch
from torch import Tensor

from budgetlm.model.size import ModelConfig


def rotary_tables(model: ModelConfig, length: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary positions, each of shape (L, S), fp32."""
    exponents_H = torch.arange(0, model.head_size, 2, device=device).float() / model.head_size
    angles_LH = torch.outer(torch.arange(length, device=device).float(), model.rope_theta**-exponents_H)
    angles_LS = torch.cat([angles_LH, angles_LH], dim=-1)
    return angles_LS.cos(), angles_LS.sin()


def rotate(x_BHLS: Tensor, cos_LS: Tensor, sin_LS: Tensor) -> Tensor:
    """Turn each head's vector by the angle of its position (the half-and-half layout of Hugging Face)."""
    left, right = x_BHLS.chunk(2, dim=-1)
    return (x_BHLS * cos_LS + torch.cat([-right, left], dim=-1) * sin_LS).to(x_BHLS.dtype)
