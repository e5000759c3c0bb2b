import itertools
from dataclasses import replace

import pytest
import torch

from budgetlm.budget.clock import Clock, ManualClock
from budgetlm.passport import identify
from budgetlm.train import choices
from budgetlm.train.calibrate import calibrate
from budgetlm.train.compilation import EXPECTED_IN_HALVES, Compilation
from budgetlm.train.step import Stepper
from tests.conftest import tiny_model, tiny_run

SHAPES = [tiny_model(depth=1, width=width) for width in (16, 32, 48, 256)]


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Calibrates this machine within a long rung, a millisecond a measurement, with so much memory."""
    monkeypatch.setattr("budgetlm.train.calibrate.SECONDS_A_MEASUREMENT", 0.001)
    passport = replace(identify("cpu"), fp32_gflops=50.0, bf16_gflops=0.5)

    def run(memory_bytes=10**10):
        limited = replace(passport, memory_bytes=memory_bytes)
        return calibrate(SHAPES, limited, ("adamw", "muon"), Clock(), tmp_path, rung_seconds=2000.0)

    return run


def test_all_shapes_are_timed_once_and_remembered_for_the_same_memory(measure):
    first = measure()
    assert sorted((p.model.width, p.optimizer) for p in first.points) == [
        (16, "adamw"),
        (16, "muon"),
        (32, "adamw"),
        (48, "adamw"),
        (256, "adamw"),
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


@pytest.mark.parametrize(
    "says",
    [
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 786432 bytes.",
        "could not create a primitive",
    ],
)
def test_a_shape_that_runs_out_of_memory_all_the_same_counts_as_one_that_does_not_fit(measure, monkeypatch, says):
    plain = Stepper.step

    def step(self, rows, lr):
        if self.config.model.width == 48:
            raise RuntimeError(says)
        return plain(self, rows, lr)

    monkeypatch.setattr(Stepper, "step", step)
    assert {p.model.width for p in measure().points if not p.tokens_per_second} == {48}


def test_any_other_error_of_a_measurement_is_one(measure, monkeypatch):
    def step(self, rows, lr):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(RuntimeError, match="a bug"):
        measure()


@pytest.fixture
def foretold(tmp_path, monkeypatch):
    """Calibrates a machine on which bf16 is fast, and steps take no time but what a function says of their runs."""
    passport = replace(identify("cpu"), fp32_gflops=0.1, bf16_gflops=0.4, memory_bytes=10**10)
    clock = ManualClock()

    def run(rung_seconds, seconds_of):
        def step(self, rows, lr):
            clock.move(rows.size * seconds_of(self.config))
            return 1.0

        monkeypatch.setattr(Stepper, "step", step)
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        return calibrate(SHAPES, passport, ("adamw", "muon"), clock, tmp_path, rung_seconds=rung_seconds)

    return run


def usual_speed(config) -> float:
    return 1e-4 * (2 if config.precision == "fp32" else 1) / (1.5 if config.compile else 1)


@pytest.mark.parametrize("rung", [15.0, 60.0, 600.0, 6000.0])
def test_all_of_it_takes_at_most_three_per_cent_of_the_longest_rung(foretold, rung):
    found = foretold(rung, usual_speed)
    assert 0 < found.seconds <= 0.03 * rung


def test_what_there_is_no_time_to_measure_is_as_it_is_elsewhere(foretold, monkeypatch):
    monkeypatch.setattr("budgetlm.train.compilation.compiler", lambda: "/usr/bin/c++")
    found = foretold(1.0, usual_speed)
    assert (found.precision, found.micro_batch_tokens, found.compilation) == ("bf16", 4096, EXPECTED_IN_HALVES)
    assert found.products_up_to == SHAPES[1].context_length
    assert len(found.points) == 1


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({}, "bf16"),
        ({"bf16": 3.0, "bf16-master": 3.0}, "fp32"),
        ({"bf16-master": 0.98}, "bf16"),
        ({"bf16-master": 0.9}, "bf16-master"),
    ],
)
def test_the_fastest_precision_is_taken_and_a_copy_of_the_weights_only_where_it_clearly_pays(foretold, speeds, chosen):
    of = {"fp32": 2.0, "bf16": 1.0, "bf16-master": 1.0, **speeds}
    assert foretold(6000.0, lambda config: 1e-4 * of[config.precision]).precision == chosen


def test_a_machine_that_gets_faster_meanwhile_makes_no_copies_of_weights_look_faster(foretold):
    steps = itertools.count()

    def seconds_of(config):
        return 1e-4 * 0.99 ** next(steps) * (2 if config.precision == "fp32" else 1)

    assert foretold(6000.0, seconds_of).precision == "bf16"


def test_what_compiling_gains_is_tried_where_a_rung_is_long_enough_for_it(foretold, monkeypatch):
    monkeypatch.setattr("budgetlm.train.compilation.compiler", lambda: "/usr/bin/c++")
    found = foretold(6000.0, usual_speed)
    assert found.compilation.gain == pytest.approx(1.5)
    assert found.compilation.seconds < 1


def test_where_compiling_does_not_work_nothing_is_expected_of_it(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise torch._dynamo.exc.TorchDynamoException("no compiler")

    monkeypatch.setattr(choices, "_step_of", lambda config, _: (None, refuse if config.compile else lambda: None))
    passport, wanted = replace(identify("cpu"), fp32_gflops=50.0), Compilation(1.3, 25.0)
    found = choices.choose_compilation(tiny_run(steps=1), passport, Clock(), tmp_path, 6000.0, wanted)
    assert not found.pays(1e9)
