import numpy as np

from budgetlm.data.batches import training_batches
from budgetlm.data.masks import MaskedBatches, hidden_of, hide


def test_the_same_seed_and_position_hide_the_same_however_the_sequences_are_taken(tokens):
    plain = training_batches(tokens, 32, seed=3)
    whole = MaskedBatches(plain, 0.3, seed=3).take(5, 6)
    parts = np.concatenate([MaskedBatches(plain, 0.3, seed=3).take(at, 2) for at in (5, 7, 9)])
    assert np.array_equal(whole, parts)
    assert not np.array_equal(whole < 0, MaskedBatches(plain, 0.3, seed=4).take(5, 6) < 0)
    assert not np.array_equal(whole[0] < 0, whole[1] < 0)
    assert np.array_equal(np.where(whole < 0, ~whole, whole), plain.take(5, 6))


def test_every_sequence_hides_as_many_and_every_place_is_as_likely():
    rows = np.zeros((4000, 33), dtype=np.int64)
    hidden = hide(rows, 0.25, seed=0) < 0
    assert set(hidden.sum(axis=1)) == {8} == {hidden_of(32, 0.25)}
    assert not hidden[:, -1].any()  # it is not read
    assert abs(hidden[:, :-1].mean(axis=0) - 0.25).max() < 0.04
    assert not rows.any()
    assert hidden_of(8, 0.01) == 1
