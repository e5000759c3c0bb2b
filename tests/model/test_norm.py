import pytest
import torch
import torch.nn.functional as F

from budgetlm.model.norm import HeadNorm, Norm


@pytest.mark.parametrize("kind", [Norm, HeadNorm])
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


def test_in_bf16_a_head_norm_keeps_the_precision_of_its_input():
    with torch.autocast("cpu", torch.bfloat16):
        assert HeadNorm(8, eps=1e-6)(torch.ones(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
