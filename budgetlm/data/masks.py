"""Which tokens of a sequence an encoder does not see: decided by a seed and the sequence's position alone, so that a resumed run hides the same.

A hidden token is written as its mark, `~id`, which is negative; whoever trains or evaluates reads from it what to show and what is to be predicted
(`model/encoder.py`). Of every sequence the same number is hidden, each choice of them as likely as another, and always by the mask token: mixing in random
or unchanged tokens gains nothing (Wettig et al. 2023, section 6, arXiv:2202.08005).

Shapes: B sequences, L context length.
"""

import numpy as np

from budgetlm.data.batches import AnyBatches

EVALUATION_RATE, EVALUATION_SEED = 0.15, 0
"""What validation hides, the same for all recipes, whatever they train with."""


class MaskedBatches:
    """Training sequences with marks on hidden tokens.

    Args:
        batches: the sequences.
        rate: share of tokens to hide.
        seed: decides which.
    """

    def __init__(self, batches: AnyBatches, rate: float, seed: int) -> None:
        self._batches, self._rate, self._seed = batches, rate, seed

    @property
    def sequences(self) -> int:
        """Sequences in one pass."""
        return self._batches.sequences

    @property
    def route(self) -> tuple[int, ...]:
        """As of the sequences without marks."""
        return self._batches.route

    def take(self, position: int, count: int) -> np.ndarray:
        """The `count` sequences from `position` on, int64, shape (count, L + 1); the last token of each is never hidden, nor read."""
        return hide(self._batches.take(position, count), self._rate, self._seed, position)


def hide(rows: np.ndarray, rate: float, seed: int, position: int = 0) -> np.ndarray:
    """The sequences (B, L + 1) with marks on a share of their first L tokens, at least one of each.

    Args:
        position: of the first of them, which decides with the seed.
    """
    length = rows.shape[1] - 1
    count, marked = hidden_of(length, rate), rows.copy()
    for row in range(len(rows)):
        chosen = np.random.default_rng((seed, position + row)).choice(length, count, replace=False, shuffle=False)
        marked[row, chosen] = ~rows[row, chosen]
    return marked


def hidden_of(length: int, rate: float) -> int:
    """Tokens that are hidden of a sequence of this length."""
    return max(1, round(rate * length))
