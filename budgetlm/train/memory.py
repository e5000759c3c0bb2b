"""How much memory a run will need, from the formula and from what others were measured to need. No torch.

The formula (`training_memory`) counts tensors, and a GPU gives out just that. On a CPU a process needs more: workspaces of
the matrix library, and a heap that cannot reuse every block. So the count has two parts, what is held at the fullest moment and
what a heap would add that reused nothing of one kind for another; their prices and a constant are fitted to the measured peaks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from budgetlm.compress.apply import extra_bytes
from budgetlm.model.footprint import TrainingMemory, training_memory
from budgetlm.train.config import RunConfig

Prices = tuple[float, float]

USUAL_OVERHEAD = 4 * 2**20
"""Bytes that a run needs beside its tensors, before any is measured: about what the smallest runs were seen to."""
HEAP_PRICES: Prices = (1.5, 0.5)
"""Of glibc's heap, before any is measured: rather too much for most of 64 shapes on a CPU (tests/benchmarks/bench_oracle.py), because
with what fitted them best, 7 of 17 runs that were let pass ran out of memory."""
OVERHEAD_IN_BF16, HEAP_PRICES_IN_BF16 = 12 * 2**20, (2.1, 0.5)
"""The same on a CPU in bf16, where matrices are put into another order to be multiplied: the least overhead of 32 shapes, and prices with which none
of them took more than foretold."""
PRIOR_WEIGHT = 0.2
"""How much the prior counts beside a measurement, which counts 1."""


SAID_OF_IT = ("allocate memory", "not enough memory", "out of memory", "could not create a primitive")
"""What PyTorch says where memory runs out, the last of it its library of matrix products, which then has no room to work in."""


def is_want_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out. PyTorch has a name of its own for that on a GPU only."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(words in str(error) for words in SAID_OF_IT)


@dataclass(frozen=True)
class MemoryPoint:
    """A measured peak, and what the formula counts for that run."""

    counted: TrainingMemory
    peak_bytes: int
    """Above what the process held before the run."""


@dataclass(frozen=True)
class MemoryModel:
    """Measured bytes for each byte that the formula counts, and a constant."""

    prices: Prices = (1.0, 0.0)
    """Of what is held at the fullest moment, and of what else there would be if no kind of tensor reused another's memory."""
    overhead_bytes: float = USUAL_OVERHEAD

    @classmethod
    def fit(
        cls, points: Sequence[MemoryPoint], prior: Prices = (1.0, 0.0), overhead: float = USUAL_OVERHEAD
    ) -> "MemoryModel":
        """Fit prices and overhead to measurements by relative error, none of them negative.

        Args:
            prior: prices where the measurements do not say: those of a heap that is perfect, or `HEAP_PRICES`.
            overhead: bytes beside, likewise.
        """
        from scipy.optimize import nnls  # here, for it takes longer to load than all else that a command needs at once

        measured = [np.array([*_parts(p.counted), overhead]) / p.peak_bytes for p in points]
        design = np.array([*measured, *(PRIOR_WEIGHT * np.eye(3))])
        wanted = np.array([1.0] * len(points) + [PRIOR_WEIGHT * price for price in (*prior, 1.0)])
        (fullest, apart, times), _ = nnls(design, wanted)
        return cls((float(fullest), float(apart)), float(times) * overhead)

    def peak_bytes(self, counted: TrainingMemory) -> float:
        """Predicted peak of a run for which the formula counts this much."""
        return float(np.dot(self.prices, _parts(counted))) + self.overhead_bytes


def run_memory(config: RunConfig, shards: int = 1, *, offload: bool = False) -> TrainingMemory:
    """What the formula counts for a run, or for one of so many devices that its state is spread over, or that it waits beside."""
    return training_memory(
        config.model,
        micro_batch_sequences=min(config.micro_batch_sequences, config.batch_sequences),
        optimizer=config.optimizer.name,
        precision=config.precision,
        checkpoint_activations=config.checkpoint_activations,
        accumulates=config.batch_sequences > config.micro_batch_sequences or config.cuda_graphs,
        muon_in_bf16=config.bf16_is_fast,
        averaged=config.ema > 0,
        products_length=config.products_length,
        beside=extra_bytes(config.model, config.compression),
        shards=shards,
        offload=offload,
        device=config.device,
    )


def _parts(counted: TrainingMemory) -> tuple[int, int]:
    return counted.fullest.peak, counted.apart.peak - counted.fullest.peak
