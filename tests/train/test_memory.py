from dataclasses import replace

import pytest

from budgetlm.model.size import TrainingMemory
from budgetlm.train.memory import USUAL_OVERHEAD, MemoryModel, MemoryPoint, run_memory
from tests.conftest import tiny_model, tiny_run

MIB = 2**20
TRUE = MemoryModel((1.1, 1.3, 0.9), 30.0 * MIB)


def counted(weights: int, activations: int, logits: int) -> TrainingMemory:
    return TrainingMemory(weights * MIB, weights * MIB, 2 * weights * MIB, activations * MIB, logits * MIB)


def points(*sizes: tuple[int, int, int]) -> list[MemoryPoint]:
    return [MemoryPoint(memory, round(TRUE.peak_bytes(memory))) for memory in (counted(*size) for size in sizes)]


KNOWN = points((1, 10, 2), (10, 5, 40), (2, 100, 0), (40, 20, 10), (3, 30, 100), (20, 200, 5), (1, 1, 1), (5, 0, 60))


def test_without_measurements_the_formula_is_believed_as_it_stands():
    memory = counted(10, 20, 30)
    assert MemoryModel.fit([]) == MemoryModel()
    assert MemoryModel.fit([]).peak_bytes(memory) == pytest.approx(memory.peak + USUAL_OVERHEAD)


def test_prices_fitted_to_a_few_runs_predict_others():
    fitted = MemoryModel.fit(KNOWN)
    for point in points((4, 50, 3), (15, 10, 10), (1, 2, 80), (100, 500, 200)):
        assert fitted.peak_bytes(point.counted) == pytest.approx(point.peak_bytes, rel=0.1)


def test_one_odd_measurement_does_not_overturn_the_formula():
    memory = counted(10, 20, 30)
    odd = MemoryModel.fit([MemoryPoint(memory, 3 * memory.peak)])
    assert all(1.0 <= price < 4.0 for price in odd.prices)
    assert MemoryModel.fit([*KNOWN, MemoryPoint(counted(10, 0, 0), 1)]).peak_bytes(memory) > 0


def test_an_average_of_the_weights_counts_as_one_more_set_of_them():
    plain = tiny_run(model=tiny_model(width=256), steps=1)
    averaged = run_memory(replace(plain, ema=0.1))
    assert averaged.weights == 2 * run_memory(plain).weights
    assert averaged.peak - run_memory(plain).peak == run_memory(plain).weights


def test_a_step_of_several_passes_counts_gradients_beside_each_but_the_first():
    once = tiny_run(model=tiny_model(width=256), steps=1, batch_sequences=128, micro_batch_sequences=128)
    several = replace(once, batch_sequences=384)
    assert run_memory(several).peak > run_memory(once).peak
    assert run_memory(replace(once, micro_batch_sequences=256)) == run_memory(once)
