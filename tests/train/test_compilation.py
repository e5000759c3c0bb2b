from dataclasses import replace

import pytest
import torch

from budgetlm.budget.clock import Clock, Meter
from budgetlm.errors import ConfigError
from budgetlm.recipe.oracle import compiles, expected_speed
from budgetlm.recipe.scale import miniature
from budgetlm.records import read_records
from budgetlm.search.plan import load_plan
from budgetlm.train import compilation
from budgetlm.train.compilation import EXPECTED, Compilation
from budgetlm.train.loop import Label, train
from tests.conftest import tiny_run

LABEL = Label(run="x", kind="rung", trial=3, rung=1, recipe={"depth": 2}, target_seconds=9.0, passport="here")


def test_a_run_is_compiled_if_it_gets_more_done_that_way_and_not_on_a_cpu_where_nothing_is_gained():
    gains = Compilation(gain=1.25, seconds=30.0)
    assert not gains.pays(150.0)  # 120 s compiled do what 150 s do not compiled
    assert gains.pays(151.0)
    assert not EXPECTED["cpu"].pays(1e9)


def test_compiled_runs_teach_what_compiling_gains_and_costs():
    learnt = Compilation(1.0, 30.0).learning([(1.21, 10.0)] * 3)
    assert learnt.gain == pytest.approx(1.21**0.75)
    assert learnt.seconds == 15.0
    assert Compilation(1.0, 30.0).learning([]) == Compilation(1.0, 30.0)


@pytest.mark.parametrize(("wish", "compiled"), [("auto", (False, True)), ("on", (True, True)), ("off", (False, False))])
def test_rungs_and_final_are_compiled_as_the_study_wishes_or_where_it_pays(searched, wish, compiled):
    plan = load_plan(searched.folder)
    top = plan.target_seconds
    world = replace(plan.world, compile=wish, compilation=Compilation(gain=2.0, seconds=0.75 * top / 2))
    runs = [miniature(plan.default, seconds, top, world) for seconds in (plan.rungs[0], top)]
    assert tuple(run.compile for run in runs) == compiled
    if compiled[1]:
        assert expected_speed(runs[1], world) == pytest.approx(2 * expected_speed(replace(runs[1], compile=False), world))


def test_a_study_learns_from_its_compiled_runs(searched):
    plan, record = load_plan(searched.folder), read_records(searched.folder)[0]
    fast = replace(
        record,
        steps=9,
        config={**record.config, "compile": True},
        tokens_per_second=2 * record.tokens_per_second,
        by_purpose={"compile": 3.0},
    )
    learnt = plan.learning([replace(record, steps=9)] * 5 + [fast] * 5).world.compilation
    assert learnt.gain > 1.5
    assert learnt.seconds < plan.world.compilation.seconds
    assert plan.learning([replace(record, steps=9)] * 5).world.compilation == plan.world.compilation


def test_compiling_is_expected_to_pay_on_a_cpu_only_where_bf16_is_fast_and_there_is_a_compiler(monkeypatch):
    monkeypatch.setattr(compilation, "compiler", lambda: "/usr/bin/c++")
    assert not compilation.expected("cpu", "fp32").pays(1e9)
    assert compilation.expected("cpu", "bf16").pays(300.0)
    monkeypatch.setattr(compilation, "compiler", lambda: "")
    assert not compilation.expected("cpu", "bf16").pays(1e9)


def test_what_has_another_mixer_or_changes_on_the_way_is_compiled_only_if_that_is_asked_for(searched):
    plan = load_plan(searched.folder)
    world = replace(plan.world, compile="auto", compilation=Compilation(gain=2.0, seconds=0.0))
    assert compiles(plan.default, 10.0, world)
    for changes in ({"mixer": "lstm"}, {"compression": "shrink-hidden"}):
        assert not compiles(replace(plan.default, **changes), 10.0, world)
        assert compiles(replace(plan.default, **changes), 10.0, replace(world, compile="on"))


@pytest.mark.parametrize("insists", [False, True])
def test_a_run_goes_on_where_compiling_does_not_work_unless_that_is_insisted_on(tokens, monkeypatch, insists):
    def broken(*_, **__):
        def fail(*_):
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    config = replace(tiny_run(steps=3), compile=True, compile_or_fail=insists)
    if insists:
        with pytest.raises(ConfigError, match="torch.compile does not work here: no compiler. Set `train.compile` to `off`"):
            train(config, LABEL, tokens, Meter(Clock()))
        return
    trained = train(config, LABEL, tokens, Meter(Clock()))
    plain = train(replace(config, compile=False), LABEL, tokens, Meter(Clock()))
    assert trained.notes == ["torch.compile does not work here: no compiler; the run goes on without it"]
    assert trained.record.bpb == plain.record.bpb
