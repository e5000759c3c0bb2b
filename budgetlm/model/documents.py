"""Attention: by PyTorch's fused kernel or by plain products, over whole sequences, within the documents packed into them, or within a window.

A document begins with the end-of-text token that closed the one before it: the first word of a document is then predicted from that
token alone, as it is when text is generated. Rotary positions stay those of the sequence; only their differences matter.

Nothing here was run on a GPU by us; the kernel that is used there is stood in for by a plain one in the tests.

Shapes: B batch, L length, H query heads, K key/value heads, S head size, N documents, T = B·L tokens.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_VARLEN_HEAD = 256
"""Largest head that FlashAttention takes."""


class Reach(NamedTuple):
    """How far back tokens see, in the one of the forms that attention will use.

    In a mask, 0 is where a token (the dimension before the last) sees another (the last), minus infinity where not, in the precision of attention. It
    is made once for all blocks, which would each make and keep their own of a boolean one.
    """

    mask_LL: Tensor | None = None
    """The same for all sequences."""
    mask_B1LL: Tensor | None = None
    """Within documents."""
    starts_N1: Tensor | None = None
    """Positions among all tokens of the batch at which documents begin, and the number of tokens: int32, shape (N + 1,)."""
    window: int = 0
    """Tokens that one sees, itself included, beside what `starts_N1` says; 0 for all."""


def within_documents(token_BL: Tensor, end_of_text: int, dtype: torch.dtype, head_size: int) -> Reach:
    """Tokens see those before them in their document.

    Args:
        token_BL: token ids.
        end_of_text: id of the token that a document begins with.
        dtype: what attention is computed in.
        head_size: S.
    """
    begins_BL = token_BL == end_of_text
    if varlen_is_usable(token_BL.device, dtype, head_size):
        begins_BL[:, 0] = True
        # How many there are decides the shape, so here the CPU waits for the device once a forward pass.
        starts_N = begins_BL.flatten().nonzero().flatten()
        return Reach(starts_N1=F.pad(starts_N, (0, 1), value=token_BL.numel()).int())
    length = token_BL.shape[1]
    number_BL = begins_BL.cumsum(1)
    sees_BLL = (number_BL[:, :, None] == number_BL[:, None, :]).logical_and_(
        torch.ones(length, length, dtype=torch.bool, device=token_BL.device).tril_()
    )
    mask_BLL = torch.zeros(sees_BLL.shape, dtype=dtype, device=token_BL.device).masked_fill_(~sees_BLL, -torch.inf)
    return Reach(mask_B1LL=mask_BLL[:, None])


def within_window(reach: Reach | None, window: int, shape: tuple[int, int], like: Tensor, head_size: int) -> Reach:
    """Tokens see the last `window` of those that they saw (Beltagy et al. 2020, Longformer, section 3.1, arXiv:2004.05150).

    Args:
        reach: what they saw; None for all before them.
        shape: B, L.
        like: a tensor of the precision and on the device of attention.
        head_size: S.
    """
    B, L = shape
    if reach is None and varlen_is_usable(like.device, like.dtype, head_size):
        reach = Reach(starts_N1=torch.arange(0, B * L + 1, L, dtype=torch.int32, device=like.device))
    if reach is not None and reach.starts_N1 is not None:
        return reach._replace(window=window)
    if reach is not None and reach.mask_B1LL is not None:
        return Reach(mask_B1LL=reach.mask_B1LL + too_far(L, window, like))
    return Reach(mask_LL=all_before(L, like) + too_far(L, window, like))


def all_before(length: int, like: Tensor) -> Tensor:
    """The mask with which tokens see all before them, (L, L)."""
    return torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device).triu_(1)


def too_far(length: int, window: int, like: Tensor) -> Tensor:
    """The mask that hides what is not among the last `window`, (L, L)."""
    return torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device).tril_(-window)


def varlen_is_usable(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether FlashAttention for sequences of any length runs here: NVIDIA from Ampere on, in half precision.

    Source: `torch.nn.attention.varlen` in PyTorch's documentation.
    """
    if device.type != "cuda" or torch.version.hip or dtype not in (torch.bfloat16, torch.float16):
        return False
    return head_size <= MOST_VARLEN_HEAD and torch.cuda.get_device_capability(device) >= (8, 0)


def attend(
    q_BHLS: Tensor,
    k_BKLS: Tensor,
    v_BKLS: Tensor,
    reach: Reach | None,
    *,
    by_products: bool = False,
    causal: bool = True,
) -> Tensor:
    """Attention, shape (B, H, L, S): over the whole sequence, or as far as tokens see.

    Args:
        causal: whether a token sees those before it alone; where not, it sees all.
        by_products: compute it by plain matrix products where there is a choice, which keeps the weights of all pairs of tokens for
            the backward pass. Which is faster depends on processor and length, so it is measured (`train/calibrate.py`).
    """
    grouped = q_BHLS.shape[1] > k_BKLS.shape[1]
    if not causal:
        assert reach is None
        if by_products:
            return _attend_by_products(q_BHLS, k_BKLS, v_BKLS, None, None)
        return F.scaled_dot_product_attention(q_BHLS, k_BKLS, v_BKLS, enable_gqa=grouped)
    reach = reach or Reach()
    if reach.starts_N1 is not None:
        return _attend_packed(q_BHLS, k_BKLS, v_BKLS, reach.starts_N1, reach.window)
    if by_products:
        mask_LL = reach.mask_LL
        if mask_LL is None and reach.mask_B1LL is None:
            mask_LL = all_before(q_BHLS.shape[2], q_BHLS)
        return _attend_by_products(q_BHLS, k_BKLS, v_BKLS, mask_LL, reach.mask_B1LL)
    mask = reach.mask_LL if reach.mask_B1LL is None else reach.mask_B1LL
    return F.scaled_dot_product_attention(q_BHLS, k_BKLS, v_BKLS, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


def _attend_by_products(
    q_BHLS: Tensor, k_BKLS: Tensor, v_BKLS: Tensor, mask_LL: Tensor | None, mask_B1LL: Tensor | None
) -> Tensor:
    """Scores, softmax and their product with the values. G = B · K key/value heads, R = L · H / K rows of queries to each."""
    B, H, L, S = q_BHLS.shape
    q_GRS = q_BHLS.reshape(B * k_BKLS.shape[1], -1, S)
    k_GLS, v_GLS = (x_BKLS.reshape(-1, L, S) for x_BKLS in (k_BKLS, v_BKLS))
    mask_RL = None if mask_LL is None else mask_LL.repeat(q_GRS.shape[1] // L, 1)
    mixed_GRS: Tensor = _Products.apply(q_GRS, k_GLS, v_GLS, mask_RL, mask_B1LL)  # type: ignore[no-untyped-call]
    return mixed_GRS.view(B, H, L, S)


class _Products(torch.autograd.Function):
    """Attention that is scaled and masked within its products, and keeps the weights of all pairs for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q_GRS: Tensor, k_GLS: Tensor, v_GLS: Tensor, mask_RL: Tensor | None, mask_B1LL: Tensor | None
    ) -> Tensor:
        """Softmax of scaled scores, times the values."""
        begin, scale = (q_GRS.new_zeros(1) if mask_RL is None else mask_RL), q_GRS.shape[-1] ** -0.5
        scores_GRL = torch.baddbmm(begin, q_GRS, k_GLS.mT, beta=0 if mask_RL is None else 1, alpha=scale)
        if mask_B1LL is not None:
            scores_GRL.view(len(mask_B1LL), -1, *mask_B1LL.shape[2:]).add_(mask_B1LL)
        weights_GRL = scores_GRL.softmax(-1, dtype=v_GLS.dtype)
        ctx.save_for_backward(q_GRS, k_GLS, v_GLS, weights_GRL)
        return weights_GRL @ v_GLS

    @staticmethod
    def backward(ctx: Any, gradient_GRS: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Through values, softmax and scores."""
        q_GRS, k_GLS, v_GLS, weights_GRL = ctx.saved_tensors
        to_weights_GRL = gradient_GRS @ v_GLS.mT
        to_v_GLS = weights_GRL.mT @ gradient_GRS
        to_scores_GRL = torch.ops.aten._softmax_backward_data(to_weights_GRL, weights_GRL, -1, weights_GRL.dtype)
        scaled = {"beta": 0, "alpha": q_GRS.shape[-1] ** -0.5}
        begin = q_GRS.new_zeros(1)
        to_q_GRS = torch.baddbmm(begin, to_scores_GRL, k_GLS, **scaled)
        to_k_GLS = torch.baddbmm(begin, to_scores_GRL.mT, q_GRS, **scaled)
        return to_q_GRS, to_k_GLS, to_v_GLS, None, None


def _attend_packed(q_BHLS: Tensor, k_BKLS: Tensor, v_BKLS: Tensor, starts_N1: Tensor, window: int) -> Tensor:
    """The same by the kernel that takes all documents of a batch one behind the other, and skips what no token sees."""
    from torch.nn.attention.varlen import varlen_attn

    B, H, L, S = q_BHLS.shape
    q_THS, k_TKS, v_TKS = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHLS, k_BKLS, v_BKLS))
    grouped = k_BKLS.shape[1] < H
    # No document is longer than the sequence, and a larger bound costs nothing but a wait saved. Its window is of tokens before and after; -1 is all.
    mixed_THS = varlen_attn(q_THS, k_TKS, v_TKS, starts_N1, starts_N1, L, L, window_size=(window - 1, 0), enable_gqa=grouped)
    assert isinstance(mixed_THS, Tensor)
    return mixed_THS.view(B, L, H, S).transpose(1, 2)
