"""What the file of a deployed model holds, and how many bytes that takes, before there is one. Arithmetic only, no torch.

A test holds this against the files that are really written. Of a model's folder the weights alone are counted: tokenizer and config are
the same for all models of a study.
"""

import json
import math
from collections.abc import Iterator

from budgetlm.compress.apply import Compression, shrunk
from budgetlm.model.kinds import stored_shapes
from budgetlm.model.size import ModelConfig, block_matrices, plain_form

Tensors = dict[str, tuple[str, list[int]]]
"""Names of tensors, each with its type as safetensors has it, and its shape."""
BYTES = {"F32": 4, "I64": 8, "I32": 4, "I8": 1, "U8": 1}
MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""Of a block, in the order of `block_matrices`."""
NOT_MULTIPLIED = ("model.embed_tokens", "model.embed_factor", "head_factor")
"""Matrices whose products are never of integers."""
GROUP, LEAST_GROUP = 32, 16
"""Weights that share a scale in 4 bits, and in models whose sizes are not multiples of it."""


def artefact_bytes(model: ModelConfig, compression: Compression) -> int:
    """Bytes of `model.safetensors` as it would be deployed.

    Args:
        model: the shape before compression, as `recipe.oracle.model_of` gives it at the target.
    """
    return file_bytes(*artefact_tensors(stored_form(shrunk(model, compression), compression), compression))


def stored_form(model: ModelConfig, compression: Compression) -> ModelConfig:
    """The shape in which a model of this one is stored: a plain Qwen3 or, of shared layers or an embedding in two factors that are compressed, its own.

    Those forms are read by budgetlm alone, so that nothing is lost by keeping them small; whole layers and the product of the factors would also
    have to be rounded anew, and would not be what was trained.
    """
    smaller = model.blocks < model.depth or model.embedding_rank > 0
    return model if smaller and (compression.quantised or compression.prunes) else plain_form(model)


def artefact_tensors(model: ModelConfig, compression: Compression) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a deployed model that is stored in this shape, and the file's metadata."""
    metadata: dict[str, str] = {"format": "pt"}
    if model.unusual:  # and not compressed
        return {name: ("F32", list(shape)) for name, shape in stored_shapes(model).items()}, metadata
    tensors: Tensors = {}
    option, matrices = compression.quantised, dict(_matrices(model))
    for name, (rows, columns) in matrices.items():
        stored: Tensors
        if option is None:
            stored = {f"{name}.weight": ("F32", [rows, columns])}
        elif option.bits == 8:
            stored = {
                f"{name}._weight_qdata": ("I8", [rows, columns]),
                f"{name}._weight_scale": ("F32", [rows, 1]),
                f"{name}._weight_zero_point": ("I8", [rows, 1]),
            }
            metadata[f"{name}.weight"] = _torchao_note(columns, option.rounds_activations and name not in NOT_MULTIPLIED)
        else:
            stored = {
                f"{name}.weight_packed": ("I32", [rows, columns // 8]),
                f"{name}.weight_scale": ("F32", [rows, columns // group_of(model)]),
                f"{name}.weight_shape": ("I64", [2]),
            }
        if compression.prunes and ".layers." in name:
            dense = next(iter(stored))
            kept = rows * columns - pruned_of(rows * columns, compression.pruned)
            stored |= {
                f"{dense}.bits": ("U8", [math.ceil(rows * columns / 8)]),
                f"{dense}.kept": (stored.pop(dense)[0], [kept]),
            }
        tensors |= stored
    tensors |= {f"{name}.weight": ("F32", [size]) for name, size in _norms(model)}
    if option and option.bits == 8:
        metadata |= {f"{name}.weight": '{"_type": "Tensor"}' for name, _ in _norms(model)}
        metadata["tensor_names"] = json.dumps(sorted(metadata.keys() - {"format"}))
    return tensors, metadata


def pruned_of(weights: int, share: float) -> int:
    """How many of a matrix's weights are pruned."""
    return round(weights * share)


def group_of(model: ModelConfig) -> int:
    """Weights in a row that share a 4-bit scale: the same number everywhere in a model."""
    sizes = (model.width, model.hidden, model.heads * model.head_size, model.embedding_rank)
    return GROUP if all(size % GROUP == 0 for size in sizes) else LEAST_GROUP


def file_bytes(tensors: Tensors, metadata: dict[str, str]) -> int:
    """Bytes of a safetensors file: a length, a header in JSON, the numbers.

    Source: https://huggingface.co/docs/safetensors, "Format".
    """
    header: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for name, (kind, shape) in sorted(tensors.items(), key=lambda item: (-BYTES[item[1][0]], item[0])):
        size = BYTES[kind] * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return 8 + math.ceil(len(json.dumps(header, separators=(",", ":"))) / 8) * 8 + at


def _matrices(model: ModelConfig) -> Iterator[tuple[str, tuple[int, int]]]:
    pairs = (("model.embed_tokens", "model.embed_factor"), ("lm_head", "head_factor"))
    for name, factor in pairs[:1] if model.tie_embeddings else pairs:
        yield name, (model.vocab_size, model.embedding_width)
        if model.embedding_rank:
            yield factor, (model.width, model.embedding_rank)
    for layer in range(model.blocks):
        yield from (
            (f"model.layers.{layer}.{name}", shape) for name, shape in zip(MATRICES, block_matrices(model), strict=True)
        )


def _norms(model: ModelConfig) -> Iterator[tuple[str, int]]:
    if model.norm_embedding:
        yield "model.embed_norm", model.width
    for layer in range(model.blocks):
        yield f"model.layers.{layer}.input_layernorm", model.width
        yield f"model.layers.{layer}.post_attention_layernorm", model.width
        yield f"model.layers.{layer}.self_attn.q_norm", model.head_size
        yield f"model.layers.{layer}.self_attn.k_norm", model.head_size
    yield "model.norm", model.width


def _torchao_note(columns: int, dynamic: bool) -> str:
    """What torchao writes of a matrix beside its numbers."""
    activations = (
        {
            "_type": "QuantizeTensorToInt8Kwargs",
            "_data": {
                "granularity": {"_type": "PerRow", "_data": {"dim": -1}},
                "mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC"},
                "reduce_range": False,
            },
        }
        if dynamic
        else None
    )
    data = {
        "act_quant_kwargs": activations,
        "reduce_range": False,
        "block_size": [1, columns],
        "dtype": {"_type": "torch.dtype", "_data": "float32"},
    }
    return json.dumps({"_type": "Int8Tensor", "_data": data, "_tensor_data_names": ["zero_point", "qdata", "scale"]})
