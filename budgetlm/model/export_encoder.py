"""The encoder as a ModernBERT of Hugging Face's transformers: names, config, tokenizer.

The end-of-text token, which closes every document and so stands before the next, has the parts of `[CLS]`, `[SEP]` and `[PAD]`: the tokenizer puts one before a text and one
after it, as training had them.
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from torch import Tensor

from budgetlm.model.kinds import encoder_name, our_name
from budgetlm.model.size import ModelConfig


def encoder_config(model: ModelConfig, end_of_text: int) -> dict[str, Any]:
    """The `config.json` of a ModernBERT of this shape."""
    rope = {"rope_type": "default", "rope_theta": model.rope_theta}
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.hidden,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "classifier_pooling": "mean",  # as the published ModernBERT has it (arXiv:2412.13663); no token of ours was taught to stand for a text
        "max_position_embeddings": model.context_length,
        "norm_eps": 1e-5,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "decoder_bias": False,
        "classifier_bias": False,
        "layer_types": ["full_attention"] * model.depth,
        "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
        "tie_word_embeddings": model.tie_embeddings,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id"), end_of_text),
        "mask_token_id": model.mask_token,
        "dtype": "float32",
    }


def encoder_from(config: dict[str, Any]) -> ModelConfig:
    """The shape that such a `config.json` describes."""
    return ModelConfig(
        vocab_size=config["vocab_size"],
        depth=config["num_hidden_layers"],
        width=config["hidden_size"],
        context_length=config["max_position_embeddings"],
        mlp_ratio=config["budgetlm_mlp_ratio"],
        tie_embeddings=config["tie_word_embeddings"],
        rope_theta=config["rope_parameters"]["full_attention"]["rope_theta"],
        mask_token=config["mask_token_id"],
    )


def their_weights(weights: dict[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """Weights under a ModernBERT's names; of a tied embedding only the one."""
    return {encoder_name(name): value for name, value in weights.items() if not (tied and name == "lm_head.weight")}


def our_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ModernBERT's weights under our names."""
    return {our_name(name): value for name, value in weights.items()}


def save_encoder_tokenizer(path: Path, tokenizer: Path, end_of_text: int) -> None:
    """Write the tokenizer, which from now on puts the end of text before and after what it is given."""
    own = Tokenizer.from_file(str(tokenizer))
    end = own.id_to_token(end_of_text)
    own.post_processor = processors.TemplateProcessing(
        single=f"{end} $A {end}", pair=f"{end} $A {end} $B:1 {end}:1", special_tokens=[(end, end_of_text)]
    )
    own.save(str(path))


def encoder_tokenizer_config(tokenizer: Path, model: ModelConfig, end_of_text: int) -> dict[str, Any]:
    """The `tokenizer_config.json` beside it."""
    own = Tokenizer.from_file(str(tokenizer))
    assert model.mask_token is not None
    roles = ("bos_token", "eos_token", "cls_token", "sep_token", "pad_token")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.context_length,
        **dict.fromkeys(roles, own.id_to_token(end_of_text)),
        "mask_token": own.id_to_token(model.mask_token),
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
