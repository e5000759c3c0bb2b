"""Models that transformers makes, begun from as if they were ours, or refused with the reason."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from budgetlm.config import study_config
from budgetlm.errors import ConfigError
from budgetlm.inherit import UNASKED_CONTEXT, inherited, look_at
from budgetlm.model.export import load_model
from tests.model.test_encoder import masked_tokens  # noqa: F401  # a fixture
from tests.model.test_transformer import TOKENS_BL

transformers = pytest.importorskip("transformers")
DECODER = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 2048,
}
ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": 32,
    "layer_types": ["full_attention"] * 2,
    "decoder_bias": False,
}


def made(folder, tokens, encodes=False, dtype=torch.float32, parts="50GB", **changes):
    """A model of transformers' making in a folder, and itself."""
    sizes = {"vocab_size": tokens.facts.vocab_size, **(ENCODER if encodes else DECODER), **changes}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokens.facts.end_of_text)
    ids |= dict.fromkeys(("cls_token_id", "sep_token_id"), tokens.facts.end_of_text) if encodes else {}
    kind = "ModernBert" if encodes else "Qwen3"
    config = getattr(transformers, f"{kind}Config")(**sizes, **ids)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}For{'MaskedLM' if encodes else 'CausalLM'}")(config).to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=parts)
    shutil.copyfile(tokens.tokenizer_file, Path(folder) / "tokenizer.json")
    return model


def kept(folder, context=32):
    """The network of the copy that a study makes."""
    look_at(folder).keep(folder / "kept", context)
    return load_model(folder / "kept")[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 384, "parts": "100KB"},
        {"use_sliding_window": True, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    ],
    ids=["untied", "tied", "grouped, padded, in parts", "windows"],
)
def test_a_qwen3_of_transformers_computes_the_same_as_a_model_of_ours(tmp_path, tokens, changes):
    theirs = made(tmp_path, tokens, **changes)
    ours = kept(tmp_path)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == ("parts" in changes)
    assert ours.config.context_length == 32
    with torch.no_grad():
        wanted = theirs(TOKENS_BL).logits[..., : tokens.facts.vocab_size]
        torch.testing.assert_close(ours(TOKENS_BL), wanted, atol=1e-5, rtol=0)


def test_a_modernbert_of_transformers_computes_the_same_as_a_model_of_ours(tmp_path, masked_tokens):  # noqa: F811
    theirs = made(tmp_path, masked_tokens, encodes=True)
    ours = kept(tmp_path)
    assert (ours.config.mask_token, ours.config.rope_theta) == (319, 160_000.0)
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS_BL), theirs(TOKENS_BL).logits, atol=1e-5, rtol=0)


def test_weights_in_half_precision_are_whole_numbers_again(tmp_path, tokens):
    theirs = made(tmp_path, tokens, dtype=torch.bfloat16)
    ours = kept(tmp_path).state_dict()
    assert {value.dtype for value in ours.values()} == {torch.float32}
    assert torch.equal(ours["model.norm.weight"], theirs.model.norm.weight.float())
    assert torch.equal(ours["lm_head.weight"], theirs.lm_head.weight.float())


def test_a_foreign_model_settles_a_study_as_one_of_ours_does_but_not_its_context(tmp_path, tokens, home):
    made(tmp_path, tokens)
    config = inherited(study_config({"model": {"init": str(tmp_path)}}))
    assert config.model.context_length == UNASKED_CONTEXT
    assert (config.space["width"], config.space["mlp_ratio"], config.space["norm_embedding"]) == (64, 1.75, False)
    look_at(tmp_path).keep(config.folder / "init", UNASKED_CONTEXT)
    assert inherited(config) == config


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head_dim": 32}, "it has 1 heads of 32, where a width of 64 is cut into 1 of 64 here"),
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu', not 'silu'"),
        ({"intermediate_size": 100}, "`intermediate_size` is 100, not a multiple of 16"),
        ({"attention_bias": True, "rms_norm_eps": 1e-5}, "`rms_norm_eps` is 1e-05, not 1e-06; `attention_bias` is True"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "other layers than every second from the first on"),
        ({"vocab_size": 300}, "its tokenizer has 320 tokens, but its embedding 300 rows"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "its rotary positions are 'linear', not 'default'",
        ),
        ({"hidden_size": 72, "head_dim": 72}, "width 72 is not a multiple of 16"),
        ({"quantization_config": {}}, "its weights are quantised"),
        ({"model_type": "gpt2"}, "it is a 'gpt2', and only 'qwen3' (a decoder) and 'modernbert' (an encoder)"),
        ({"num_hidden_layers": "two"}, "TypeError"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ", ".join(value),
)
def test_a_decoder_that_cannot_be_one_of_ours_is_refused_with_the_reason(tmp_path, tokens, changes, reason):
    (tmp_path / "model.safetensors").write_bytes(b"")
    shutil.copyfile(tokens.tokenizer_file, tmp_path / "tokenizer.json")
    config = {"model_type": "qwen3", "vocab_size": tokens.facts.vocab_size, **DECODER}
    if "max_window_layers" in changes:
        changes = {**changes, "layer_types": ["full_attention", "sliding_attention"]}
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ConfigError) as refused:
        look_at(tmp_path)
    assert reason in str(refused.value)
    assert f"init {tmp_path} cannot be begun from" in str(refused.value)


def test_an_encoder_as_published_is_refused_for_what_it_has_beyond_ours(tmp_path, tokens, masked_tokens):  # noqa: F811
    made(tmp_path, masked_tokens, encodes=True, layer_types=None, decoder_bias=True)
    with pytest.raises(ConfigError, match="`decoder_bias` is True, not False; 1 of its 2 layers attend to a part only"):
        look_at(tmp_path)
    shutil.copyfile(tokens.tokenizer_file, tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"its tokenizer has no token \[MASK\]"):
        look_at(tmp_path)


def test_weights_that_are_not_what_the_config_says_leave_no_copy(tmp_path, tokens):
    made(tmp_path, tokens)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}))
    with pytest.raises(ConfigError, match="of its weights are others than its config.json says, or are missing"):
        look_at(tmp_path).keep(tmp_path / "kept", 32)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="its weights cannot be read"):
        look_at(tmp_path).keep(tmp_path / "kept", 32)
    assert not (tmp_path / "kept").exists()


def test_a_tokenizer_that_loses_bytes_or_is_missing_is_refused(tmp_path, tokens):
    from tokenizers import Tokenizer, models

    made(tmp_path, tokens)
    Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1})).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="is not byte-level"):
        look_at(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        look_at(tmp_path)
