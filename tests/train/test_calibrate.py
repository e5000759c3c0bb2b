from dataclasses import replace

import pytest

from budgetlm.budget.clock import Clock
from budgetlm.passport import identify
from budgetlm.train.calibrate import calibrate
from budgetlm.train.step import Stepper
from tests.conftest import tiny_model

SHAPES = [tiny_model(depth=1, width=width) for width in (16, 32, 48, 256)]


@pytest.fixture
def measure(tmp_path):
    """Calibrates this machine for a millisecond a measurement, with so much memory."""
    passport = replace(identify("cpu"), fp32_gflops=50.0, bf16_gflops=0.5)

    def run(memory_bytes=10**10):
        limited = replace(passport, memory_bytes=memory_bytes)
        return calibrate(SHAPES, limited, ("adamw", "muon"), Clock(), tmp_path, budget_seconds=0.4)

    return run


def test_all_shapes_are_timed_once_and_remembered_for_the_same_memory(measure):
    first = measure()
    assert [(p.model.width, p.optimizer) for p in first.points] == [
        *((width, "adamw") for width in (16, 32, 48, 256)),
        (16, "muon"),
        (256, "muon"),
    ]
    assert all(p.tokens_per_second > 0 for p in first.points)
    assert first.seconds > 0
    again = measure()
    assert again.points == first.points
    assert again.seconds == 0
    assert measure(memory_bytes=9 * 10**9).seconds > 0


def test_shapes_that_do_not_fit_the_memory_are_not_tried(measure):
    points = measure(memory_bytes=8 * 2**20).points
    assert points
    assert 256 not in {p.model.width for p in points}


def test_a_shape_that_runs_out_of_memory_all_the_same_counts_as_one_that_does_not_fit(measure, monkeypatch):
    plain = Stepper.step

    def step(self, rows, lr):
        if self.config.model.width == 48:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 786432 bytes."
            )
        return plain(self, rows, lr)

    monkeypatch.setattr(Stepper, "step", step)
    assert {p.model.width for p in measure().points if not p.tokens_per_second} == {48}


def test_any_other_error_of_a_measurement_is_one(measure, monkeypatch):
    def step(self, rows, lr):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(RuntimeError, match="a bug"):
        measure()
