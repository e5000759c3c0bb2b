from dataclasses import replace

import pytest

from budgetlm.model.footprint import Moment, TrainingMemory
from budgetlm.train.memory import HEAP_PRICES, USUAL_OVERHEAD, MemoryModel, MemoryPoint, run_memory
from tests.conftest import tiny_model, tiny_run

MIB = 2**20
TRUE = MemoryModel((1.2, 0.4), 8.0 * MIB)


def counted(fullest: int, more: int) -> TrainingMemory:
    """So many MiB at the fullest moment, and so many more of kinds that are not held then."""
    return TrainingMemory(Moment(fullest * MIB, 0, 0, 0, 0), Moment(fullest * MIB, 0, 0, more * MIB, 0))


def points(*sizes: tuple[int, int]) -> list[MemoryPoint]:
    return [MemoryPoint(memory, round(TRUE.peak_bytes(memory))) for memory in (counted(*size) for size in sizes)]


KNOWN = points((10, 2), (50, 40), (100, 0), (200, 100), (30, 10), (400, 50), (1, 1), (60, 60))


def test_without_measurements_the_formula_is_believed_as_it_stands():
    memory = counted(10, 20)
    assert MemoryModel.fit([]) == MemoryModel()
    assert MemoryModel.fit([]).peak_bytes(memory) == pytest.approx(memory.peak + USUAL_OVERHEAD)
    assert MemoryModel.fit([], HEAP_PRICES).peak_bytes(memory) > memory.peak + USUAL_OVERHEAD + 10 * MIB


def test_prices_fitted_to_a_few_runs_predict_others():
    fitted = MemoryModel.fit(KNOWN)
    for point in points((40, 3), (150, 80), (80, 20), (1000, 200)):
        assert fitted.peak_bytes(point.counted) == pytest.approx(point.peak_bytes, rel=0.1)


def test_one_odd_measurement_does_not_overturn_the_formula():
    memory = counted(10, 20)
    odd = MemoryModel.fit([MemoryPoint(memory, 3 * memory.peak)])
    assert 1.0 <= odd.prices[0] < 4.0
    assert MemoryModel.fit([*KNOWN, MemoryPoint(counted(10, 0), 1)]).peak_bytes(memory) > 0


def test_an_average_of_the_weights_counts_as_one_more_set_of_them():
    plain = tiny_run(model=tiny_model(width=256), steps=1)
    averaged = run_memory(replace(plain, ema=0.1))
    assert averaged.apart.weights == 2 * run_memory(plain).apart.weights
    assert averaged.peak - run_memory(plain).peak == run_memory(plain).apart.weights


def test_a_step_of_several_passes_counts_gradients_beside_each_but_the_first():
    once = tiny_run(model=tiny_model(width=256), steps=1, batch_sequences=128, micro_batch_sequences=128)
    several = replace(once, batch_sequences=384)
    assert run_memory(several).peak > run_memory(once).peak
    assert run_memory(replace(once, micro_batch_sequences=256)) == run_memory(once)


def test_muons_update_is_a_kind_of_its_own():
    config = tiny_run(model=tiny_model(width=256), steps=1)
    muon = run_memory(replace(config, optimizer=replace(config.optimizer, name="muon")))
    assert muon.apart.update > run_memory(config).apart.update == 0
