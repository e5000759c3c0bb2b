"""What a model of a given shape weighs and costs: parameters, FLOPs a token, memory. Arithmetic only, no torch.

The counts are exact (a test holds them against the built model); the memory is an estimate, for refusing what could
never fit. Everything that scales a model, prices it or plots it asks here.
"""

from dataclasses import dataclass

from budgetlm.errors import ConfigError

WIDTH_STEP = 16
"""Widths are multiples of this: the smallest head, and what vector units like."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder. Weight for weight a Qwen3 of the Hugging Face library (arXiv:2505.09388)."""

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
    rope_theta: float = 10_000.0
    """Base of the rotary position frequencies (arXiv:2104.09864)."""

    def __post_init__(self) -> None:
        if min(self.vocab_size, self.depth, self.width, self.context_length, self.kv_groups) < 1 or self.mlp_ratio <= 0:
            raise ConfigError(f"every size of a model must be at least 1: {self}. Raise the one that is not.")
        if self.width % WIDTH_STEP:
            raise ConfigError(
                f"width {self.width} is not a multiple of {WIDTH_STEP}. Use {round_width(self.width)} instead."
            )
        if self.heads % self.kv_groups:
            raise ConfigError(
                f"{self.heads} heads (width {self.width} / head size {self.head_size}) cannot be shared out in groups "
                f"of {self.kv_groups}. Use a `kv_groups` that divides {self.heads}."
            )

    @property
    def head_size(self) -> int:
        """Size of one attention head: 64, smaller where that would leave a narrow model with too few heads."""
        for size, least_width in ((64, 512), (32, 128)):
            if self.width >= least_width and self.width % size == 0:
                return size
        return 16

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.width // self.head_size

    @property
    def kv_heads(self) -> int:
        """Key/value heads."""
        return self.heads // self.kv_groups

    @property
    def hidden(self) -> int:
        """Hidden units of the SwiGLU layer, a multiple of 16."""
        return max(16, round(self.width * self.mlp_ratio / 16) * 16)


def round_width(width: float) -> int:
    """The allowed width nearest to `width`."""
    return max(WIDTH_STEP, round(width / WIDTH_STEP) * WIDTH_STEP)


def block_matrices(model: ModelConfig) -> list[tuple[int, int]]:
    """Shapes (out, in) of the weight matrices in one block."""
    kv = model.kv_heads * model.head_size
    width, hidden = model.width, model.hidden
    return [(width, width), (kv, width), (kv, width), (width, width), (hidden, width), (hidden, width), (width, hidden)]


def body_parameters(model: ModelConfig) -> int:
    """Parameters of all blocks and the last norm: the N, without embeddings, of the scaling laws."""
    norms = 2 * model.width + 2 * model.head_size
    return model.depth * (sum(a * b for a, b in block_matrices(model)) + norms) + model.width


def parameters(model: ModelConfig) -> int:
    """All parameters, exactly as built; a tied embedding counts once."""
    embeddings = model.vocab_size * model.width * (1 if model.tie_embeddings else 2)
    return body_parameters(model) + embeddings


def compute_parameters(model: ModelConfig) -> int:
    """Parameters that take part in a matrix product for every token: the blocks' matrices and the output head."""
    return model.depth * sum(a * b for a, b in block_matrices(model)) + model.vocab_size * model.width


def flops_per_token(model: ModelConfig) -> int:
    """Floating-point operations to train on one token, forward and backward.

    6 for each parameter in a matrix product, and 12·depth·width·length for the attention scores and values (not halved
    for the causal mask, by convention). Norms, rotations and the softmax are left out: they move memory, not FLOPs.

    Source: Chowdhery et al. 2022, PaLM, appendix B (arXiv:2204.02311).
    """
    return 6 * compute_parameters(model) + 12 * model.depth * model.width * model.context_length


def activation_elements(model: ModelConfig) -> int:
    """Numbers that a training step reads or writes for one token beside the matrix products; a proxy for its memory traffic."""
    per_block = 10 * model.width + 4 * model.hidden + model.heads * model.context_length
    return model.depth * per_block + 2 * model.vocab_size


def training_bytes(model: ModelConfig, micro_batch_tokens: int, optimizer_slots: int = 2) -> int:
    """Estimated bytes that training holds at its peak: fp32 weights, gradients, optimizer state and kept activations.

    Args:
        micro_batch_tokens: tokens in one forward pass.
        optimizer_slots: fp32 numbers that the optimizer keeps for a parameter (AdamW 2, Muon 1).
    """
    kept = model.depth * (16 * model.width + 6 * model.hidden) + 3 * model.vocab_size
    return 4 * (parameters(model) * (2 + optimizer_slots) + micro_batch_tokens * kept)
