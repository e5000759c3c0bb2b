"""The curve of one run: its points as they become due, and whether its loss is past hope."""

import math
import statistics
from collections import deque

from budgetlm.records import CurvePoint

POINTS = 100
"""That a curve has, about."""
FIRST_STEPS = 5
"""Each of them is a point."""
HOPELESS_NATS = 1.5
"""A smoothed loss this far above that of a uniform guess means that the run has diverged."""


class Curve:
    """What the steps since its last point came to.

    Points begin with a dense handful, then come evenly in progress; a resumed run only goes on with them.

    Args:
        vocab_size: among so many words a uniform guess is.
        loss: of the last step before, in nats.
        due: progress at which the first point is.
    """

    def __init__(self, vocab_size: int, loss: float, due: float) -> None:
        self._limit, self._loss, self._due = math.log(vocab_size) + HOPELESS_NATS, loss, due
        self._recent: deque[float] = deque(maxlen=20)
        self._since: list[tuple[float, float, int]] = []
        """Loss, seconds and tokens of the steps since the last point."""

    def stepped(self, loss: float, seconds: float, tokens: int) -> None:
        """A step was done."""
        self._recent.append(loss)
        self._since.append((loss, seconds, tokens))

    @property
    def diverged(self) -> bool:
        """Whether the loss stopped being finite, or has stayed far above that of a uniform guess."""
        if not math.isfinite(self._recent[-1]):
            return True
        return len(self._recent) == self._recent.maxlen and statistics.fmean(self._recent) > self._limit

    def is_due(self, progress: float) -> bool:
        """Whether there is to be a point."""
        return progress >= self._due

    def point(
        self, progress: float, *, step: int, seconds: float, tokens: int, lr: float, bpb: float | None, gradient_norm: float
    ) -> CurvePoint:
        """The point of here and now: the mean loss and speed of the steps since the last one.

        Args:
            step, seconds, tokens: that the run has done, spent and read.
            gradient_norm: of the last step; not finite where it has none.
        """
        losses, taken, read = [s[0] for s in self._since], sum(s[1] for s in self._since), sum(s[2] for s in self._since)
        self._loss = statistics.fmean(losses) if losses else self._loss
        self._since = []
        self._due = progress + 1 / POINTS if step >= FIRST_STEPS else 0.0
        return CurvePoint(
            step=step,
            seconds=seconds,
            tokens=tokens,
            loss=self._loss,
            lr=lr,
            tokens_per_second=read / taken if taken else 0.0,
            bpb=bpb,
            gradient_norm=gradient_norm if math.isfinite(gradient_norm) else None,
        )
