"""How much memory a run will need, from the formula and from what others were measured to need. No torch.

The formula (`training_memory`) counts tensors, and a GPU gives out just that. On a CPU a process needs more: workspaces of
the matrix library, and a heap that does not give everything back. Three prices, one for each kind of tensor, and a constant
are fitted to the measured peaks, beside a prior price for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from budgetlm.model.size import TrainingMemory, training_memory
from budgetlm.train.config import RunConfig

USUAL_OVERHEAD = 4 * 2**20
"""Bytes that a run needs beside its tensors, before any is measured: about what the smallest runs were seen to."""
HEAP_PRICE = 1.5
"""Resident bytes for each byte in use under glibc's heap as it is: 1.28 to 1.95 measured (docs/LOG.md)."""
PRIOR_WEIGHT = 0.1
"""How much the prior counts beside a measurement, which counts 1."""


@dataclass(frozen=True)
class MemoryPoint:
    """A measured peak, and what the formula counts for that run."""

    counted: TrainingMemory
    peak_bytes: int
    """Above what the process held before the run."""


@dataclass(frozen=True)
class MemoryModel:
    """Measured bytes for each byte that the formula counts, by kind, and a constant."""

    prices: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of weights, gradients and optimizer; of activations; of logits."""
    overhead_bytes: float = USUAL_OVERHEAD

    @classmethod
    def fit(cls, points: Sequence[MemoryPoint], prior: float = 1.0) -> "MemoryModel":
        """Fit prices and overhead to measurements by relative error, none of them negative.

        Args:
            prior: what the prices are taken to be where the measurements do not say: 1, or `HEAP_PRICE`.
        """
        measured = [np.array([*_kinds(p.counted), USUAL_OVERHEAD]) / p.peak_bytes for p in points]
        design = np.array([*measured, *(PRIOR_WEIGHT * np.eye(4))])
        wanted = np.array([1.0] * len(points) + [PRIOR_WEIGHT * prior] * 3 + [PRIOR_WEIGHT])
        (state, activations, logits, overhead), _ = nnls(design, wanted)
        return cls((float(state), float(activations), float(logits)), float(overhead) * USUAL_OVERHEAD)

    def peak_bytes(self, counted: TrainingMemory) -> float:
        """Predicted peak of a run for which the formula counts this much."""
        return float(np.dot(self.prices, _kinds(counted))) + self.overhead_bytes


def run_memory(config: RunConfig) -> TrainingMemory:
    """What the formula counts for a run."""
    return training_memory(
        config.model,
        micro_batch_sequences=min(config.micro_batch_sequences, config.batch_sequences),
        optimizer=config.optimizer.name,
        precision=config.precision,
        checkpoint_activations=config.checkpoint_activations,
        accumulates=config.batch_sequences > config.micro_batch_sequences,
        muon_in_bf16=config.bf16_is_fast,
        averaged=config.ema > 0,
    )


def _kinds(counted: TrainingMemory) -> tuple[int, int, int]:
    return counted.weights + counted.gradients + counted.optimizer, counted.activations, counted.logits
