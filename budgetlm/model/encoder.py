"""The encoder: bidirectional attention with rotary positions, LayerNorm, GeGLU; a ModernBERT weight for weight (arXiv:2412.13663).

All of its layers attend to the whole sequence, nothing has a bias, and the first block has no norm before its attention. Some of its tokens are hidden, and
those it predicts. A sequence says which: a hidden token is written as its mark, `~id`, which is negative (`data/masks.py`).
Trunk and training are the decoder's (`model/transformer.py`); names differ from a ModernBERT's by a table (`model/kinds.py`).

Shapes: B batch, L length, D width, H heads, S head size, N hidden tokens.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from budgetlm.model.documents import attend
from budgetlm.model.rotary import rotate
from budgetlm.model.size import ModelConfig


def visible(token_BL: Tensor, mask_token: int) -> Tensor:
    """What the encoder sees of tokens with marks."""
    return token_BL.masked_fill(token_BL < 0, mask_token)


def hidden_targets(token_BL: Tensor) -> Tensor:
    """The ids of the hidden tokens, in order, shape (N,)."""
    return ~token_BL[token_BL < 0]


class LayerNorm(nn.LayerNorm):
    """Over the width, without a bias."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model.width, eps=1e-5, bias=False)


class EncoderAttention(nn.Module):
    """Self-attention in both directions."""

    products_up_to = 0
    """As of the decoder's attention."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.head_size = model.head_size
        self.qkv_proj = nn.Linear(model.width, 3 * model.width, bias=False)
        self.o_proj = nn.Linear(model.width, model.width, bias=False)

    def forward(self, x_BLD: Tensor, cos_LS: Tensor, sin_LS: Tensor) -> Tensor:
        """Mix each position with all: (B, L, D) -> (B, L, D)."""
        B, L, _ = x_BLD.shape
        q_BHLS, k_BHLS, v_BHLS = self.qkv_proj(x_BLD).view(B, L, 3, -1, self.head_size).transpose(1, 3).unbind(2)
        by_products = self.products_up_to >= L and x_BLD.requires_grad
        q_BHLS, k_BHLS = (rotate(x, cos_LS, sin_LS, head_by_head=by_products) for x in (q_BHLS, k_BHLS))
        mixed_BHLS = attend(q_BHLS, k_BHLS, v_BHLS, None, by_products=by_products, causal=False)
        out_BLD: Tensor = self.o_proj(mixed_BHLS.transpose(1, 2).reshape(B, L, -1))
        return out_BLD


class GatedMLP(nn.Module):
    """GeGLU (arXiv:2002.05202)."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(model.width, 2 * model.hidden, bias=False)
        self.down_proj = nn.Linear(model.hidden, model.width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D), each position on its own."""
        input_BLF, gate_BLF = self.up_proj(x_BLD).chunk(2, dim=-1)
        out_BLD: Tensor = self.down_proj(F.gelu(input_BLF) * gate_BLF)
        return out_BLD


class EncoderBlock(nn.Module):
    """Attention and MLP, each on a normalised copy of the residual stream; what comes into the first block is normalised already."""

    def __init__(self, model: ModelConfig, *, first: bool) -> None:
        super().__init__()
        self.self_attn = EncoderAttention(model)
        self.mlp = GatedMLP(model)
        self.input_layernorm = nn.Identity() if first else LayerNorm(model)
        self.post_attention_layernorm = LayerNorm(model)

    def forward(self, x_BLD: Tensor, cos_LS: Tensor, sin_LS: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x_BLD = x_BLD + self.self_attn(self.input_layernorm(x_BLD), cos_LS, sin_LS)
        out_BLD: Tensor = x_BLD + self.mlp(self.post_attention_layernorm(x_BLD))
        return out_BLD


class PredictionHead(nn.Module):
    """What features of hidden tokens go through before they are compared with the vocabulary."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(model.width, model.width, bias=False)
        self.norm = LayerNorm(model)

    def forward(self, features_ND: Tensor) -> Tensor:
        """(N, D) -> (N, D), with any dimensions in the place of N."""
        out_ND: Tensor = self.norm(F.gelu(self.dense(features_ND)))
        return out_ND
