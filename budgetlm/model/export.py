"""Weights -> a folder that Hugging Face's transformers loads without us, and back.

An encoder is a ModernBERT, and is written under that one's names (`model/export_encoder.py`). Of decoders with other mixers transformers has no
architecture, so their folders say so in `config.json`, and are read here alone.

The decoder is a Qwen3 weight for weight and name for name, so this writes a config and copies nothing around, but for what no Qwen3 has: a norm
after the embedding is worked into it, so that there are two, the factors of an embedding are multiplied out, and a block that layers share is repeated.
What is loaded computes the same.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from budgetlm.errors import ConfigError, StudyError
from budgetlm.files import read_json, write_json
from budgetlm.model.export_encoder import (
    encoder_config,
    encoder_from,
    encoder_tokenizer_config,
    our_weights,
    save_encoder_tokenizer,
    their_weights,
)
from budgetlm.model.size import ModelConfig, plain_form
from budgetlm.model.transformer import LanguageModel, tied_names

EMBEDDING = "model.embed_tokens.weight"
OWN = ("share_layers", "embedding_rank", "norm_embedding")
"""What no Qwen3 has. `compress/artefact.py` writes it down, after `budgetlm_`, where the file keeps the model's own form."""
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
DECODER, OURS = "qwen3", "budgetlm"
"""The `model_type` of a decoder's folder, and of one that only budgetlm reads."""


def hugging_face_config(model: ModelConfig, end_of_text: int) -> dict[str, Any]:
    """The `config.json` of a Qwen3 of this shape; of one with another mixer, which only budgetlm reads, the same with its name."""
    kind = {"architectures": ["Qwen3ForCausalLM"], "model_type": DECODER}
    if model.mixer != "attention":
        kind = {"architectures": [], "model_type": OURS, "budgetlm_mixer": model.mixer}
    return {
        **kind,
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.hidden,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": model.context_length,
        "rms_norm_eps": 1e-6,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": model.window > 0,
        **({"sliding_window": model.window, "layer_types": layer_types(model)} if model.window else {}),
        "tie_word_embeddings": plain_form(model).tie_embeddings,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }


def layer_types(model: ModelConfig) -> list[str]:
    """What tokens see in each layer, in transformers' words."""
    return ["sliding_attention" if model.sees_a_window(layer) else "full_attention" for layer in range(model.depth)]


def own_weights(network: LanguageModel) -> dict[str, Tensor]:
    """A network's weights by the names that they have here, each once."""
    second = tied_names(network.config)
    return {n: w.detach().cpu().contiguous() for n, w in network.state_dict().items() if n not in second}


@torch.no_grad()
def plain_weights(network: LanguageModel) -> dict[str, Tensor]:
    """The fp32 weights of the model of transformers that computes what this network does, by their names there; rounded ones are what they stand for."""
    model, own = network.config, {name: w.dequantize() for name, w in own_weights(network).items()}
    if model.encodes:
        return their_weights(own, tied=model.tie_embeddings)
    weights = {"model.norm.weight": own["model.norm.weight"]}
    table_VD = _whole(own, EMBEDDING, "model.embed_factor.weight")
    norm = network.model.embed_norm
    weights[EMBEDDING] = table_VD if norm is None else norm(table_VD.to(norm.weight.device)).cpu().contiguous()
    if not model.tie_embeddings:
        weights["lm_head.weight"] = _whole(own, "lm_head.weight", "head_factor.weight")
    elif norm is not None:
        weights["lm_head.weight"] = table_VD
    for layer in range(model.depth):
        block, again = divmod(layer, model.share_layers)
        old, new = f"model.layers.{block}.", f"model.layers.{layer}."
        found = {name.replace(old, new): value for name, value in own.items() if name.startswith(old)}
        weights |= {name: value.clone() for name, value in found.items()} if again else found
    return weights


def _whole(weights: dict[str, Tensor], name: str, factor: str) -> Tensor:
    """A matrix with a vector for each token, its factors multiplied."""
    return weights[name] @ weights[factor].T if factor in weights else weights[name]


def exported(network: LanguageModel, form: ModelConfig | None = None) -> LanguageModel:
    """A copy of the network on the CPU in the form that is exported.

    Args:
        form: the network's own shape, to keep what no Qwen3 has; a plain Qwen3 if left out.
    """
    form = form or plain_form(network.config)
    with torch.device("meta"):
        plain = LanguageModel(form)
    weights = own_weights(network) if form == network.config else plain_weights(network)
    plain.load_state_dict(weights, strict=False, assign=True)
    plain.tie()
    plain.model.fill_positions()
    return plain.eval().requires_grad_(False)


def save_model(folder: Path, network: LanguageModel, tokenizer: Path, end_of_text: int) -> None:
    """Write weights, config and tokenizer into an existing folder.

    Of a model whose attention stays within documents that is not written down: it is a plain Qwen3 that has only ever seen one document
    at a time, and must be given one, best from its end-of-text token on.
    """
    model = network.config
    weights = plain_weights(network)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    if model.encodes:
        save_encoder_tokenizer(folder / TOKENIZER, tokenizer, end_of_text)
        write_json(folder / CONFIG, {**encoder_config(model, end_of_text), "budgetlm_mlp_ratio": model.mlp_ratio})
        write_json(folder / "tokenizer_config.json", encoder_tokenizer_config(tokenizer, model, end_of_text))
        return
    write_json(folder / CONFIG, {**hugging_face_config(model, end_of_text), "budgetlm_mlp_ratio": model.mlp_ratio})
    shutil.copyfile(tokenizer, folder / TOKENIZER)
    end = Tokenizer.from_file(str(tokenizer)).id_to_token(end_of_text)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.context_length,
            "bos_token": end,
            "eos_token": end,
            "clean_up_tokenization_spaces": False,
        },
    )
    ids = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    write_json(folder / "generation_config.json", {**ids, "do_sample": True, "temperature": 0.8, "top_k": 50})


def weights_bytes(folder: Path) -> int:
    """Bytes of the weights in a folder that `save_model` wrote: what a limit of size is about."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def model_from(config: dict[str, Any]) -> ModelConfig:
    """The shape that a `config.json` of ours describes."""
    if config["model_type"] == "modernbert":
        return encoder_from(config)
    model = ModelConfig(
        vocab_size=config["vocab_size"],
        depth=config["num_hidden_layers"],
        width=config["hidden_size"],
        context_length=config["max_position_embeddings"],
        kv_groups=config["num_attention_heads"] // config["num_key_value_heads"],
        window=config["sliding_window"] if config.get("use_sliding_window") else 0,
        mlp_ratio=config["budgetlm_mlp_ratio"],
        tie_embeddings=config["tie_word_embeddings"],
        **{name: config[f"budgetlm_{name}"] for name in OWN if f"budgetlm_{name}" in config},
        rope_theta=config.get("rope_theta")
        or config["rope_parameters"]["rope_theta"],  # transformers writes it in the second place alone
        mixer=config.get("budgetlm_mixer", "attention"),
    )
    if config["num_attention_heads"] != model.heads:
        model = replace(model, kept_heads=config["num_attention_heads"])
    return model


def load_model(folder: Path) -> tuple[LanguageModel, Tokenizer, int]:
    """A model that `save_model` wrote, its tokenizer, and its end-of-text id.

    Raises:
        StudyError: the folder is not one, or is damaged.
    """
    try:
        config = read_json(folder / CONFIG)
        model = model_from(config)
        network = LanguageModel(model)
        weights = load_file(folder / WEIGHTS)
        if model.encodes:
            weights = our_weights(weights)
        weights |= {second: weights[first] for second, first in tied_names(model).items()}
        network.load_state_dict(weights)
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except StudyError:
        raise
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise StudyError(
            f"{folder} does not hold a model of budgetlm ({type(error).__name__}: {error}). Give the `model` folder of a "
            "final, or train one with `budgetlm final`."
        ) from error
    return network.eval(), tokenizer, config["eos_token_id"]


def begin_from(folder: Path, network: LanguageModel) -> None:
    """Give a network the weights of a model of the same shape.

    Raises:
        ConfigError: its weights are others.
    """
    try:
        network.load_state_dict(load_model(folder)[0].state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"the weights in {folder} do not fit a model of the recipe's shape: {str(error).splitlines()[-1].strip()} Its vocabulary "
            "must be the study's, and its shape that which `model.init` settles."
        ) from error
