"""What a run's work has cost so far, and what the rest will cost: seconds, rather too many than too few. Numbers only.

A run plans backwards from its deadline: what the last evaluation, and the compression before it, will take is kept back, and training ends where that begins.
"""

import math
import statistics
from collections import deque

from budgetlm.model.footprint import saved_bytes
from budgetlm.model.size import parameters
from budgetlm.train.config import RunConfig

EVALUATION_SHARE = 0.02
"""Share of a run that all of its evaluations together may take, those at its end included."""
EVALUATION_RESERVE = 1.15
"""What an evaluation is kept back for, as a multiple of the slowest of the latest."""
STEP_RESERVE = 1.1
"""Likewise a step, of the median of the latest."""
LEAST_CHECKPOINT_SECONDS, DISK_BYTES_PER_SECOND = 0.01, 3e8
"""What a checkpoint is taken to cost before one was written: so much, and its bytes at this rate."""
SECONDS_BETWEEN_FAILURES = 4 * 3600.0
"""Of the machine, on average, where nobody says."""
WEIGHTS_A_SECOND, SLOWDOWN = 1e7, 2.0
"""How fast a network is taken to be compressed, and its evaluation slowed down by it, before that was measured on the way."""


def expected_checkpoint_seconds(config: RunConfig) -> float:
    """What a checkpoint of a run is taken to cost before one was written."""
    return LEAST_CHECKPOINT_SECONDS + saved_bytes(config.model, averaged=config.ema > 0) / DISK_BYTES_PER_SECOND


def best_interval(checkpoint_seconds: float, seconds_between_failures: float = SECONDS_BETWEEN_FAILURES) -> float:
    """Seconds between checkpoints that cost least in the long run: what writing takes, and what is lost when a machine fails.

    Source: Young 1974, "A first order approximation to the optimum checkpoint interval".
    """
    return math.sqrt(2 * checkpoint_seconds * seconds_between_failures)


class Pace:
    """One run's.

    Args:
        config: of the run.
        ends: seconds into the run when all must be over.
        windows: of all evaluations that come after the last step, the larger sample's included.
        dense_windows: of the one before the network is compressed, where it is rounded.
    """

    def __init__(self, config: RunConfig, ends: float, windows: int, dense_windows: int) -> None:
        compresses, self._quantised = config.compression.option != "none", config.compression.quantised
        self._ends, self._windows, self._dense_windows = ends, windows, dense_windows if self._quantised else 0
        self._timeless = bool(config.steps)
        self._sequence: deque[float] = deque(maxlen=9)
        """Seconds a sequence of the latest steps: a batch ramp makes steps unlike, but not their sequences."""
        self._window: deque[float] = deque(maxlen=3)
        """Seconds a window of the latest evaluations."""
        self._slowdown = SLOWDOWN if self._quantised else 1.0
        """Of evaluation, by compression."""
        self._train_seconds, self._train_tokens = 0.0, 0
        self.compress_seconds = parameters(config.model) / WEIGHTS_A_SECOND if compresses else 0.0
        """To compress the network."""
        self.checkpoint_seconds = expected_checkpoint_seconds(config)
        """To write a checkpoint."""

    def stepped(self, seconds: float, sequences: int, tokens: int) -> None:
        """A step was done, and nothing compiled in it."""
        self._sequence.append(seconds / sequences)
        self._train_seconds += seconds
        self._train_tokens += tokens

    def evaluated(self, seconds: float, windows: int, *, compressed: bool) -> None:
        """An evaluation was done, of the network that would be deployed where that is `compressed`."""
        if compressed and self._window:
            self._slowdown = max(1.0, seconds / windows / statistics.median(self._window))
        else:
            self._window.append(seconds / windows)

    def saved(self, seconds: float) -> None:
        """A checkpoint was written."""
        self.checkpoint_seconds = max(LEAST_CHECKPOINT_SECONDS, seconds)

    @property
    def has_evaluated(self) -> bool:
        """Whether it is known what an evaluation takes."""
        return bool(self._window)

    @property
    def tokens_per_second(self) -> float:
        """Of the steps, compiling apart; 0 before the first."""
        return self._train_tokens / self._train_seconds if self._train_seconds else 0.0

    def step(self, sequences: int) -> float:
        """What the next step will take; 0 before one was measured."""
        return STEP_RESERVE * sequences * statistics.median(self._sequence) if self._sequence else 0.0

    def evaluation(self, windows: int) -> float:
        """What an evaluation will take: as measured, or at first from the steps, of which a third is a forward pass."""
        if self._window:
            return EVALUATION_RESERVE * max(self._window) * windows
        return 0.5 * windows * (statistics.median(self._sequence) if self._sequence else 0.0)

    def evaluations_at_the_end(self) -> float:
        """What all evaluations after the last step will take."""
        return self._slowdown * self.evaluation(self._windows) + self.evaluation(self._dense_windows)

    def training_ends(self) -> float:
        """Seconds into the run when the last step must be done for what follows to fit before its end."""
        return max(0.0, self._ends - self.evaluations_at_the_end() - EVALUATION_RESERVE * self.compress_seconds)

    def still_fits(self, elapsed: float, windows: int) -> bool:
        """Whether an evaluation, whose time was kept back, ends before the run's end at the best speed that was seen of late."""
        return self._timeless or elapsed + self._slowdown * min(self._window) * windows <= self._ends
