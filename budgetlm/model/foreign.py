"""A plain Qwen3 or ModernBERT that others made, as a model of ours: where it can be one, and what keeps it from being one.

Such a model's weights have the names that ours are exported under, so what is changed is their form alone: several files become one, half precision fp32,
and rows of the embedding that no token of the tokenizer has, which fill it up to a round number, are left out.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from budgetlm.errors import ConfigError, StudyError
from budgetlm.files import read_json
from budgetlm.model.export import DECODER, WEIGHTS, layer_types, save_model
from budgetlm.model.export_encoder import our_weights
from budgetlm.model.size import ModelConfig
from budgetlm.model.transformer import LanguageModel, tied_names

INDEX = "model.safetensors.index.json"
"""Beside weights in several files: which is where."""
ENCODER = "modernbert"
ROWS = ("model.embed_tokens.weight", "lm_head.weight")
"""Weights with a row for each token."""
NEEDED: dict[str, dict[str, tuple[Any, Any]]] = {
    DECODER: {
        "hidden_act": ("silu", "silu"),
        "rms_norm_eps": (1e-6, 1e-6),
        "attention_bias": (False, False),
    },
    ENCODER: {
        "hidden_activation": ("gelu", "gelu"),
        "norm_eps": (1e-5, 1e-5),
        "norm_bias": (False, False),
        "attention_bias": (False, False),
        "mlp_bias": (False, False),
        "decoder_bias": (False, True),
    },
}
"""By `model_type`, what a setting has to be, and what transformers takes where a `config.json` does not say."""


def shape_from(config: dict[str, Any], vocab_size: int, mask_token: int | None) -> ModelConfig:
    """The shape of a foreign model as one of ours.

    Args:
        config: its `config.json`.
        vocab_size: tokens of its tokenizer.
        mask_token: the one that hides others, where the tokenizer has one.

    Raises:
        ConfigError: no model of ours has it; the message gives all the reasons.
    """
    kind = config.get("model_type")
    if kind not in NEEDED:
        raise ConfigError(
            f"it is a {kind!r}, and only {DECODER!r} (a decoder) and {ENCODER!r} (an encoder) can be models here"
        )
    faults = [
        f"`{name}` is {config.get(name, usual)!r}, not {needed!r}"
        for name, (needed, usual) in NEEDED[kind].items()
        if config.get(name, usual) != needed
    ]
    if "quantization_config" in config:
        faults.append("its weights are quantised")
    if config["vocab_size"] < vocab_size:
        faults.append(f"its tokenizer has {vocab_size:,} tokens, but its embedding {config['vocab_size']:,} rows")
    if kind == ENCODER and mask_token is None:
        faults.append("its tokenizer has no token [MASK]")
    types, rope = _layers(kind, config)
    window = config.get("sliding_window", 4_096) if kind == DECODER and config.get("use_sliding_window") else 0
    if set(types) != {"full_attention"} and not window:
        faults.append(f"{sum(name != 'full_attention' for name in types)} of its {len(types)} layers attend to a part only")
    if rope.get("rope_type", "default") != "default":
        faults.append(f"its rotary positions are {rope['rope_type']!r}, not 'default'")
    if not faults:
        shape = _shape(config, vocab_size, mask_token if kind == ENCODER else None, float(rope["rope_theta"]))
        shape = replace(shape, window=window if "sliding_attention" in types else 0)
        faults = _differences(config, shape)
        if types != layer_types(shape):
            faults.append(
                f"other layers than every second from the first on, but not the last, see its window of {window} tokens"
            )
    if faults:
        raise ConfigError("; ".join(faults))
    return shape


def _shape(config: dict[str, Any], vocab_size: int, mask_token: int | None, theta: float) -> ModelConfig:
    heads = config["num_attention_heads"]
    return ModelConfig(
        vocab_size=vocab_size,
        depth=config["num_hidden_layers"],
        width=config["hidden_size"],
        context_length=config["max_position_embeddings"],
        kv_groups=heads // (config.get("num_key_value_heads") or heads),
        mlp_ratio=config["intermediate_size"] / config["hidden_size"],
        tie_embeddings=config.get("tie_word_embeddings", mask_token is not None),
        rope_theta=theta,
        mask_token=mask_token,
    )


def _differences(config: dict[str, Any], shape: ModelConfig) -> list[str]:
    """Where a model of ours of that width and depth has other sizes."""
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    faults = []
    if (heads, size) != (shape.heads, shape.head_size):
        faults.append(
            f"it has {heads} heads of {size}, where a width of {shape.width} is cut into {shape.heads} of {shape.head_size} here"
        )
    if config["intermediate_size"] != shape.hidden:
        faults.append(f"`intermediate_size` is {config['intermediate_size']}, not a multiple of 16")
    return faults


def _layers(kind: str, config: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """What each layer attends to, and the rotary positions, however old the `config.json` is."""
    depth, rope = config["num_hidden_layers"], config.get("rope_parameters") or {}
    if kind == ENCODER:
        every = config.get("global_attn_every_n_layers", 3)
        usual = ["sliding_attention" if layer % every else "full_attention" for layer in range(depth)]
        return config.get("layer_types") or usual, {
            "rope_theta": config.get("global_rope_theta", 160_000.0),
            **rope.get("full_attention", {}),
        }
    scaled = {"rope_type": "scaled"} if config.get("rope_scaling") else {}
    first = config.get("max_window_layers", 28) if config.get("use_sliding_window") else depth
    usual = ["full_attention" if layer < first else "sliding_attention" for layer in range(depth)]
    types = config.get("layer_types") or usual
    return types, {"rope_theta": config.get("rope_theta", 10_000.0), **scaled, **rope}


def adopt(folder: Path, new: Path, shape: ModelConfig, end_of_text: int) -> None:
    """Write a foreign model as one of ours.

    Args:
        folder: its folder.
        new: an existing folder to write into.
        shape: as `shape_from` found it.
        end_of_text: id of the token after each document.

    Raises:
        ConfigError: its weights cannot be read, or are not those of that shape.
    """
    weights = our_weights(_read(folder)) if shape.encodes else _read(folder)
    weights = {name: value[: shape.vocab_size] if name in ROWS else value for name, value in weights.items()}
    for second, first in tied_names(shape).items():
        weights[second] = weights.get(first, torch.empty(0))
    with torch.device("meta"):
        network = LanguageModel(shape)
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    there = {name: tuple(value.shape) for name, value in weights.items()}
    odd = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if odd:
        raise ConfigError(
            f"{len(odd)} of its weights are others than its config.json says, or are missing, the first of them {odd[0]}: "
            f"{there.get(odd[0], 'none')} in place of {wanted.get(odd[0], 'none')}"
        )
    network.load_state_dict({name: value.float().contiguous() for name, value in weights.items()}, assign=True)
    network.tie()
    save_model(new, network, folder / "tokenizer.json", end_of_text)


def _read(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a folder, by their names there."""
    weights: dict[str, torch.Tensor] = {}
    try:
        files = {WEIGHTS} if (folder / WEIGHTS).exists() else set(read_json(folder / INDEX)["weight_map"].values())
        for file in sorted(files):
            weights |= load_file(folder / Path(file).name)  # of this folder alone, whatever the index says
    except (StudyError, OSError, SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"its weights cannot be read ({type(error).__name__}: {error})") from error
    return weights
