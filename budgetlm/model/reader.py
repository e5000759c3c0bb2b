"""A text that grows token by token, read by a decoder: with attention each token once, its keys and values kept for those that follow.

What comes out is what the whole text would give, but for rounding, as long as it fits the context. Beyond it the first tokens are forgotten, which changes what all others
know; and blocks with other mixers hand on no state. There the text is read anew for every token.

Shapes: B batch (1 here), L length, D width, H query heads, K key/value heads, S head size.
"""

import torch
from torch import Tensor

from budgetlm.model.documents import attend
from budgetlm.model.transformer import Block, LanguageModel


class Reader:
    """What a model has read of one text."""

    def __init__(self, network: LanguageModel) -> None:
        self.network = network
        self._begin(0)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        """Logits of the token that follows a text, shape (V,).

        Args:
            ids: the text from its beginning, which is that of the call before, and more.
        """
        config, device = self.network.config, self.network.lm_head.weight.device
        start = _last(config.document_end, ids)  # a document knows nothing of those before it
        if start != self.start:
            self._begin(start)
        seen = ids[start:][-config.context_length :]
        if config.mixer != "attention" or start + len(seen) < len(ids):
            features_BD = self.network.features(torch.tensor([seen], device=device))[:, -1]
        else:
            features_BD = self._features(torch.tensor([seen[self.read :]], device=device))
        logits_V: Tensor = self.network.lm_head(features_BD)[0]
        return logits_V

    def _begin(self, start: int) -> None:
        """Forget what was read; the text, or its last document, begins at `start`."""
        self.start, self.read = start, 0
        self._kept: list[tuple[Tensor, Tensor]] = []
        """Keys and values of each layer, (B, K, L, S)."""

    def _features(self, token_BL: Tensor) -> Tensor:
        """Read on: what the head reads of the last token, (B, D). At the beginning any number of tokens, then one at a time."""
        trunk, kept, self._kept = self.network.model, self._kept, []
        assert not kept or token_BL.shape[1] == 1, "tokens read together would see each other"
        until = self.read + token_BL.shape[1]
        cos_LS, sin_LS = trunk.cos_LS[self.read : until], trunk.sin_LS[self.read : until]
        x_BLD = trunk.embed(token_BL)
        reaches = trunk.reaches(x_BLD)
        for layer in range(trunk.model.depth):
            block, near = trunk.layers[layer // trunk.model.share_layers], trunk.model.sees_a_window(layer)
            assert isinstance(block, Block)
            q_BHLS, k_BKLS, v_BKLS = block.self_attn.project(block.input_layernorm(x_BLD), cos_LS, sin_LS)
            most = trunk.model.window if near else until
            if kept:
                new = zip(kept[layer], (k_BKLS, v_BKLS), strict=True)
                k_BKLS, v_BKLS = (torch.cat(both, dim=2)[:, :, -most:] for both in new)
            mixed_BHLS = attend(q_BHLS, k_BKLS, v_BKLS, None if kept else reaches[near], causal=not kept)
            self._kept.append((k_BKLS[:, :, -most:], v_BKLS[:, :, -most:]))
            x_BLD = x_BLD + block.self_attn.output(mixed_BHLS)
            x_BLD = x_BLD + block.mlp(block.post_attention_layernorm(x_BLD))
        self.read = until
        out_BD: Tensor = trunk.norm(x_BLD[:, -1])
        if self.network.head_factor is not None:
            out_BD = self.network.head_factor(out_BD)
        return out_BD


def _last(token: int | None, ids: list[int]) -> int:
    """Where a token stands last; 0 if nowhere."""
    return next((at for at in reversed(range(len(ids))) if ids[at] == token), 0)
