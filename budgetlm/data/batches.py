"""Tokens -> the same batches for the same seed, from any position.

A position is the number of sequences read so far, and it alone says what comes next: nothing has to be replayed to
resume. Each pass over the data reads its windows in a new order and from a new offset.

A streamed source comes in parts, its head and then shards. Which part is read when depends on what was there when the one
before it was done, so there the position needs the route that was taken; it is kept with the run's checkpoints.

Shapes: B sequences, L context length.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from budgetlm.data.tokens import Tokens
from budgetlm.errors import DataError


class Batches:
    """Training sequences in a fixed random order.

    Args:
        tokens: token ids, shape (tokens,).
        context_length: L.
        seed: decides the order.
        unique_tokens: read only so many different tokens, drawn evenly from the whole; 0 reads all.
        part: where these are a part of more, which one; parts have orders of their own.

    Raises:
        DataError: there are too few tokens for one sequence.
    """

    def __init__(self, tokens: np.ndarray, context_length: int, seed: int, unique_tokens: int = 0, part: int = 0) -> None:
        windows = _windows(tokens, context_length)
        if windows < 1:
            raise DataError(
                f"the training split has {len(tokens):,} tokens, but a context of {context_length} needs at least "
                f"{2 * context_length:,}. Give more text, or a smaller `model.context_length`."
            )
        kept = min(windows, max(1, unique_tokens // context_length)) if unique_tokens else windows
        # The slice is the same for every seed: two seeds of one recipe differ in order, not in what they may see.
        whole = kept == windows
        self._windows = np.arange(windows) if whole else np.sort(np.random.default_rng(0).permutation(windows)[:kept])
        self._tokens, self._length, self._seed, self._sliced = tokens, context_length, seed, kept < windows
        self._part, self._epoch, self._order, self._offset = part, -1, self._windows, 0

    @property
    def sequences(self) -> int:
        """Sequences in one pass."""
        return len(self._windows)

    @property
    def route(self) -> tuple[int, ...]:
        """Nothing beside the position is needed to go on."""
        return ()

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
        random = np.random.default_rng((self._seed, epoch, self._part) if self._part else (self._seed, epoch))
        self._epoch, self._order = epoch, random.permutation(self._windows)
        # A slice keeps its windows in place: moved, they would cover tokens that do not belong to it.
        self._offset = 0 if self._sliced else int(random.integers(self._length))


class StreamedBatches:
    """Training sequences of a source whose parts arrive one by one.

    What is read next is the part that has waited longest, new ones first: on the first pass head, first shard, second shard
    and so on. Where the next shard is not there when it is needed, what is there is read again rather than waited for: the
    device is paid for, and the shard comes next as soon as it has arrived.

    Args:
        tokens: the tokens, as far as they are there.
        context_length: L.
        seed: decides the order.
        unique_tokens: read only so many different tokens, from the head on; 0 reads all.

    Raises:
        DataError: the head has too few tokens for one sequence.
    """

    def __init__(self, tokens: Tokens, context_length: int, seed: int, unique_tokens: int = 0) -> None:
        self._tokens, self._length, self._seed = tokens, context_length, seed
        self._room, self._unique = unique_tokens, unique_tokens
        self._parts: list[Batches] = []
        self._passes: list[int] = []  # of each part, how often it was begun
        self._latest: list[int] = []  # of each part, the turn in which it was last begun; -1 for none
        # Of each turn: its part, where it begins in that part's own sequences, and the position at which it ends.
        self._route: list[int] = []
        self._begins: list[int] = []
        self._ends: list[int] = []
        self._add(tokens.split("train"))

    @property
    def sequences(self) -> int:
        """Sequences in one pass over what is there."""
        return sum(part.sequences for part in self._parts)

    @property
    def route(self) -> tuple[int, ...]:
        """The parts read so far, the one under way last: 0 is the head."""
        return tuple(self._route)

    def follow(self, route: Sequence[int]) -> None:
        """Take the route that an earlier part of the run took, up to a shard that is not there any more. Once, before reading."""
        self._look()
        for part in route:
            if part >= len(self._parts):
                break
            self._turn_to(part)

    def take(self, position: int, count: int) -> np.ndarray:
        """The `count` sequences from `position` on: token ids, int64, shape (count, L + 1); the last one is only a target."""
        rows: list[np.ndarray] = []
        while count:
            while not self._ends or position >= self._ends[-1]:
                self._look()
                self._turn_to(min(range(len(self._parts)), key=self._latest.__getitem__))
            turn = bisect_right(self._ends, position)
            part, left = self._parts[self._route[turn]], self._ends[turn] - position
            some = min(count, left)
            rows.append(part.take(self._begins[turn] + part.sequences - left, some))
            position, count = position + some, count - some
        return np.concatenate(rows)

    def _turn_to(self, part: int) -> None:
        sequences = self._parts[part].sequences
        self._latest[part] = len(self._route)
        self._route.append(part)
        self._begins.append(self._passes[part] * sequences)
        self._ends.append((self._ends[-1] if self._ends else 0) + sequences)
        self._passes[part] += 1

    def _look(self) -> None:
        """Take in the shards that have arrived."""
        for shard in self._tokens.shards(known=len(self._parts) - 1):
            enough = self._unique and self._room < self._length
            if enough or _windows(shard, self._length) < 1:  # only the last one can be so short
                return
            self._add(shard)

    def _add(self, part: np.ndarray) -> None:
        unique = self._room if self._room < len(part) else 0
        self._parts.append(Batches(part, self._length, self._seed, unique, len(self._parts)))
        self._passes.append(0)
        self._latest.append(-1)
        self._room = max(0, self._room - len(part))


def training_batches(
    tokens: Tokens, context_length: int, seed: int, unique_tokens: int = 0, route: Sequence[int] = ()
) -> Batches | StreamedBatches:
    """The training sequences of a corpus.

    Args:
        route: what `route` of a streamed source's batches said when the run was interrupted.

    Raises:
        DataError: there are too few tokens for one sequence.
    """
    head = tokens.split("train")
    if not tokens.streamed or 0 < unique_tokens <= len(head):
        return Batches(head, context_length, seed, unique_tokens)
    batches = StreamedBatches(tokens, context_length, seed, unique_tokens)
    batches.follow(route)
    return batches


def _windows(tokens: np.ndarray, context_length: int) -> int:
    """Windows that a pass may read of these tokens: one less than would fit leaves room for the offset, which none may pass."""
    return len(tokens) // context_length - 1


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
