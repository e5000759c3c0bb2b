import copy
import functools

import pytest
import torch
import torch.nn.functional as F

from budgetlm.model import documents, loss
from budgetlm.model.transformer import LanguageModel, build
from tests.conftest import tiny_model

TOKENS_BL = torch.randint(320, (3, 32), generator=torch.Generator().manual_seed(0))


def trained_looking(model) -> LanguageModel:
    """A model whose blocks do something: fresh ones are the identity."""
    network = build(model, seed=1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    return network


@pytest.mark.parametrize(
    "changes", [{}, {"kv_groups": 2, "tie_embeddings": False, "width": 64}, {"mixer": "lstm"}, {"mixer": "conv"}]
)
def test_no_position_sees_the_future(changes):
    network = trained_looking(tiny_model(**changes))
    embedded = network.model.embed_tokens(TOKENS_BL).detach().requires_grad_()
    network.model.embed_tokens.forward = lambda _: embedded
    network(TOKENS_BL)[:, 10].sum().backward()
    reach_L = embedded.grad.abs().sum(dim=(0, 2))
    assert torch.all(reach_L[:11] > 0)
    assert torch.all(reach_L[11:] == 0)


def test_the_same_seed_gives_the_same_weights_and_another_gives_others():
    first, again, other = build(tiny_model(), 7), build(tiny_model(), 7), build(tiny_model(), 8)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_the_loss_is_the_cross_entropy_of_the_logits_chunked_or_not(monkeypatch):
    network = trained_looking(tiny_model())
    inputs, targets = TOKENS_BL[:, :-1], TOKENS_BL[:, 1:]
    wanted = F.cross_entropy(network(inputs).flatten(0, 1), targets.flatten())
    assert torch.allclose(network.loss(inputs, targets), wanted, atol=1e-6)
    assert torch.allclose(network.loss(inputs, targets, reduction="none").mean(), wanted, atol=1e-6)
    wanted.backward()
    plain = network.model.layers[0].mlp.up_proj.weight.grad.clone()
    network.zero_grad()
    monkeypatch.setattr(loss, "LOGIT_ROWS", 5)
    chunked = network.loss(inputs, targets)
    chunked.backward()
    assert torch.allclose(chunked, wanted, atol=1e-6)
    assert torch.allclose(network.model.layers[0].mlp.up_proj.weight.grad, plain, atol=1e-6)


def test_a_fresh_model_guesses_about_uniformly_at_any_depth():
    for depth in (1, 8):
        loss = build(tiny_model(depth=depth), 0).loss(TOKENS_BL[:, :-1], TOKENS_BL[:, 1:])
        assert abs(loss.item() - torch.log(torch.tensor(320.0)).item()) < 0.1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointed_activations_give_the_same_gradients_and_keep_less(precision):
    gradients, kept = [], []
    for again in (False, True):
        network = trained_looking(tiny_model(depth=4, kv_groups=2))
        network.model.checkpoint_activations = again
        sizes = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t),  # noqa: B023
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        ):
            loss = network.loss(TOKENS_BL[:, :-1], TOKENS_BL[:, 1:])
        kept.append(sum(sizes))
        loss.backward()
        gradients.append([weight.grad for weight in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < 0.3 * kept[0]


@pytest.mark.parametrize("changes", [{}, {"kv_groups": 2, "width": 64}, {"document_end": 7, "kv_groups": 4, "width": 64}])
@pytest.mark.parametrize("again", [False, True])
def test_attention_by_products_trains_the_same_up_to_its_length_and_leaves_evaluation_alone(monkeypatch, changes, again):
    lengths, products = [], documents._attend_by_products
    monkeypatch.setattr(
        documents, "_attend_by_products", lambda q, *rest, **how: lengths.append(q.shape[2]) or products(q, *rest, **how)
    )

    def gradients(up_to: int, tokens_BL):
        network = trained_looking(tiny_model(**changes))
        network.model.attend_by_products(up_to)
        network.model.checkpoint_activations = again
        network.loss(tokens_BL[:, :-1], tokens_BL[:, 1:]).backward()
        return [weight.grad for weight in network.parameters()]

    length = TOKENS_BL.shape[1] - 1
    for other, usual in zip(gradients(length, TOKENS_BL), gradients(0, TOKENS_BL), strict=True):
        assert torch.allclose(other, usual, rtol=1e-3, atol=1e-6)
    assert set(lengths) == {length}
    lengths.clear()
    gradients(length - 1, TOKENS_BL)
    assert not lengths
    gradients(length - 1, TOKENS_BL[:, :-1])
    assert set(lengths) == {length - 1}
    lengths.clear()
    network = trained_looking(tiny_model(**changes))
    network.model.attend_by_products(length)
    with torch.no_grad():
        network(TOKENS_BL)
    assert not lengths


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's compiler looks at it itself
def test_compiled_blocks_share_their_code_train_the_same_and_leave_evaluation_and_weights_alone(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = trained_looking(tiny_model(depth=3)), trained_looking(tiny_model(depth=3))
    compiled.model.compile_blocks()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    inputs, targets = TOKENS_BL[:, :-1], TOKENS_BL[:, 1:]
    for network in (plain, compiled):
        network.loss(inputs, targets).backward()
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    with torch.no_grad():
        assert torch.equal(compiled.loss(inputs[:1], targets[:1]), plain.loss(inputs[:1], targets[:1]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert copy.deepcopy(compiled).state_dict().keys() == plain.state_dict().keys()
