"""Tokens -> the same batches for the same seed, from any position.

A position is the number of sequences read so far, and it alone says what comes next: nothing has to be replayed to
resume. Each pass over the data reads its windows in a new order and from a new offset.

Shapes: B sequences, L context length.
"""

import numpy as np

from budgetlm.errors import DataError


class Batches:
    """Training sequences in a fixed random order.

    Args:
        tokens: token ids, shape (tokens,).
        context_length: L.
        seed: decides the order.
        unique_tokens: read only so many different tokens, drawn evenly from the whole; 0 reads all.

    Raises:
        DataError: there are too few tokens for one sequence.
    """

    def __init__(self, tokens: np.ndarray, context_length: int, seed: int, unique_tokens: int = 0) -> None:
        # One window less than would fit leaves room for the offset, which no window may pass.
        windows = len(tokens) // context_length - 1
        if windows < 1:
            raise DataError(
                f"the training split has {len(tokens):,} tokens, but a context of {context_length} needs at least "
                f"{2 * context_length:,}. Give more text, or a smaller `model.context_length`."
            )
        kept = min(windows, max(1, unique_tokens // context_length)) if unique_tokens else windows
        # The slice is the same for every seed: two seeds of one recipe differ in order, not in what they may see.
        self._windows = np.sort(np.random.default_rng(0).permutation(windows)[:kept])
        self._tokens, self._length, self._seed, self._sliced = tokens, context_length, seed, kept < windows
        self._epoch, self._order, self._offset = -1, self._windows, 0

    @property
    def sequences(self) -> int:
        """Sequences in one pass."""
        return len(self._windows)

    def take(self, position: int, count: int) -> np.ndarray:
        """The `count` sequences from `position` on: token ids, int64, shape (count, L + 1); the last one is only a target."""
        rows = np.empty((count, self._length + 1), dtype=np.int64)
        for row in range(count):
            epoch, index = divmod(position + row, len(self._windows))
            if epoch != self._epoch:
                self._begin(epoch)
            start = int(self._order[index]) * self._length + self._offset
            rows[row] = self._tokens[start : start + self._length + 1]
        return rows

    def _begin(self, epoch: int) -> None:
        random = np.random.default_rng((self._seed, epoch))
        self._epoch, self._order = epoch, random.permutation(self._windows)
        # A slice keeps its windows in place: moved, they would cover tokens that do not belong to it.
        self._offset = 0 if self._sliced else int(random.integers(self._length))


def validation_windows(tokens: np.ndarray, context_length: int, most_tokens: int) -> np.ndarray:
    """A fixed sample of the validation split: int64, shape (windows, L + 1), spread evenly, the same for every run.

    Raises:
        DataError: the split is too small for one sequence.
    """
    windows = (len(tokens) - 1) // context_length
    if windows < 1:
        raise DataError(
            f"the validation split has {len(tokens):,} tokens, too few for one sequence of {context_length}. Give more text, "
            "a larger `data.validation_fraction`, or a smaller `model.context_length`."
        )
    wanted = max(1, min(windows, most_tokens // context_length))
    starts = np.linspace(0, windows - 1, wanted).round().astype(np.int64) * context_length
    return np.stack([np.asarray(tokens[s : s + context_length + 1], dtype=np.int64) for s in starts])
