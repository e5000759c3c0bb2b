"""What a model of a given shape weighs and costs: parameters, FLOPs a token. Arithmetic only, no torch.

The counts are exact (a test holds them against the built model). Everything that scales a model, prices it or plots it asks here; what memory
it takes is in `model/footprint.py`.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from budgetlm.errors import ConfigError
from budgetlm.model import kinds

WIDTH_STEP = 16
"""Widths are multiples of this, which vector units like."""
MIXERS = ("attention", "lstm", "conv")
HEAD, LEAST_HEAD = 64, 16
"""Wanted and smallest size of an attention head. Of two sizes in narrow models the larger was better and faster (docs/LOG.md)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder, weight for weight a Qwen3 of the Hugging Face library (arXiv:2505.09388); or of an encoder, a ModernBERT."""

    vocab_size: int
    """Token ids that the model knows."""
    depth: int
    """Transformer blocks."""
    width: int
    """Size of the residual stream."""
    context_length: int
    """Tokens that the model sees at once in training."""
    kv_groups: int = 1
    """Query heads that share one key/value head; 1 is plain multi-head attention."""
    mlp_ratio: float = 3.0
    """Hidden units of the SwiGLU layer per unit of width (three matrices, so 3 weighs about what 4 does with two)."""
    tie_embeddings: bool = True
    """Whether the input embedding is also the output head."""
    norm_embedding: bool = False
    """Whether a token's vector is normalised before the first block. As it depends on the token alone, the exported model has
    the normalised vectors for its input embedding, apart from the head, and is a Qwen3 as ever."""
    share_layers: int = 1
    """Layers in a row that are one block used so many times over (Dehghani et al. 2018, arXiv:1807.03819; Lan et al. 2019, ALBERT,
    section 3.1, arXiv:1909.11942); 1 gives each a block of its own."""
    embedding_rank: int = 0
    """Numbers of a token in the embedding, which a matrix of rank x width turns into its vector, and back before the head (ALBERT again); 0 for
    as many as the width."""
    rope_theta: float = 10_000.0
    """Base of the rotary position frequencies (arXiv:2104.09864)."""
    window: int = 0
    """Tokens that a token sees, itself included, in every second block from the first on, but not in the last (sliding windows, arXiv:2004.05150;
    in turns with blocks that see all, Gemma 2, arXiv:2408.00118); 0 for all in every block."""
    kept_heads: int = 0
    """Query heads that are left where some were taken away (`compress/prune.py`); 0 for all that the width holds."""
    document_end: int | None = None
    """Id of the end-of-text token where attention stays within documents (`model/documents.py`); None lets it cross them."""
    mixer: str = "attention"
    """What mixes a decoder's tokens: one of `MIXERS` (`model/mixers.py`)."""
    mask_token: int | None = None
    """Id of the token that hides others, where this is an encoder that predicts them (`model/encoder.py`); None for a decoder. An encoder always
    normalises its embedding, whatever `norm_embedding` says."""
    mask_rate: float = 0.3
    """Share of the tokens that an encoder's training hides: it alone goes through the head, so it counts in what a step takes."""

    def __post_init__(self) -> None:
        if self.mixer not in MIXERS:
            raise ConfigError(f"mixer {self.mixer!r} is not known. Use one of {', '.join(MIXERS)}.")
        if self.encodes and (self.mixer != "attention" or self.kv_groups > 1 or self.document_end is not None):
            raise ConfigError(
                f"an encoder has plain attention, as a ModernBERT has, but this one has mixer {self.mixer!r}, {self.kv_groups} `kv_groups` and "
                f"document_end {self.document_end}. Use `attention`, 1, and no document attention."
            )
        if self.unusual and (self.share_layers > 1 or self.embedding_rank):
            raise ConfigError(
                f"`share_layers` ({self.share_layers}) and `embedding_rank` ({self.embedding_rank}) are for decoders with attention. Use 1 and 0."
            )
        if self.window < 0 or (self.window and self.unusual):
            raise ConfigError(
                f"`window` is {self.window}: it is for decoders with attention, and a number of tokens. Use 0 for none."
            )
        sizes = (self.vocab_size, self.depth, self.width, self.context_length, self.kv_groups, self.share_layers)
        if min(sizes) < 1 or self.mlp_ratio <= 0:
            raise ConfigError(f"every size of a model must be at least 1: {self}. Raise the one that is not.")
        if self.width % WIDTH_STEP:
            raise ConfigError(
                f"width {self.width} is not a multiple of {WIDTH_STEP}. Use {round_width(self.width)} instead."
            )
        if self.embedding_rank % WIDTH_STEP or not 0 <= self.embedding_rank <= self.width:
            raise ConfigError(
                f"embedding_rank {self.embedding_rank} is to be a multiple of {WIDTH_STEP}, and no more than the width, which is {self.width}. "
                f"Use {min(self.width, round_width(self.embedding_rank))}, or 0 for an embedding in one piece."
            )
        if not self.head_size:
            raise ConfigError(
                f"width {self.width} cannot be cut into heads of at least {LEAST_HEAD} that share keys and values in groups of "
                f"{self.kv_groups}. Use fewer `kv_groups`, or a width that is a multiple of {LEAST_HEAD * self.kv_groups}."
            )

    @property
    def encodes(self) -> bool:
        """Whether this is an encoder."""
        return self.mask_token is not None

    @property
    def unusual(self) -> bool:
        """Whether its blocks are others than the decoder's with attention: what it weighs is counted in `model/kinds.py`."""
        return self.encodes or self.mixer != "attention"

    def sees_a_window(self, layer: int) -> bool:
        """Whether tokens see only the last `window` of those before them in a layer."""
        return self.window > 0 and layer % 2 == 0 and layer < self.depth - 1

    @property
    def blocks(self) -> int:
        """Blocks with weights of their own; the last may be used fewer times than the others."""
        return -(-self.depth // self.share_layers)

    @property
    def embedding_width(self) -> int:
        """Numbers of a token in the embedding, and of what the head reads."""
        return self.embedding_rank or self.width

    @property
    def head_size(self) -> int:
        """Size of one attention head: the possible one nearest to `HEAD` by ratio, the larger of two as near."""
        return _head_size(self.width, self.kv_groups)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kept_heads or self.width // self.head_size

    @property
    def kv_heads(self) -> int:
        """Key/value heads."""
        return self.heads // self.kv_groups

    @property
    def query_width(self) -> int:
        """Size of all query heads together: the width, unless heads were taken away."""
        return self.heads * self.head_size

    @property
    def hidden(self) -> int:
        """Hidden units of the SwiGLU layer, a multiple of 16."""
        return max(16, round(self.width * self.mlp_ratio / 16) * 16)


@lru_cache(4096)  # shapes are compared by the thousand
def _head_size(width: int, kv_groups: int) -> int:
    """Of the sizes that divide the width and leave whole groups of heads, in steps that vector units like; 0 if there is none."""
    possible = (s for s in range(width, LEAST_HEAD - 1, -8) if width % s == 0 and width // s % kv_groups == 0)
    return min(possible, key=lambda size: abs(math.log(size / HEAD)), default=0)


def round_width(width: float) -> int:
    """The allowed width nearest to `width`."""
    return max(WIDTH_STEP, round(width / WIDTH_STEP) * WIDTH_STEP)


@lru_cache(4096)
def block_matrices(model: ModelConfig) -> tuple[tuple[int, int], ...]:
    """Shapes (out, in) of the weight matrices in one block."""
    if model.unusual:
        return kinds.block_matrices(model)
    kv, queries = model.kv_heads * model.head_size, model.query_width
    width, hidden = model.width, model.hidden
    return ((queries, width), (kv, width), (kv, width), (width, queries), (hidden, width), (hidden, width), (width, hidden))


@lru_cache(4096)
def body_parameters(model: ModelConfig) -> int:
    """Parameters of all blocks, shared ones once, and the last norm: the N, without embeddings, of the scaling laws."""
    if model.unusual:
        return kinds.body_parameters(model)
    norms = 2 * model.width + 2 * model.head_size
    return model.blocks * (sum(a * b for a, b in block_matrices(model)) + norms) + model.width


def end_matrices(model: ModelConfig) -> list[tuple[int, int]]:
    """Shapes (out, in) of the matrices of the embedding and, unless it is tied, the head: each with its factor, if it has one."""
    end = [(model.vocab_size, model.embedding_width)]
    end += [(model.width, model.embedding_rank)] if model.embedding_rank else []
    return end if model.tie_embeddings else 2 * end


def parameters(model: ModelConfig) -> int:
    """All parameters, exactly as built; a tied embedding and a shared block count once."""
    embeddings = sum(a * b for a, b in end_matrices(model))
    beside = model.width * (model.width + 2) if model.encodes else model.norm_embedding * model.width
    return body_parameters(model) + embeddings + beside


def end_products(model: ModelConfig) -> int:
    """Parameters that take part in a matrix product for every token before and after the blocks: of the head, and of its factor and the embedding's."""
    if model.encodes:
        return round(model.mask_rate * model.width * (model.vocab_size + model.width))
    return model.vocab_size * model.embedding_width + 2 * model.width * model.embedding_rank


def compute_parameters(model: ModelConfig) -> int:
    """Parameters that take part in a matrix product for every token, as often as they do: the layers' matrices and the output head.

    Of an encoder's head the share that counts is that of the tokens that go through it.
    """
    return model.depth * sum(a * b for a, b in block_matrices(model)) + end_products(model)


def plain_form(model: ModelConfig) -> ModelConfig:
    """The shape of the Qwen3 that computes the same: layers repeated, factors multiplied out, a norm worked into the embedding.

    An encoder is what a ModernBERT is already.
    """
    if model.encodes:
        return model
    tied = model.tie_embeddings and not model.norm_embedding
    return replace(model, share_layers=1, embedding_rank=0, norm_embedding=False, tie_embeddings=tied)


def flops_per_token(model: ModelConfig) -> int:
    """Floating-point operations to train on one token, forward and backward.

    6 for each parameter in a matrix product, and 12·depth·width·length for the attention scores and values (not halved
    for the causal mask, by convention, nor for windows, outside of which scores are computed and masked). Norms,
    rotations and the softmax are left out: they move memory, not FLOPs.

    Source: Chowdhery et al. 2022, PaLM, appendix B (arXiv:2204.02311).
    """
    if model.mixer != "attention":
        return 6 * compute_parameters(model) + kinds.mixing_flops(model)
    return 6 * compute_parameters(model) + 12 * model.depth * model.query_width * model.context_length
