import pytest
import torch

from budgetlm.budget.clock import Clock, Meter
from budgetlm.errors import ConfigError
from budgetlm.train.loop import Label, train
from budgetlm.train.numerics import set_matmul
from tests.conftest import tiny_model, tiny_run

LABEL = Label(run="x", kind="rung", trial=0, rung=0, recipe={}, target_seconds=9.0)


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_every_run_states_how_matrices_are_multiplied_whatever_the_one_before_it_wanted(tokens):
    model = tiny_model(vocab_size=tokens.facts.vocab_size)
    for wanted, found in (("medium", "medium"), ("auto", "highest"), ("high", "high"), ("highest", "highest")):
        train(tiny_run(model=model, steps=1, matmul=wanted), LABEL, tokens, Meter(Clock()))
        assert torch.get_float32_matmul_precision() == found


def test_on_a_gpu_fp32_goes_through_tf32_unless_it_is_said_otherwise():
    set_matmul("auto", "cuda")
    assert torch.get_float32_matmul_precision() == "high"
    set_matmul("highest", "cuda")
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_word_that_pytorch_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="Use one of auto, highest, high, medium"):
        tiny_run(steps=1, matmul="low")
