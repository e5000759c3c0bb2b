"""A decoder as a GGUF file, which llama.cpp and what builds on it read: the same Qwen3, in their names (package `gguf`)."""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from budgetlm.errors import ConfigError
from budgetlm.files import write_atomic
from budgetlm.model.export import plain_weights
from budgetlm.model.size import plain_form
from budgetlm.model.transformer import LanguageModel

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
PRE_TOKENIZER = "default"
"""llama.cpp knows pre-tokenizers by name, and not ours; its default splits nearly as ours does, so that its tokens may differ here and there."""


def gguf_name(name: str) -> str:
    """A tensor's name there."""
    if name in ENDS:
        return ENDS[name]
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{NAMES[part]}.weight"


def save_gguf(path: Path, network: LanguageModel, tokenizer: Path, end_of_text: int, name: str) -> None:
    """Write a file with weights in fp32, shape and tokenizer; rounded weights as what they stand for.

    Raises:
        ConfigError: the package is not there, or llama.cpp has no such model.
    """
    if network.config.window:
        raise ConfigError(
            f"llama.cpp's Qwen3 sees all tokens in every block, and this one the last {network.config.window} in every second. Export it for "
            "transformers, or train with `space.window = 0`."
        )
    if find_spec("gguf") is None:
        raise ConfigError("a GGUF file needs the package gguf: pip install 'budgetlm[gguf]'.")
    gguf: Any = import_module("gguf")
    model = plain_form(network.config)

    def write(new: Path) -> None:
        writer = gguf.GGUFWriter(new, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3])
        writer.add_name(name)
        writer.add_context_length(model.context_length)
        writer.add_embedding_length(model.width)
        writer.add_block_count(model.depth)
        writer.add_feed_forward_length(model.hidden)
        writer.add_head_count(model.heads)
        writer.add_head_count_kv(model.kv_heads)
        writer.add_key_length(model.head_size)
        writer.add_value_length(model.head_size)
        writer.add_rope_freq_base(model.rope_theta)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        _add_tokenizer(writer, gguf, tokenizer, end_of_text)
        for tensor, weight in plain_weights(network).items():
            writer.add_tensor(gguf_name(tensor), weight.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_atomic(path, write)


def _add_tokenizer(writer: Any, gguf: Any, path: Path, end_of_text: int) -> None:
    vocabulary = Tokenizer.from_file(str(path)).get_vocab()
    merges = json.loads(path.read_text())["model"]["merges"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [gguf.TokenType.CONTROL if number == end_of_text else gguf.TokenType.NORMAL for number in range(len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(end_of_text)
    writer.add_eos_token_id(end_of_text)
    writer.add_pad_token_id(end_of_text)
