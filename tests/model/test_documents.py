import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from budgetlm.errors import ConfigError
from budgetlm.model import documents
from budgetlm.model.documents import within_documents
from budgetlm.model.export import load_model, save_model
from budgetlm.model.transformer import LanguageModel
from tests.conftest import tiny_model
from tests.model.test_transformer import TOKENS_BL, trained_looking

END = 7
SHAPES = [{}, {"kv_groups": 2, "width": 64}, {"kv_groups": 4, "width": 64, "tie_embeddings": False}]


def keeping_within(**changes) -> LanguageModel:
    return trained_looking(tiny_model(document_end=END, **changes))


def packed(*lengths: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A sequence of documents, and each of them: an end-of-text token and others."""
    chance, each = torch.Generator().manual_seed(0), []
    for length in lengths:
        rest = torch.randint(END + 1, 320, (1, length - 1), generator=chance)
        each.append(F.pad(rest, (1, 0), value=END))
    return torch.cat(each, dim=1), each


def plain_varlen(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size, enable_gqa):
    """What `varlen_attn` promises, one document at a time."""
    assert cu_seq_q.dtype == torch.int32
    window, after = window_size
    assert after == 0
    bounds = cu_seq_q.tolist()
    assert cu_seq_k.tolist() == bounds
    assert max(b - a for a, b in itertools.pairwise(bounds)) <= min(max_q, max_k)
    mixed = []
    for a, b in itertools.pairwise(bounds):
        seen = torch.ones(b - a, b - a, dtype=torch.bool).tril()
        seen = seen.triu(-window) if window >= 0 else seen
        one = (x[a:b].transpose(0, 1) for x in (q, k, v))
        mixed.append(F.scaled_dot_product_attention(*one, attn_mask=seen, enable_gqa=enable_gqa).transpose(0, 1))
    return torch.cat(mixed)


@pytest.fixture(params=["mask", "varlen"])
def way(request, monkeypatch) -> None:
    """Either form that attention within documents takes; the one of a GPU with a plain kernel in its place."""
    if request.param == "varlen":
        monkeypatch.setattr(documents, "varlen_is_usable", lambda *_: True)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain_varlen)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("lengths", [(5, 27), (1, 1, 30), (16, 16), (32,), (3, 1, 9, 12)])
def test_packed_documents_give_the_logits_of_each_alone(changes, lengths):
    network = keeping_within(**changes)
    both_BL, each = packed(*lengths)
    alone = torch.cat([network(document_BL) for document_BL in each], dim=1)
    assert torch.allclose(network(both_BL), alone, atol=1e-5)
    plain = trained_looking(tiny_model(**changes))  # as exported: told nothing of documents
    assert torch.allclose(torch.cat([plain(document_BL) for document_BL in each], dim=1), alone, atol=1e-5)


@pytest.mark.usefixtures("way")
def test_sequences_of_a_batch_are_apart_and_one_may_begin_within_a_document():
    network = keeping_within()
    rows_BL = TOKENS_BL.clone()
    rows_BL[0, [4, 20]], rows_BL[1] = END, 9
    apart = torch.cat([network(row_BL) for row_BL in rows_BL.split(1)])
    assert torch.allclose(network(rows_BL), apart, atol=1e-5)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("again", [False, True])
def test_no_gradient_leaks_across_documents_or_from_the_future(again):
    network = keeping_within(kv_groups=2, width=64)
    network.model.checkpoint_activations = again
    both_BL, _ = packed(10, 22)
    embedded = network.model.embed_tokens(both_BL).detach().requires_grad_()
    network.model.embed_tokens.forward = lambda _: embedded
    network(both_BL)[:, 15].sum().backward()
    reach_L = embedded.grad.abs().sum(dim=(0, 2))
    assert torch.all(reach_L[10:16] > 0)
    assert torch.all(reach_L[:10] == 0)
    assert torch.all(reach_L[16:] == 0)


def test_without_it_and_within_a_single_document_nothing_changes():
    plain, within = trained_looking(tiny_model()), keeping_within()
    tokens_BL = TOKENS_BL.masked_fill(TOKENS_BL == END, END + 1)
    assert plain.model._documents(tokens_BL) is None
    assert torch.allclose(plain(tokens_BL), within(tokens_BL), atol=1e-5)
    assert plain.state_dict().keys() == within.state_dict().keys()


def test_in_bf16_the_mask_is_of_the_precision_of_attention():
    network = keeping_within()
    with torch.autocast("cpu", torch.bfloat16):
        assert network.model._documents(TOKENS_BL).mask_B1LL.dtype == torch.bfloat16
        loss = network.loss(TOKENS_BL[:, :-1], TOKENS_BL[:, 1:])
    loss.backward()
    assert math.isfinite(loss.item())
    assert network.model._documents(TOKENS_BL).mask_B1LL.dtype == torch.float32


def test_the_kernel_of_a_gpu_is_only_for_half_precision_there():
    assert not documents.varlen_is_usable(torch.device("cpu"), torch.bfloat16, 64)
    assert not documents.varlen_is_usable(torch.device("cuda"), torch.float32, 64)
    assert not documents.varlen_is_usable(torch.device("cuda"), torch.bfloat16, 512)


def test_pytorchs_kernel_takes_what_it_is_given(monkeypatch):
    monkeypatch.setattr(documents, "varlen_is_usable", lambda *_: True)
    token_BL, _ = packed(5, 27)
    found = within_documents(token_BL, END, torch.bfloat16, 64)
    assert found.starts_N1.tolist() == [0, 5, 32]
    with torch.device("meta"):
        q_BHLS = torch.empty(1, 4, 32, 64, dtype=torch.bfloat16)
        k_BKLS = v_BKLS = torch.empty(1, 2, 32, 64, dtype=torch.bfloat16)
        mixed = documents.attend(q_BHLS, k_BKLS, v_BKLS, found._replace(starts_N1=found.starts_N1.to("meta")))
    assert mixed.shape == q_BHLS.shape


def test_the_exported_folder_is_a_plain_model(tmp_path, tokens):
    network = keeping_within()
    save_model(tmp_path, network, tokens.tokenizer_file, END)
    again, _, end = load_model(tmp_path)
    assert (again.config, end) == (tiny_model(), END)
    document_BL = packed(20)[0]
    assert torch.allclose(again(document_BL), network(document_BL), atol=1e-5)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("end", [None, END])
@pytest.mark.parametrize("products", [0, 32])
def test_a_window_is_all_that_its_blocks_see(end, products):
    network = trained_looking(tiny_model(depth=3, window=6, document_end=end))
    network.model.attend_by_products(products)
    both_BL, _ = packed(20, 12)
    for layer, first in ((0, 10), (1, 0), (2, 0)):
        x_BLD = network.model.embed(both_BL).detach().requires_grad_()
        network.model.through(x_BLD, [layer], network.model._documents(both_BL))[:, 15].sum().backward()
        assert x_BLD.grad.abs().sum(dim=(0, 2)).nonzero().flatten().tolist() == list(range(first, 16))
    x_BLD = network.model.embed(both_BL).detach().requires_grad_()
    network.model.through(x_BLD, [0], network.model._documents(both_BL))[:, 22].sum().backward()
    assert x_BLD.grad.abs().sum(dim=(0, 2)).nonzero().flatten().tolist() == list(range(17 if end is None else 20, 23))


def test_all_ways_of_keeping_within_a_window_agree_and_a_wide_one_is_none(monkeypatch):
    network = trained_looking(tiny_model(depth=4, window=6, kv_groups=2, width=64))
    found = [network(TOKENS_BL)]
    network.model.attend_by_products(32)
    found.append(network(TOKENS_BL))
    network.model.attend_by_products(0)
    monkeypatch.setattr(documents, "varlen_is_usable", lambda *_: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain_varlen)
    found.append(network(TOKENS_BL))
    plain, wide = (trained_looking(tiny_model(depth=4, window=w, kv_groups=2, width=64)) for w in (0, 32))
    assert not torch.allclose(found[0], plain(TOKENS_BL), atol=1e-3)
    assert all(torch.allclose(found[0], other, atol=1e-5) for other in found[1:])
    assert torch.equal(plain(TOKENS_BL), wide(TOKENS_BL))


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler looks at what it warns of
def test_blocks_that_see_all_and_those_that_see_a_window_are_compiled_once(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = (trained_looking(tiny_model(depth=4, window=6)) for _ in range(2))
    compiled.model.compile_blocks()
    for network in (plain, compiled):
        network.model.attend_by_products(32)
    losses = [network.loss(TOKENS_BL[:, :-1], TOKENS_BL[:, 1:]) for network in (plain, compiled)]
    assert torch.allclose(*losses, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("changes", [{"window": -1}, {"window": 8, "mixer": "conv"}, {"window": 8, "mask_token": 3}])
def test_windows_are_for_decoders_with_attention(changes):
    with pytest.raises(ConfigError, match="it is for decoders with attention"):
        tiny_model(**changes)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's compiler looks at it itself
def test_compiled_blocks_keep_within_documents_too(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    plain, compiled = keeping_within(), keeping_within()
    compiled.model.compile_blocks()
    for lengths in ((5, 27), (16, 16), (3, 9, 20)):
        token_BL, _ = packed(*lengths)
        losses = [network.loss(token_BL[:, :-1], token_BL[:, 1:]) for network in (plain, compiled)]
        assert torch.allclose(*losses, atol=1e-6)
        for loss in losses:
            loss.backward()
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("sees", ["all", "what came before", "its document"])
def test_attention_by_products_has_the_values_and_gradients_of_pytorchs(kv_heads, sees):
    chance = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 6, 3), (2, kv_heads, 6, 3), (2, kv_heads, 6, 3))
    inputs = [torch.randn(shape, generator=chance, dtype=torch.float64, requires_grad=True) for shape in shapes]
    found = within_documents(torch.tensor([[1, 2, END, 3, 4, 5], [1, END, END, 3, 4, 5]]), END, torch.float64, 3)
    within = found if sees == "its document" else None

    def mixed(*qkv, by_products=True):
        return documents.attend(*qkv, within, by_products=by_products, causal=sees != "all")

    assert torch.allclose(mixed(*inputs), mixed(*inputs, by_products=False))
    assert torch.autograd.gradcheck(mixed, inputs)
