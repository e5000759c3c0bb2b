"""What encoders, and decoders of other mixers, weigh and cost, where that differs from the decoder with attention (`model/size.py`). No torch.

Width and depth mean the same for all of them: a block's mixer weighs about the four squares of the width that attention has.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from budgetlm.model.size import ModelConfig

FP32, BF16 = 4, 2
"""Bytes of a number."""
KERNEL = 16
"""Tokens that a convolution sees in one block, its own among them."""


def state_size(model: "ModelConfig") -> int:
    """Size of an LSTM's state: half the width, so that with its eight matrices of gates and the one after them it weighs 3.5 squares of it."""
    return model.width // 2


def mixer_matrices(model: "ModelConfig") -> dict[str, tuple[int, int]]:
    """Names and shapes (out, in) of the matrices that mix tokens in one block."""
    width, state = model.width, state_size(model)
    if model.encodes:
        return {"qkv_proj.weight": (3 * width, width), "o_proj.weight": (width, width)}
    if model.mixer == "lstm":
        return {
            "lstm.weight_ih_l0": (4 * state, width),
            "lstm.weight_hh_l0": (4 * state, state),
            "o_proj.weight": (width, state),
        }
    return {"in_proj.weight": (3 * width, width), "o_proj.weight": (width, width)}


def mlp_matrices(model: "ModelConfig") -> dict[str, tuple[int, int]]:
    """Names and shapes (out, in) of the matrices of one block's MLP."""
    width, hidden = model.width, model.hidden
    if model.encodes:
        return {"up_proj.weight": (2 * hidden, width), "down_proj.weight": (width, hidden)}
    return {"gate_proj.weight": (hidden, width), "up_proj.weight": (hidden, width), "down_proj.weight": (width, hidden)}


def other_weights(model: "ModelConfig") -> dict[str, tuple[int, ...]]:
    """Names and shapes of a block's mixer's weights that are no matrices."""
    if model.mixer == "lstm":
        return {f"lstm.bias_{kind}_l0": (4 * state_size(model),) for kind in ("ih", "hh")}
    return {"kernel.weight": (model.width, 1, KERNEL)} if model.mixer == "conv" else {}


def block_matrices(model: "ModelConfig") -> tuple[tuple[int, int], ...]:
    """Shapes (out, in) of the weight matrices in one block."""
    return (*mixer_matrices(model).values(), *mlp_matrices(model).values())


def body_parameters(model: "ModelConfig") -> int:
    """Parameters of all blocks and the last norm; an encoder's first block has no norm before its attention."""
    others = {"lstm": 8 * state_size(model), "conv": KERNEL * model.width}.get(model.mixer, 0)
    block = sum(a * b for a, b in block_matrices(model)) + others + 2 * model.width
    return model.depth * block + (0 if model.encodes else model.width)


def mixing_flops(model: "ModelConfig") -> int:
    """Operations a token beside the matrices, forward and backward: of convolutions, a product for each tap of their kernels."""
    return 6 * model.depth * KERNEL * model.width if model.mixer == "conv" else 0


def block_activation_bytes(model: "ModelConfig", precision: str, products_length: int) -> int:
    """Bytes that autograd keeps of one block for one token of a forward pass, W width, F hidden.

    Of an encoder, in order: each of two norms its input, a mean and a scale; what goes into the matrices; queries, keys and values as one, queries and keys
    again after the rotation; attention's output and the logarithm of its sum; of the MLP both halves, the GELU, and their product.
    Held to what autograd keeps in fp32; in bf16 it is an estimate.
    """
    c = FP32 if precision == "fp32" else BF16
    width, hidden = model.width, model.hidden
    if model.encodes:
        weights = model.heads * (c * products_length or FP32)
        return 2 * FP32 * (width + 2) + c * (8 * width + 4 * hidden) + weights
    norms = 2 * (c * width + FP32) + c * width  # and what goes into the MLP
    mlp = 4 * c * hidden
    if model.mixer == "lstm":
        return norms + c * width + c * LSTM_KEPT * state_size(model) + mlp
    padded = 1 + (KERNEL - 1) / model.context_length
    return round(norms + c * width * (6 + padded) + mlp)


LSTM_KEPT = 24
"""What an LSTM keeps for a token, in sizes of its state: its kernel's workspace, about 22 as seen of PyTorch's on a CPU, and its output twice."""


def encoder_loss_activation_bytes(model: "ModelConfig", precision: str) -> int:
    """Bytes that autograd keeps for one token between an encoder's last block and the logits.

    Of the last norm for all tokens, of the head for the share that is hidden.
    """
    width, c = model.width, FP32 if precision == "fp32" else BF16
    dense, norm = (c + c) * width, FP32 * (width + 2) + c * width
    return FP32 * (width + 2) + round(model.mask_rate * (dense + norm))


def stored_shapes(model: "ModelConfig") -> dict[str, tuple[int, ...]]:
    """Names and shapes of what an exported model's file holds."""
    ends = {"model.embed_tokens.weight": (model.vocab_size, model.width)}
    if not model.tie_embeddings or (model.norm_embedding and not model.encodes):
        ends["lm_head.weight"] = (model.vocab_size, model.width)
    shapes: dict[str, tuple[int, ...]] = {**ends, "model.norm.weight": (model.width,)}
    if model.encodes:
        shapes |= {"model.embed_norm.weight": (model.width,), "head.norm.weight": (model.width,)}
        shapes["head.dense.weight"] = (model.width, model.width)
    for layer in range(model.depth):
        block = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm")[1 if model.encodes and not layer else 0 :]:
            shapes[f"{block}{norm}.weight"] = (model.width,)
        shapes |= {
            f"{block}self_attn.{name}": shape for name, shape in {**mixer_matrices(model), **other_weights(model)}.items()
        }
        shapes |= {f"{block}mlp.{name}": shape for name, shape in mlp_matrices(model).items()}
    return {encoder_name(name): shape for name, shape in shapes.items()} if model.encodes else shapes


THEIRS = (
    ("model.embed_tokens.", "model.embeddings.tok_embeddings."),
    ("model.embed_norm.", "model.embeddings.norm."),
    (".input_layernorm.", ".attn_norm."),
    (".self_attn.qkv_proj.", ".attn.Wqkv."),
    (".self_attn.o_proj.", ".attn.Wo."),
    (".post_attention_layernorm.", ".mlp_norm."),
    (".mlp.up_proj.", ".mlp.Wi."),
    (".mlp.down_proj.", ".mlp.Wo."),
    ("model.norm.", "model.final_norm."),
    ("lm_head.", "decoder."),
)
"""Parts of our names, and of those that a ModernBERT of the Hugging Face library has."""


def encoder_name(ours: str) -> str:
    """A weight's name in a ModernBERT."""
    for our, their in THEIRS:
        ours = ours.replace(our, their)
    return ours


def our_name(theirs: str) -> str:
    """The name here of a ModernBERT's weight."""
    for our, their in THEIRS:
        theirs = theirs.replace(their, our)
    return theirs
