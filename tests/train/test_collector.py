import gc
import weakref

import pytest

from budgetlm.budget.clock import Meter
from budgetlm.train import loop
from budgetlm.train.collector import collector_held
from budgetlm.train.loop import train
from tests.conftest import tiny_model, tiny_run
from tests.train.test_loop import LABEL


@pytest.fixture
def collections():
    """The generations of all collections that are done."""
    done: list[int] = []

    def see(phase, facts):
        if phase == "stop":
            done.append(facts["generation"])

    gc.callbacks.append(see)
    yield done
    gc.callbacks.remove(see)


@pytest.fixture(params=[True, False], ids=["on", "off"])
def enabled(request):
    """Whether the collector was on before."""
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_the_collector_is_as_it_was_whatever_happened(enabled):
    with pytest.raises(KeyError), collector_held():
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
        raise KeyError
    assert gc.isenabled() is enabled
    assert gc.get_freeze_count() == 0


def test_what_others_have_set_apart_stays_so():
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with collector_held():
            assert gc.get_freeze_count() == pytest.approx(count, rel=0.01)  # of which some may end meanwhile
        assert gc.get_freeze_count() == pytest.approx(count, rel=0.01)
    finally:
        gc.unfreeze()


def test_a_run_is_collected_for_between_steps_only_and_leaves_nothing_to_collect(tokens, clock, monkeypatch, collections):
    monkeypatch.setattr(loop, "COLLECTED_EVERY", 3)
    steps, held = [], []
    plain = loop.Stepper.step

    def step(stepper, *arguments):
        held[:] = [weakref.ref(stepper)]
        before = len(collections)
        loss = plain(stepper, *arguments)
        steps.append((before, len(collections)))
        return loss

    monkeypatch.setattr(loop.Stepper, "step", step)
    model = tiny_model(vocab_size=tokens.facts.vocab_size)
    del collections[:]
    gc.disable()
    try:
        train(tiny_run(model=model, steps=8), LABEL, tokens, Meter(clock))
        assert held[0]() is None
    finally:
        gc.enable()
    assert [before for before, _ in steps] == [after for _, after in steps] == [0, 0, 0, 1, 1, 1, 2, 2]
