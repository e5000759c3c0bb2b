from dataclasses import replace

import pytest

from budgetlm.recipe.scale import expected_peak_bytes
from budgetlm.records import read_records
from budgetlm.search.plan import load_plan
from budgetlm.train.config import run_config_from
from budgetlm.train.memory import HEAP_PRICE, run_memory


def test_a_plan_learns_memory_from_the_studys_own_runs_and_is_the_same_when_loaded_again(searched):
    plan = load_plan(searched.folder)
    assert plan.world.memory.prices == pytest.approx([HEAP_PRICE] * 3)
    record = replace(read_records(searched.folder)[0], steps=9)
    config = run_config_from(record.config)
    measured = 10 * run_memory(config).peak
    learnt = plan.learning([replace(record, peak_bytes=measured)] * 5)
    assert expected_peak_bytes(config, plan.world) < 0.7 * measured < expected_peak_bytes(config, learnt.world)
    learnt.save(searched.folder)
    assert load_plan(searched.folder).world == learnt.world
    assert plan.learning([replace(record, peak_bytes=0)]).world.memory == plan.world.memory
