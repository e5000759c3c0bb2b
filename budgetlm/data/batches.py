"""Tokens -> the same batches for the same seed, from any position.

A position is the number of sequences read so far, and it alone says what comes next: nothing has to be replayed to
resume. Each pass over the data reads its windows in a new order and from a new offset.

A streamed source comes in parts, its head and then shards. Which part is read when depends on what was there when the one
before it was done, so there the position needs the route that was taken; it is kept with the run's checkpoints.

Of several sources each is a part, too, and has a share of the sequences. They take turns in one fixed order, in which every stretch is as near
to the shares as whole sequences can be, so that every batch is a sample of all, and any position is found without going there.

Shapes: B sequences, L context length.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from budgetlm.data.tokens import Tokens
from budgetlm.errors import DataError

TURNS = 1024
"""Sequences in a round of several sources: shares are kept to within one of so many."""


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


class MixedBatches:
    """Training sequences of several sources, each read by its share; one that has been read through is read again.

    Args:
        parts: token ids of each source, shape (tokens,).
        weights: shares of the sequences, above 0, which add up to 1.
        context_length: L.
        seed: decides the order within each source.
        unique: of every source read only so great a part, drawn evenly from the whole.

    Raises:
        DataError: a source has too few tokens for one sequence.
    """

    def __init__(
        self, parts: Sequence[np.ndarray], weights: Sequence[float], context_length: int, seed: int, unique: float = 1.0
    ) -> None:
        self._length = context_length
        self._parts = [
            Batches(part, context_length, seed, math.ceil(unique * len(part)) if unique < 1 else 0, number)
            for number, part in enumerate(parts)
        ]
        self._turns = turns(weights)
        # Of each turn of a round: how many of its source come before it in the round; and how many a round has of each source.
        self._before = np.zeros(len(self._turns), dtype=np.int64)
        self._of_round = np.bincount(self._turns, minlength=len(parts))
        for part in range(len(parts)):
            self._before[self._turns == part] = np.arange(self._of_round[part])

    @property
    def sequences(self) -> int:
        """Sequences until a source has to be read again."""
        shares = self._of_round / len(self._turns)
        return min(int(part.sequences / share) for part, share in zip(self._parts, shares, strict=True))

    @property
    def route(self) -> tuple[int, ...]:
        """Nothing beside the position is needed to go on."""
        return ()

    def take(self, position: int, count: int) -> np.ndarray:
        """The `count` sequences from `position` on: token ids, int64, shape (count, L + 1); the last one is only a target."""
        rounds, turn = np.divmod(np.arange(position, position + count), len(self._turns))
        of, index = self._turns[turn], rounds * self._of_round[self._turns[turn]] + self._before[turn]
        rows = np.empty((count, self._length + 1), dtype=np.int64)
        for number, part in enumerate(self._parts):
            mine = np.flatnonzero(of == number)
            if len(mine):  # they follow each other
                rows[mine] = part.take(int(index[mine[0]]), len(mine))
        return rows


def turns(weights: Sequence[float]) -> np.ndarray:
    """A round of turns in which sources are read: int64, shape (TURNS,). Any stretch of it has each source about as often as its weight says.

    Raises:
        DataError: a weight is so small that its source would never be read.
    """
    credit, order = np.zeros(len(weights)), np.empty(TURNS, dtype=np.int64)
    for turn in range(TURNS):
        credit += weights
        order[turn] = credit.argmax()
        credit[order[turn]] -= 1
    if len(set(order.tolist())) < len(weights):
        raise DataError(
            f"a source has the weight {min(weights):.2g}, but sources with less than about {1 / TURNS:.1g} of all would never be read. "
            "Leave it out, or give it more."
        )
    return order


AnyBatches = Batches | StreamedBatches | MixedBatches


def training_batches(
    tokens: Tokens, context_length: int, seed: int, unique_tokens: int = 0, route: Sequence[int] = ()
) -> AnyBatches:
    """The training sequences of a corpus.

    Args:
        route: what `route` of a streamed source's batches said when the run was interrupted.

    Raises:
        DataError: there are too few tokens for one sequence.
    """
    if tokens.facts.parts:
        unique = unique_tokens / tokens.train_tokens if unique_tokens else 1.0
        return MixedBatches(tokens.parts("train"), tokens.facts.weights, context_length, seed, unique)
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
    """A fixed sample of validation tokens: int64, shape (windows, L + 1), spread evenly, the same for every run.

    Raises:
        DataError: the split is too small for one sequence.
    """
    wanted = max(1, most_tokens // context_length)
    return _spread(tokens, context_length, min(wanted, _whole_windows(tokens, context_length)))


def validation_sample(tokens: Tokens, context_length: int, most_tokens: int) -> np.ndarray:
    """The same of a corpus, of several sources by their weights.

    Each has its share of the windows, so that bits per byte, the bits of all windows over their bytes, are those of text that is read as
    the training text is. Where a source has too little for its share, windows count twice.

    Raises:
        DataError: the split is too small for one sequence.
    """
    parts = tokens.parts("validation")
    if len(parts) == 1:
        return validation_windows(parts[0], context_length, most_tokens)
    there = sum(_whole_windows(part, context_length) for part in parts)
    wanted = max(1, min(there, most_tokens // context_length))
    shares = zip(parts, tokens.facts.weights, strict=True)
    return np.concatenate([_spread(part, context_length, max(1, round(weight * wanted))) for part, weight in shares])


def _whole_windows(tokens: np.ndarray, context_length: int) -> int:
    windows = (len(tokens) - 1) // context_length
    if windows < 1:
        raise DataError(
            f"the validation split has {len(tokens):,} tokens, too few for one sequence of {context_length}. Give more text, "
            "a larger `data.validation_fraction`, or a smaller `model.context_length`."
        )
    return windows


def _spread(tokens: np.ndarray, context_length: int, wanted: int) -> np.ndarray:
    last = _whole_windows(tokens, context_length) - 1
    starts = np.linspace(0, last, wanted).round().astype(np.int64) * context_length
    return np.stack([np.asarray(tokens[s : s + context_length + 1], dtype=np.int64) for s in starts])
