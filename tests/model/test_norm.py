import pytest
import torch
import torch.nn.functional as F

from budgetlm.model.norm import ExactNorm, Norm


@pytest.mark.parametrize("kind", [Norm, ExactNorm])
@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 24), (2, 3, 4, 24)])
def test_output_and_gradients_are_pytorchs(kind, shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator, requires_grad=True)
    norm, gradient = kind(24, eps=1e-6), torch.randn(*shape, generator=generator)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
    wanted = F.rms_norm(x, (24,), norm.weight, 1e-6)
    assert torch.allclose(norm(x), wanted, atol=1e-6)
    true = torch.autograd.grad(wanted, (x, norm.weight), gradient)
    for ours, theirs in zip(torch.autograd.grad(norm(x), (x, norm.weight), gradient), true, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_vector_of_zeros_stays_zero_and_has_a_finite_gradient():
    x = torch.zeros(2, 8, requires_grad=True)
    out = Norm(8, eps=1e-6)(x)
    torch.autograd.backward(out.sum())
    assert torch.equal(out, torch.zeros(2, 8))
    assert torch.isfinite(x.grad).all()


def test_under_autocast_a_norm_is_rounded_once_and_an_exact_one_never():
    x = torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        exact = ExactNorm(8, eps=1e-6)(x)
        rounded, of_rounded = Norm(8, eps=1e-6)(x), Norm(8, eps=1e-6)(x.bfloat16())
    assert torch.allclose(exact, F.rms_norm(x, (8,), eps=1e-6), atol=1e-6)
    assert rounded.dtype == of_rounded.dtype == torch.bfloat16
    assert not torch.equal(rounded.float(), exact)
    assert torch.allclose(rounded.float(), F.rms_norm(x, (8,)), atol=0.01)


def test_a_rounded_norm_has_the_gradients_of_an_exact_one_to_the_precision_of_bf16():
    x, norm, gradient = torch.randn(64, 24, requires_grad=True), Norm(24, eps=1e-6), torch.randn(64, 24)
    true = torch.autograd.grad(norm(x), (x, norm.weight), gradient)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    for ours, exact in zip(torch.autograd.grad(out, (x, norm.weight), gradient.bfloat16()), true, strict=True):
        assert ours.dtype == torch.float32
        assert torch.linalg.vector_norm(ours - exact) < 0.01 * torch.linalg.vector_norm(exact)


def test_the_gradient_is_that_of_mathematics():
    norm = Norm(6, eps=1e-6).double()
    norm.weight.data.normal_()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _weight: norm(x), (x, norm.weight))
