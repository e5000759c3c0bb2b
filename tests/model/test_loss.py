import math

import pytest
import torch
import torch.nn.functional as F

from budgetlm.model.footprint import LOGIT_ROWS
from budgetlm.model.loss import head_loss


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    count, width, vocabulary = 2 * LOGIT_ROWS + 7, 24, 300
    features = torch.randn(count, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    return features, weight, torch.randint(vocabulary, (count,), generator=generator)


def test_loss_and_gradients_are_those_of_cross_entropy_on_all_logits(case):
    features, weight, target = case
    for scale in (1.0, 0.25):  # a micro-batch's share of the batch
        true = torch.autograd.grad(scale * F.cross_entropy(features @ weight.T, target), (features, weight))
        loss = scale * head_loss(features, weight, target)
        assert loss.item() == pytest.approx(scale * F.cross_entropy(features @ weight.T, target).item(), rel=1e-5)
        for ours, theirs in zip(torch.autograd.grad(loss, (features, weight)), true, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)


def test_each_target_has_its_own_loss_where_no_mean_is_wanted(case):
    features, weight, target = case
    with torch.no_grad():
        each = head_loss(features, weight, target, reduction="none")
        assert torch.allclose(each, F.cross_entropy(features @ weight.T, target, reduction="none"), atol=1e-5)
        assert each.mean().item() == pytest.approx(head_loss(features, weight, target).item(), rel=1e-5)


def test_gradients_agree_with_small_differences():
    torch.manual_seed(0)
    features, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    target = torch.tensor([0, 6, 3, 3, 1])
    torch.autograd.backward(head_loss(features, weight, target))
    step = 1e-2
    for tensor in (features, weight):
        moved = tensor.detach().clone()
        moved[2, 1] += step
        other = tensor.detach().clone()
        other[2, 1] -= step
        pair = [(t, weight) if tensor is features else (features, t) for t in (moved, other)]
        above, below = (head_loss(f, w, target).item() for f, w in pair)
        assert tensor.grad[2, 1].item() == pytest.approx((above - below) / (2 * step), rel=0.02, abs=1e-4)


def test_a_target_held_for_impossible_costs_a_finite_loss_and_a_broken_model_is_still_seen():
    features, weight = torch.ones(1, 2), torch.tensor([[500.0, 0.0], [-500.0, 0.0]])
    assert 80 < head_loss(features, weight, torch.tensor([1])).item() < 100
    assert math.isnan(head_loss(features * math.nan, weight, torch.tensor([1])).item())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_under_autocast_its_products_are_in_bf16_and_all_else_is_as_exact_as_pytorchs(case, precision):
    features, weight, target = case
    features = features.detach().to(precision).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(features, weight, target)
        theirs = F.linear_cross_entropy(features, weight, target)
        each = head_loss(features, weight, target, reduction="none")
    exact = torch.autograd.grad(F.cross_entropy(features.float() @ weight.T, target), (features, weight))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-3)
    assert each.mean().item() == pytest.approx(theirs.item(), rel=1e-3)
    pairs = zip(
        torch.autograd.grad(loss, (features, weight)), torch.autograd.grad(theirs, (features, weight)), exact, strict=True
    )
    for ours, pytorchs, true in pairs:
        assert ours.dtype == true.dtype
        assert (ours - true).float().norm() <= 1.1 * (pytorchs - true).float().norm()
