"""The decoder: rotary positions, RMSNorm, QK-norm, SwiGLU, grouped-query attention; a Qwen3 weight for weight.

Trunk, loss and start are also those of the encoder (`model/encoder.py`) and of blocks with other mixers (`model/mixers.py`). The decoder's modules carry the names of the Hugging Face implementation, so `state_dict()` is already the exported file, and
`model/export.py` only has to write it beside a config.

Shapes: B batch, L length, D width, R rank of the embedding, H query heads, K key/value heads, S head size, F hidden, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes
from torch.utils.checkpoint import checkpoint

from budgetlm.model.documents import Reach, all_before, attend, within_documents, within_window
from budgetlm.model.encoder import EncoderBlock, LayerNorm, PredictionHead, hidden_targets, visible
from budgetlm.model.loss import HeadLoss, head_loss
from budgetlm.model.mixers import MIXER_MODULES
from budgetlm.model.norm import ExactNorm, Norm
from budgetlm.model.rotary import rotary_tables, rotate
from budgetlm.model.size import ModelConfig

FORGET_BIAS = 1.0
"""Of a fresh LSTM: it begins by remembering (Jozefowicz et al. 2015, proceedings.mlr.press/v37/jozefowicz15)."""


class Attention(nn.Module):
    """Causal self-attention with normalised queries and keys."""

    products_up_to = 0
    """Length of the longest sequences (tokens) that are trained with attention by plain products, not by the fused kernel."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.head_size = model.head_size
        kv_width = model.kv_heads * model.head_size
        self.q_proj = nn.Linear(model.width, model.query_width, bias=False)
        self.k_proj = nn.Linear(model.width, kv_width, bias=False)
        self.v_proj = nn.Linear(model.width, kv_width, bias=False)
        self.o_proj = nn.Linear(model.query_width, model.width, bias=False)
        self.q_norm = Norm(model.head_size, eps=1e-6)
        self.k_norm = Norm(model.head_size, eps=1e-6)

    def forward(self, x_BLD: Tensor, cos_LS: Tensor, sin_LS: Tensor, reach: Reach | None = None) -> Tensor:
        """Mix each position with those before it, as far as it sees: (B, L, D) -> (B, L, D)."""
        by_products = self.products_up_to >= x_BLD.shape[1] and torch.is_grad_enabled()
        q_BHLS, k_BKLS, v_BKLS = self.project(x_BLD, cos_LS, sin_LS, head_by_head=by_products)
        return self.output(attend(q_BHLS, k_BKLS, v_BKLS, reach, by_products=by_products))

    def project(
        self, x_BLD: Tensor, cos_LS: Tensor, sin_LS: Tensor, *, head_by_head: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, L, S), keys and values (B, K, L, S), the first two turned by their positions, in memory as `rotate` says."""
        B, L, _ = x_BLD.shape
        size = self.head_size
        q_BHLS = self.q_norm(self.q_proj(x_BLD).view(B, L, -1, size)).transpose(1, 2)
        k_BKLS = self.k_norm(self.k_proj(x_BLD).view(B, L, -1, size)).transpose(1, 2)
        v_BKLS = self.v_proj(x_BLD).view(B, L, -1, size).transpose(1, 2)
        q_BHLS, k_BKLS = (rotate(x, cos_LS, sin_LS, head_by_head=head_by_head) for x in (q_BHLS, k_BKLS))
        return q_BHLS, k_BKLS, v_BKLS

    def output(self, mixed_BHLS: Tensor) -> Tensor:
        """What attention mixed, (B, H, L, S), as it is added to the residual stream, (B, L, D)."""
        out_BLD: Tensor = self.o_proj(mixed_BHLS.transpose(1, 2).flatten(2))
        return out_BLD


class MLP(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(model.width, model.hidden, bias=False)
        self.up_proj = nn.Linear(model.width, model.hidden, bias=False)
        self.down_proj = nn.Linear(model.hidden, model.width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D), each position on its own."""
        out_BLD: Tensor = self.down_proj(F.silu(self.gate_proj(x_BLD)) * self.up_proj(x_BLD))
        return out_BLD


class Block(nn.Module):
    """Attention, or another mixer, and MLP, each on a normalised copy of the residual stream."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.self_attn: Attention = MIXER_MODULES.get(model.mixer, Attention)(model)
        self.mlp = MLP(model)
        self.input_layernorm = Norm(model.width, eps=1e-6)
        self.post_attention_layernorm = Norm(model.width, eps=1e-6)

    def forward(self, x_BLD: Tensor, cos_LS: Tensor, sin_LS: Tensor, reach: Reach | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x_BLD = x_BLD + self.self_attn(self.input_layernorm(x_BLD), cos_LS, sin_LS, reach)
        out_BLD: Tensor = x_BLD + self.mlp(self.post_attention_layernorm(x_BLD))
        return out_BLD


class Factor(nn.Module):
    """The second factor of an embedding in two: a token's few numbers -> its vector or, `back`, what comes out -> what the head reads.

    Both directions may have the same matrix. What comes out is in fp32 under autocast too, as an embedding is.
    """

    def __init__(self, model: ModelConfig, *, back: bool = False) -> None:
        super().__init__()
        self.back = back
        self.weight = nn.Parameter(torch.zeros(model.width, model.embedding_rank))

    def forward(self, x: Tensor) -> Tensor:
        """(..., R) -> (..., D), or (..., D) -> (..., R)."""
        out: Tensor = F.linear(x, self.weight.T) if self.back else F.linear(x, self.weight).float()
        return out


class Trunk(nn.Module):
    """Embedding, blocks, last norm: everything but the head (`model.` in a Hugging Face state dict)."""

    cos_LS: Tensor
    sin_LS: Tensor
    checkpoint_activations: bool = False
    """Whether training keeps only the input of each block, and computes the rest again in the backward pass."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.model = model
        self.embed_tokens = nn.Embedding(model.vocab_size, model.embedding_width)
        self.embed_factor = Factor(model) if model.embedding_rank else None
        self.embed_norm: Norm | LayerNorm | None
        self.norm: Norm | LayerNorm
        if model.encodes:
            self.embed_norm, self.norm = LayerNorm(model), LayerNorm(model)
            self.layers = nn.ModuleList(EncoderBlock(model, first=number == 0) for number in range(model.depth))
        else:
            self.embed_norm = ExactNorm(model.width, eps=1e-6) if model.norm_embedding else None
            self.layers = nn.ModuleList(Block(model) for _ in range(model.blocks))
            self.norm = Norm(model.width, eps=1e-6)
        self.compiled: list[Callable[..., Tensor]] = []
        """The blocks, compiled, where that was asked for."""
        self.fill_positions()

    def fill_positions(self) -> None:
        """Make the rotary tables; again, where the module was built without memory."""
        cos_LS, sin_LS = rotary_tables(self.model, self.model.context_length)
        self.register_buffer("cos_LS", cos_LS, persistent=False)
        self.register_buffer("sin_LS", sin_LS, persistent=False)

    def attend_by_products(self, up_to: int) -> None:
        """From now on, train sequences of up to so many tokens with attention by plain products; 0 for none."""
        for block in self.layers:
            assert isinstance(block, Block | EncoderBlock)
            block.self_attn.products_up_to = up_to

    def compile_blocks(self, *, cuda_graphs: bool = False) -> None:
        """From now on, train with compiled blocks. They share their code, so that it is compiled once for all of them.

        On a CPU, where compiling takes longest, once for batches and sequences of all sizes too.

        Args:
            cuda_graphs: let a GPU replay each of them as one recorded graph, which saves launching its kernels.
        """
        mode = "reduce-overhead" if cuda_graphs else None
        dynamic = True if self.embed_tokens.weight.device.type == "cpu" and not cuda_graphs else None
        if dynamic:  # otherwise a batch that happens to be as large as a head would be taken to be as large always
            symbolic_shapes.use_duck_shape = False
        self.compiled = [torch.compile(block.forward, mode=mode, dynamic=dynamic) for block in self.layers]

    def embed(self, token_BL: Tensor) -> Tensor:
        """Token ids -> their vectors, (B, L, D), as the first block reads them."""
        x_BLD: Tensor = self.embed_tokens(token_BL)
        for module in (self.embed_factor, self.embed_norm):
            x_BLD = x_BLD if module is None else module(x_BLD)
        return x_BLD

    def forward(self, token_BL: Tensor) -> Tensor:
        """Token ids (B, L), L at most the context length -> features (B, L, D)."""
        L = token_BL.shape[1]
        assert self.model.context_length >= L, f"{L} tokens do not fit a context of {self.model.context_length}"
        found = self._documents(token_BL)
        out_BLD: Tensor = self.norm(self.through(self.embed(token_BL), range(self.model.depth), found))
        return out_BLD

    def through(self, x_BLD: Tensor, layers: Iterable[int], documents: Reach | None = None) -> Tensor:
        """What comes of a residual stream in some of the layers: (B, L, D) -> (B, L, D)."""
        L = x_BLD.shape[1]
        far, near = self.reaches(x_BLD, documents)
        trains = torch.is_grad_enabled()
        again = self.checkpoint_activations and trains
        # An evaluation is too short to be compiled for.
        blocks = self.compiled if trains and self.compiled else list(self.layers)
        for layer in layers:
            block, reach = blocks[layer // self.model.share_layers], near if self.model.sees_a_window(layer) else far
            inputs = (x_BLD, self.cos_LS[:L], self.sin_LS[:L], *(() if reach is None else (reach,)))
            # Nothing in a block is random, so there is no generator's state to bring back.
            x_BLD = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False) if again else block(*inputs)
        return x_BLD

    def reaches(self, x_BLD: Tensor, documents: Reach | None = None) -> tuple[Reach | None, Reach | None]:
        """How far tokens see in blocks that see all before them, or all of their document, and in those that see a window."""
        (B, L, _), window = x_BLD.shape, self.model.window
        if not 0 < window < L:
            return documents, documents
        like, attention = x_BLD.new_empty(0, dtype=self._precision(x_BLD)), self.layers[0].self_attn
        assert isinstance(attention, Attention)
        near = within_window(documents, window, (B, L), like, self.model.head_size)
        by_products = attention.products_up_to >= L and torch.is_grad_enabled()
        if documents is None and near.mask_LL is not None and by_products and self.compiled:
            return Reach(mask_LL=all_before(L, like)), near  # of one form, for which blocks are compiled once
        return documents, near

    def _documents(self, token_BL: Tensor) -> Reach | None:
        """The documents that attention keeps within, if it does."""
        if self.model.document_end is None:
            return None
        dtype = self._precision(self.embed_tokens.weight)
        return within_documents(token_BL, self.model.document_end, dtype, self.model.head_size)

    def _precision(self, like: Tensor) -> torch.dtype:
        """What attention is computed in where a tensor is."""
        kind = like.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def tied_names(model: ModelConfig) -> dict[str, str]:
    """Second names of parameters that a model has under two, and their first ones."""
    if not model.tie_embeddings:
        return {}
    factors = {"head_factor.weight": "model.embed_factor.weight"} if model.embedding_rank else {}
    return {"lm_head.weight": "model.embed_tokens.weight", **factors}


class LanguageModel(nn.Module):
    """A decoder that predicts the next token, or an encoder that predicts those that are hidden from it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.head_loss: HeadLoss = head_loss
        """Made by somebody else where the head is in parts."""
        self.model = Trunk(config)
        self.head = PredictionHead(config) if config.encodes else None
        self.head_factor = Factor(config, back=True) if config.embedding_rank else None
        self.lm_head = nn.Linear(config.embedding_width, config.vocab_size, bias=False)
        self.tie()

    def tie(self) -> None:
        """Make the head's matrices those of the embedding, where they are to be."""
        for name, first in tied_names(self.config).items():
            self.get_submodule(name.removesuffix(".weight")).weight = self.get_parameter(first)

    def features(self, token_BL: Tensor) -> Tensor:
        """Token ids (B, L) -> what the head reads, (B, L, D), or (B, L, R) of an embedding in two factors."""
        x_BLD: Tensor = self.model(token_BL)
        x_BLD = x_BLD if self.head is None else self.head(x_BLD)
        return x_BLD if self.head_factor is None else self.head_factor(x_BLD)

    def forward(self, token_BL: Tensor) -> Tensor:
        """Token ids (B, L) -> logits (B, L, V)."""
        logits_BLV: Tensor = self.lm_head(self.features(token_BL))
        return logits_BLV

    def loss(self, token_BL: Tensor, target_BL: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy of the targets in nats: a scalar, or shape (targets,) with `reduction="none"`.

        Args:
            token_BL: an encoder's have marks on those that it is not to see (`data/masks.py`).
            target_BL: what a decoder is to predict; an encoder's targets are in the marks.
        """
        if self.head:
            assert self.config.mask_token is not None
            features_BLD, hidden_BL = self.model(visible(token_BL, self.config.mask_token)), token_BL < 0
            return self.head_loss(
                self.head(features_BLD[hidden_BL]), self.lm_head.weight, hidden_targets(token_BL), reduction
            )
        return self.head_loss(self.features(token_BL).flatten(0, 1), self.lm_head.weight, target_BL.flatten(), reduction)


def build(config: ModelConfig, seed: int, device: torch.device | str = "cpu") -> LanguageModel:
    """A freshly initialised model; the same seed gives the same weights on any device.

    Matrices start with variance 1/fan_in and the projections back into the residual stream at zero, so that every block
    starts as the identity and depth does not change the first steps (Zhang et al. 2019, Fixup, arXiv:1901.09321).
    """
    with torch.device("cpu"):
        network = LanguageModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
            elif "embed_tokens" in name or "lm_head" in name:
                weight.normal_(0.0, 0.02, generator=generator)
            elif weight.ndim == 2:
                weight.normal_(0.0, 1 / math.sqrt(weight.shape[1]), generator=generator)
            elif weight.ndim == 3:  # a convolution's: each channel has a kernel of its own
                weight.normal_(0.0, 1 / math.sqrt(weight.shape[2]), generator=generator)
            elif "bias" in name:  # an LSTM's, whose gates are in the order input, forget, cell, output
                weight.zero_()
                weight.view(4, -1)[1] = FORGET_BIAS / 2  # there are two that are added
    return network.to(device)
