from dataclasses import replace

import pytest

from budgetlm.config import study_config
from budgetlm.passport import identify
from budgetlm.recipe.oracle import expected_peak_bytes, expected_speed
from budgetlm.recipe.scale import miniature
from budgetlm.records import read_records
from budgetlm.search.plan import Plan, load_plan
from budgetlm.search.rehearse import guessed_plan
from budgetlm.search.world import guessed_calibration, world_of
from budgetlm.train.config import as_dict, run_config_from
from budgetlm.train.memory import HEAP_PRICES, HEAP_PRICES_IN_BF16
from budgetlm.train.schedule import ScheduleConfig


def test_a_plan_learns_memory_from_the_studys_own_runs_and_is_the_same_when_loaded_again(searched):
    plan = load_plan(searched.folder)
    assert plan.world.memory.prices == pytest.approx(HEAP_PRICES if plan.world.precision == "fp32" else HEAP_PRICES_IN_BF16)
    record = replace(read_records(searched.folder)[0], steps=9)
    config = run_config_from(record.config)
    measured = round(5 * expected_peak_bytes(config, plan.world))
    learnt = plan.learning([replace(record, peak_bytes=measured)] * 5)
    assert expected_peak_bytes(config, learnt.world) > 2 * expected_peak_bytes(config, plan.world)
    assert expected_peak_bytes(config, learnt.world) == pytest.approx(measured, rel=0.3)
    learnt.save(searched.folder)
    assert load_plan(searched.folder).world == learnt.world
    assert plan.learning([replace(record, peak_bytes=0)]).world.memory == plan.world.memory


def test_speed_is_learnt_at_the_batch_that_was_really_read(searched):
    plan, record = load_plan(searched.folder), replace(read_records(searched.folder)[0], steps=50)
    config = run_config_from(record.config)
    whole = replace(record, tokens=50 * config.batch_tokens)
    larger = as_dict(replace(config, batch_sequences=4 * config.batch_sequences, schedule=ScheduleConfig(batch_ramp=1.0)))
    assert plan.learning([replace(whole, config=larger)]).world.speed == plan.learning([whole]).world.speed
    assert plan.learning([replace(whole, tokens=10 * whole.tokens)]).world.speed != plan.learning([whole]).world.speed


def test_what_a_study_file_says_of_training_reaches_every_run(searched, tokens):
    table = {
        "budget": {"hours": 1},
        "train": {
            "matmul": "medium",
            "precision": "fp8",
            "attention": "products",
            "compile": "graphs",
            "checkpoint_activations": "off",
        },
        "model": {"document_attention": True},
    }
    config, passport = study_config(table), replace(identify("cpu"), fp32_gflops=50.0, bf16_gflops=100.0)
    world = world_of(config, passport, tokens, guessed_calibration(config, passport))
    run = miniature(load_plan(searched.folder).default, 60.0, 960.0, world)
    assert (run.matmul, run.precision, run.compile, run.cuda_graphs) == ("medium", "fp8", True, True)
    assert run.products_length == run.model.context_length
    assert run.model.document_end == tokens.facts.end_of_text
    assert world.checkpoint_activations == "off"


def planned(tokens, rung: float, **changes) -> Plan:
    """The plan of a study of so long a cheapest rung, with more validation text than it can use."""
    budget = {"hours": 64 * rung / 3600, "target_hours": 4 * rung / 3600}
    search = {"least_rung_seconds": rung}
    config = study_config({"budget": budget, "search": search, "data": {"vocab_size": 320}, **changes})
    facts = replace(tokens.facts, tokens={"train": 10**9, "validation": 10**8}, mask=1)
    return guessed_plan(config, replace(identify("cpu"), fp32_gflops=50.0), replace(tokens, facts=facts))


def test_the_validation_sample_is_no_larger_than_tells_recipes_apart_and_its_rung_can_pay_for(tokens):
    assert planned(tokens, 600.0).world.eval_tokens == planned(tokens, 6000.0).world.eval_tokens == 80_000
    assert planned(tokens, 6000.0, model={"objective": "mlm"}).world.eval_tokens > 5 * 80_000
    short = planned(tokens, 5.0)
    run = miniature(short.default, 5.0, 20.0, short.world)
    assert 0.019 < short.world.eval_tokens / (3 * expected_speed(run, short.world)) / run.seconds <= 0.02
    assert planned(tokens, 600.0, train={"eval_tokens": 4096}).world.eval_tokens == 4096
