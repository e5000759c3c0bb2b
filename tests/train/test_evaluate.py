import math

import numpy as np
import pytest
import torch

from budgetlm.data.batches import validation_windows
from budgetlm.errors import EvaluationError
from budgetlm.model.transformer import build
from budgetlm.train.evaluate import bits_per_byte, evaluate
from tests.conftest import tiny_model


def test_a_uniform_guess_costs_the_logarithm_of_the_vocabulary_for_each_token():
    targets = torch.tensor([[1, 2, 0]])
    bytes_V = torch.tensor([0, 2, 6])
    nats = torch.full((1, 3), math.log(256))
    assert bits_per_byte(nats, targets, bytes_V) == pytest.approx(2 * 8 / 8)  # two tokens of 8 bits over 8 bytes


def test_a_sample_without_bytes_is_refused():
    with pytest.raises(EvaluationError, match="no target"):
        bits_per_byte(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.long), torch.tensor([0, 1]))


def test_the_micro_batch_does_not_change_the_result(tokens):
    network = build(tiny_model(vocab_size=tokens.facts.vocab_size), 0)
    windows = validation_windows(tokens.split("validation"), 32, 1024)
    one, many = (evaluate(network, windows, tokens.bytes_V, micro_batch=m) for m in (1, 32))
    assert one == pytest.approx(many, rel=1e-6)
    assert np.isfinite(one)
