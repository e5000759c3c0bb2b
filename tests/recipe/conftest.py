import pytest

from budgetlm.recipe.world import World
from budgetlm.train.throughput import SpeedModel, Work


@pytest.fixture
def world() -> World:
    """A device of 50 GFLOP/s with an overhead that small models feel."""
    return World(
        vocab_size=1024,
        context_length=64,
        train_tokens=10**9,
        eval_tokens=1024,
        full_eval_tokens=4096,
        micro_batch_tokens=1024,
        precision="fp32",
        bf16_is_fast=False,
        compile="off",
        device="cpu",
        memory_bytes=2**34,
        clip=1.0,
        speed=SpeedModel(Work(2e-11, 1e-9, 1e-9, 2e-9, 1e-3, 0.0, 4e-10, 0.0, 2e-11, 0.0)),
    )
