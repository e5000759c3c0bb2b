import numpy as np
import pytest

from budgetlm.data.batches import Batches, validation_windows
from budgetlm.errors import DataError

STREAM = np.arange(10_000, dtype=np.uint16)


def test_the_same_position_gives_the_same_batch_however_it_was_reached():
    straight = Batches(STREAM, 16, seed=3)
    all_rows = np.concatenate([straight.take(p, 7) for p in range(0, 3 * straight.sequences, 7)])
    jump = Batches(STREAM, 16, seed=3)
    for position in (1000, 5, 700, 1500):
        assert np.array_equal(jump.take(position, 9), all_rows[position : position + 9])


def test_one_pass_reads_every_window_once_and_passes_differ():
    batches = Batches(STREAM, 16, seed=0)
    first, second = batches.take(0, batches.sequences), batches.take(batches.sequences, batches.sequences)
    assert len({row[0] // 16 for row in first}) == batches.sequences
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Batches(STREAM, 16, seed=1).take(0, batches.sequences))


def test_targets_are_the_inputs_moved_by_one():
    assert np.array_equal(np.diff(Batches(STREAM, 16, seed=0).take(11, 5), axis=1), np.ones((5, 16)))


def test_a_slice_reads_its_own_tokens_and_no_others_however_long_it_lasts():
    batches = Batches(STREAM, 16, seed=5, unique_tokens=1600)
    inputs = batches.take(0, 10 * batches.sequences)[:, :-1]
    assert batches.sequences == 100
    assert len(np.unique(inputs)) == 1600
    other = Batches(STREAM, 16, seed=6, unique_tokens=1600).take(0, 100)[:, :-1]
    assert np.array_equal(np.unique(other), np.unique(inputs))


def test_too_little_text_is_said_with_the_numbers():
    with pytest.raises(DataError, match="20 tokens, but a context of 16 needs at least 32"):
        Batches(STREAM[:20], 16, seed=0)
    with pytest.raises(DataError, match="validation split has 10 tokens"):
        validation_windows(STREAM[:10], 16, 100)


def test_the_validation_sample_is_fixed_spread_out_and_never_too_large():
    sample = validation_windows(STREAM, 16, 160)
    assert sample.shape == (10, 17)
    assert np.array_equal(sample, validation_windows(STREAM, 16, 160))
    assert sample[0, 0] == 0
    assert sample[-1, 0] > 9000
    assert len(validation_windows(STREAM[:100], 16, 10**9)) == 6
