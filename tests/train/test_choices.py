from dataclasses import replace

import pytest
import torch

from budgetlm.budget.clock import Clock, ManualClock
from budgetlm.passport import identify
from budgetlm.train import choices
from budgetlm.train.choices import choose_products, choose_threads
from budgetlm.train.step import Stepper
from tests.conftest import tiny_model, tiny_run

PASSPORT = replace(identify("cpu"), fp32_gflops=50.0, bf16_gflops=0.5, threads=8)
LONG = 1000.0


@pytest.fixture
def slower(monkeypatch):
    """Makes steps take no time but that which a function says: of whether attention is by products, the length, the threads."""
    clock = ManualClock()

    def take(seconds_of):
        def step(self, rows, lr):
            length = self.config.model.context_length // self.pieces
            products = self.network.model.layers[0].self_attn.products_up_to >= length
            clock.move(seconds_of(products, length, torch.get_num_threads()))
            return 1.0

        monkeypatch.setattr(Stepper, "step", step)
        monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.update(now=count))
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads["now"])
        return clock

    threads = {"now": 8}
    return take


@pytest.mark.parametrize(("faster_at", "chosen"), [((), 0), ((8,), 8), ((32,), 32), ((8, 32), 32)])
def test_products_are_taken_up_to_the_length_at_which_they_are_clearly_faster(slower, tmp_path, faster_at, chosen):
    clock = slower(lambda products, length, _: 0.009 if products and length in faster_at else 0.01)
    assert choose_products(tiny_run(steps=1), PASSPORT, clock, tmp_path, LONG) == chosen


def test_what_is_hardly_faster_is_not_taken(slower, tmp_path):
    clock = slower(lambda products, *_: 0.0098 if products else 0.01)
    assert choose_products(tiny_run(steps=1), PASSPORT, clock, tmp_path, LONG) == 0


@pytest.mark.parametrize(("best", "chosen"), [(8, 8), (4, 4), (1, 1)])
def test_threads_are_halved_as_long_as_that_is_clearly_faster(slower, tmp_path, best, chosen):
    clock = slower(lambda _products, _length, threads: 0.01 * max(threads / best, best / threads))
    assert choose_threads(tiny_model(), PASSPORT, clock, tmp_path, LONG) == chosen
    assert torch.get_num_threads() == 8


def test_an_answer_is_remembered_for_the_machine(slower, tmp_path):
    clock = slower(lambda products, *_: 0.005 if products else 0.01)
    config = tiny_run(steps=1)
    assert choose_products(config, PASSPORT, clock, tmp_path, LONG) == 32
    before = clock.now()
    assert choose_products(config, PASSPORT, clock, tmp_path, LONG) == 32
    assert clock.now() == before
    choose_products(config, replace(PASSPORT, threads=4), clock, tmp_path, LONG)
    assert clock.now() > before


@pytest.mark.parametrize("rung", [0.5, 2.0, 15.0, 60.0, LONG])
def test_a_choice_takes_its_share_of_a_rung_or_is_left(slower, tmp_path, rung):
    clock = slower(lambda products, *_: 0.005 if products else 0.01)
    chosen = choose_products(tiny_run(steps=1), PASSPORT, clock, tmp_path, rung)
    assert clock.now() <= 0.006 * rung + 4 * 0.01  # and the steps by which it is seen that there is no time
    assert chosen == (32 if rung > 30 else 0)
    assert bool(list(tmp_path.rglob("*.json"))) == (rung > 30)  # what was not measured is not remembered


def test_real_steps_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "MOST_TURNS", 3)
    passport = replace(PASSPORT, threads=torch.get_num_threads())
    assert choose_products(tiny_run(steps=1), passport, Clock(), tmp_path, LONG) in (0, 8, 32)
    assert choose_threads(tiny_model(), replace(passport, threads=2), Clock(), tmp_path, LONG) in (1, 2)
    torch.set_num_threads(passport.threads)
