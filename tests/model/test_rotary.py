import pytest
import torch

from budgetlm.model.rotary import rotary_tables, rotate
from tests.conftest import tiny_model

COS_LS, SIN_LS = (table.double() for table in rotary_tables(tiny_model(width=64), 5))
SIZE = COS_LS.shape[1]


def turned(x_BHLS: torch.Tensor) -> torch.Tensor:
    """As complex numbers, one of each pair of the two halves."""
    pairs = torch.complex(*x_BHLS.chunk(2, dim=-1)) * torch.complex(*(t[:, : SIZE // 2] for t in (COS_LS, SIN_LS)))
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def heads(*, head_by_head: bool) -> torch.Tensor:
    x_BLHS = torch.randn(2, 5, 3, SIZE, dtype=torch.float64)
    return x_BLHS.transpose(1, 2).contiguous() if head_by_head else x_BLHS.transpose(1, 2)


@pytest.mark.parametrize("head_by_head", [False, True])
@pytest.mark.parametrize("as_made", [False, True])
def test_a_rotation_is_a_product_of_complex_numbers_and_its_gradient_that_of_mathematics(head_by_head, as_made):
    x_BHLS = heads(head_by_head=as_made).requires_grad_()
    out_BHLS = rotate(x_BHLS, COS_LS, SIN_LS, head_by_head=head_by_head)
    assert torch.allclose(out_BHLS, turned(x_BHLS))
    assert out_BHLS.is_contiguous() == (head_by_head or as_made)
    assert torch.autograd.gradcheck(lambda x: rotate(x, COS_LS, SIN_LS, head_by_head=head_by_head), x_BHLS)


def test_the_gradient_lies_in_memory_token_by_token_however_it_comes():
    for head_by_head in (False, True):
        x_BHLS = heads(head_by_head=False).requires_grad_()
        rotate(x_BHLS, COS_LS, SIN_LS).backward(heads(head_by_head=head_by_head))
        assert x_BHLS.grad.transpose(1, 2).is_contiguous()
