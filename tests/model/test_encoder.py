import numpy as np
import pytest
import torch
import torch.nn.functional as F

from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.masks import hide
from budgetlm.data.tokens import Tokens, prepare_tokens
from budgetlm.errors import BudgetlmError, ConfigError
from budgetlm.model.encoder import hidden_targets
from budgetlm.model.export import load_model, save_model
from budgetlm.model.fill import fill
from budgetlm.model.size import compute_parameters, flops_per_token
from tests.conftest import tiny_model
from tests.model.test_transformer import TOKENS_BL, trained_looking


@pytest.fixture(scope="session")
def masked_tokens(corpus_folder, cache) -> Tokens:
    config = DataConfig(source=str(corpus_folder), vocab_size=320)
    return prepare_tokens(config, prepare_corpus(config, cache), 320, cache, masks=True)


def encoder(**changes):
    return tiny_model(**{"mask_token": 319, **changes})


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False, "width": 64}, {"depth": 1, "mlp_ratio": 2.0, "width": 128}]
)
def test_transformers_loads_the_folder_without_us_gives_the_same_logits_and_fills_gaps(tmp_path, masked_tokens, changes):
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

    network = trained_looking(encoder(**changes))
    end = masked_tokens.facts.end_of_text
    save_model(tmp_path, network, masked_tokens.tokenizer_file, end)
    theirs, told = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())
    assert type(theirs).__name__ == "ModernBertForMaskedLM"
    with torch.no_grad():
        assert torch.allclose(theirs(TOKENS_BL).logits, network(TOKENS_BL), atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("the tree [MASK] the river")["input_ids"]
    assert ids == [
        end,
        *masked_tokens_of(masked_tokens, "the tree"),
        319,
        *masked_tokens_of(masked_tokens, " the river"),
        end,
    ]
    guesses = pipeline("fill-mask", model=theirs, tokenizer=tokenizer)("the tree [MASK] the river", top_k=3)
    ours = fill(network, ids)
    assert ours[ids.index(319)] in [guess["token"] for guess in guesses]
    assert [token for token in ours if token != ours[ids.index(319)]] == [
        token for token in ids if token not in (319, ours[ids.index(319)])
    ]
    again, _, _ = load_model(tmp_path)
    assert again.config == network.config
    assert torch.equal(again(TOKENS_BL), network(TOKENS_BL))


def masked_tokens_of(tokens: Tokens, text: str) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(tokens.tokenizer_file)).encode(text, add_special_tokens=False).ids
    return ids


def test_the_mask_is_one_of_the_vocabulary_and_stands_for_no_bytes(masked_tokens, tokens):
    assert (masked_tokens.facts.vocab_size, masked_tokens.facts.mask) == (320, 319)
    assert masked_tokens.bytes_V[319] == 0
    assert masked_tokens.facts.fingerprint != tokens.facts.fingerprint
    assert tokens.facts.mask is None
    assert not (masked_tokens.split("train") == 319).any()


def test_every_position_sees_all_others():
    network = trained_looking(encoder())
    embedded = network.model.embed_tokens(TOKENS_BL).detach().requires_grad_()
    network.model.embed_tokens.forward = lambda _: embedded
    network(TOKENS_BL)[:, 10].sum().backward()
    assert torch.all(embedded.grad.abs().sum(dim=(0, 2)) > 0)


def test_the_loss_is_that_of_the_hidden_tokens_of_which_nothing_is_seen():
    network = trained_looking(encoder())
    rows = torch.from_numpy(hide(F.pad(TOKENS_BL, (0, 1)).numpy(), 0.3, seed=1))
    marked = rows[:, :-1]
    hidden = marked < 0
    seen = torch.where(hidden, torch.tensor(319), marked)
    wanted = F.cross_entropy(network(seen)[hidden], TOKENS_BL[hidden])
    assert torch.allclose(network.loss(marked, rows[:, 1:]), wanted, atol=1e-6)
    assert torch.allclose(network.loss(marked, rows[:, 1:], "none").mean(), wanted, atol=1e-6)
    assert torch.equal(hidden_targets(marked), TOKENS_BL[hidden])


@pytest.mark.parametrize("again", [False, True])
def test_attention_by_products_trains_the_same(again):
    rows = torch.from_numpy(hide(F.pad(TOKENS_BL, (0, 1)).numpy(), 0.3, seed=1))[:, :-1]
    gradients = []
    for up_to in (0, 32):
        network = trained_looking(encoder())
        network.model.attend_by_products(up_to)
        network.model.checkpoint_activations = again
        network.loss(rows, rows).backward()
        gradients.append([weight.grad for weight in network.parameters()])
    for usual, other in zip(*gradients, strict=True):
        assert torch.allclose(usual, other, rtol=1e-3, atol=1e-6)


def test_what_a_step_takes_counts_the_head_for_hidden_tokens_alone():
    few, many = encoder(mask_rate=0.1), encoder(mask_rate=0.5)
    head = 32 * (320 + 32)
    assert compute_parameters(many) - compute_parameters(few) == round(0.5 * head) - round(0.1 * head)
    assert flops_per_token(many) > flops_per_token(few)


@pytest.mark.parametrize("changes", [{"kv_groups": 2, "width": 64}, {"document_end": 0}, {"mixer": "lstm"}])
def test_what_a_modernbert_has_not_is_refused(changes):
    with pytest.raises(ConfigError, match="an encoder has plain attention"):
        encoder(**changes)


def test_a_prompt_without_a_gap_or_too_long_is_refused_in_a_line():
    network = trained_looking(encoder())
    with pytest.raises(BudgetlmError, match=r"put \[MASK\] into the prompt"):
        fill(network, [1, 2])
    with pytest.raises(BudgetlmError, match="33 tokens"):
        fill(network, [319] * 33)
    assert 319 not in fill(network, [1, 319, 319])


def test_pseudo_bits_per_byte_are_a_hidden_tokens_bits_by_the_mean_bytes_of_all():
    from budgetlm.train.evaluate import hidden_bits_per_byte

    bytes_V = torch.tensor([0, 1, 3])
    sequences = torch.tensor([[1, 1, 2, 0, 1, 2]])  # 9 bytes in 5 tokens
    nats = torch.log(torch.tensor([2.0, 8.0, 1024.0]))  # 1 and 3 bits; the last stands for no bytes
    assert hidden_bits_per_byte(nats, torch.tensor([1, 2, 0]), sequences, bytes_V) == pytest.approx(2 * 5 / 9)


def test_evaluation_of_a_model_that_knows_nothing_is_that_of_a_uniform_guess(masked_tokens):
    from budgetlm.data.batches import validation_windows
    from budgetlm.model.transformer import build
    from budgetlm.train.evaluate import evaluate

    network = build(encoder(), 0)
    with torch.no_grad():
        network.lm_head.weight.zero_()
    windows = hide(validation_windows(masked_tokens.split("validation"), 32, 512), 0.15, 0)
    bpb = evaluate(network, windows, masked_tokens.bytes_V, micro_batch=3)
    assert bpb == pytest.approx(masked_tokens.facts.uniform_bpb, rel=0.1)
    assert np.isfinite(bpb)
