import dataclasses

import pytest
import torch

from budgetlm.errors import ConfigError, StudyError
from budgetlm.model.export import load_model, save_model
from budgetlm.model.generate import generate
from budgetlm.model.gguf import save_gguf
from tests.conftest import tiny_model
from tests.model.test_transformer import TOKENS_BL, trained_looking


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False},
        {"width": 64, "kv_groups": 2},
        {"width": 64, "kv_groups": 4, "tie_embeddings": False},
        {"norm_embedding": True},
        {"norm_embedding": True, "tie_embeddings": False},
        {"depth": 3, "share_layers": 2},
        {"depth": 3, "window": 5},
        {"embedding_rank": 16},
        {"embedding_rank": 16, "norm_embedding": True, "depth": 4, "share_layers": 4},
        {"embedding_rank": 16, "tie_embeddings": False, "norm_embedding": True},
    ],
)
def test_transformers_loads_the_folder_without_us_and_gives_the_same_logits(tmp_path, tokens, changes):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = trained_looking(tiny_model(**changes))
    save_model(tmp_path, network, tokens.tokenizer_file, tokens.facts.end_of_text)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(theirs(TOKENS_BL).logits, network(TOKENS_BL), atol=1e-5)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer("the tree sees")["input_ids"]) == "the tree sees"


def test_a_gguf_file_is_refused_where_blocks_see_a_window(tmp_path, tokens):
    network = trained_looking(tiny_model(window=5))
    with pytest.raises(ConfigError, match="this one the last 5 in every second"):
        save_gguf(tmp_path / "model.gguf", network, tokens.tokenizer_file, 0, "it")
    assert not list(tmp_path.iterdir())


def test_what_is_saved_comes_back_the_same(tmp_path, tokens):
    network = trained_looking(tiny_model(kv_groups=2, width=64, mlp_ratio=2.0, window=7))
    save_model(tmp_path, network, tokens.tokenizer_file, 0)
    again, _, end = load_model(tmp_path)
    assert (again.config, end) == (network.config, 0)
    assert torch.equal(again(TOKENS_BL), network(TOKENS_BL))


@pytest.mark.parametrize("tied", [True, False])
def test_a_norm_after_the_embedding_comes_back_worked_into_it(tmp_path, tokens, tied):
    network = trained_looking(tiny_model(norm_embedding=True, tie_embeddings=tied))
    save_model(tmp_path, network, tokens.tokenizer_file, 0)
    again, _, _ = load_model(tmp_path)
    assert again.config == dataclasses.replace(network.config, norm_embedding=False, tie_embeddings=False)
    assert torch.allclose(again(TOKENS_BL), network(TOKENS_BL), atol=1e-6)


def test_a_damaged_model_is_said_so(tmp_path, tokens):
    save_model(tmp_path, trained_looking(tiny_model()), tokens.tokenizer_file, 0)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(StudyError, match="does not hold a model"):
        load_model(tmp_path)
    with pytest.raises(StudyError, match="missing"):
        load_model(tmp_path / "nowhere")


def test_generation_is_repeatable_bounded_and_stops_at_the_end_of_text():
    network = trained_looking(tiny_model())
    first = list(generate(network, [1, 2], 50, seed=3))
    assert first == list(generate(network, [1, 2], 50, seed=3))
    assert len(first) == 50  # beyond the context length of 32 as well
    assert first != list(generate(network, [1, 2], 50, seed=4))
    greedy = list(generate(network, [1, 2], 5, temperature=0))
    assert list(generate(network, [1, 2], 5, temperature=0, end_of_text=greedy[2])) == greedy[:2]
    assert list(generate(network, [1], 50, should_stop=lambda: True)) == []


def test_a_nucleus_takes_the_fewest_likeliest_tokens_that_have_the_probability(monkeypatch):
    network, drawn = trained_looking(tiny_model()), []
    draw = torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda chance, *a, **o: drawn.append(chance.clone()) or draw(chance, *a, **o))
    whole = list(generate(network, [1, 2], 3, seed=3, top_k=0))
    assert list(generate(network, [1, 2], 3, seed=3, top_k=0, top_p=1.0)) == whole
    everything = drawn[0]
    for top_p in (0.01, 0.3, 0.9):
        drawn.clear()
        list(generate(network, [1, 2], 1, seed=3, top_k=0, top_p=top_p))
        kept = drawn[0] > 0
        assert everything[kept].min() >= everything[~kept].max()
        assert everything[kept].sum() >= top_p
        assert kept.sum() == 1 or everything[kept].sum() - everything[kept].min() < top_p
    greedy = list(generate(network, [1, 2], 5, temperature=0))
    assert list(generate(network, [1, 2], 5, seed=3, top_p=0)) == greedy  # the likeliest stays, whatever is asked for
    assert list(generate(network, [1, 2], 5, seed=4, top_k=1, top_p=0.9)) == greedy
