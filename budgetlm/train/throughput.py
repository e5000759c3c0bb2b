"""How fast a shape will train, from what was measured on others. Arithmetic only, no torch.

The seconds for one token are a sum of what the device does for it: matrix products, memory traffic beside them, kernels
launched, and the optimizer's passes over the parameters. The four prices are fitted, non-negative, to measured speeds; small
models then come out at the low utilisation that they really have, which is what a miniature has to know (DESIGN 4.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from budgetlm.model.size import (
    ModelConfig,
    activation_elements,
    block_matrices,
    flops_per_token,
    parameters,
)
from budgetlm.train.config import Precision

PRIOR_WEIGHT = 0.03
"""How much a guessed price counts beside a measurement, which counts 1. With 0.1 it held prices far from what eight
measurements said: worst error on other shapes 1.1 to 1.6 instead of 0.2 to 0.7 (bench_oracle)."""


PASSES = {"adamax": 22.0, "nadam": 31.0, "adafactor": 48.0, "schedulefree": 29.0}
"""Passes over the parameters that an update takes; 10 for those not named, AdamW among them. Measured on a CPU as multiples of
AdamW's update (`bench_optimizers`); an average of the weights, about a third of AdamW's, is left out."""


@dataclass(frozen=True)
class SpeedPoint:
    """A measured training speed."""

    model: ModelConfig
    batch_tokens: int
    micro_batch_tokens: int
    optimizer: str
    tokens_per_second: float
    checkpoint_activations: bool = False


@dataclass(frozen=True)
class Calibration:
    """What `train/calibrate.py` found out about a device."""

    precision: Precision
    bf16_is_fast: bool
    micro_batch_tokens: int
    points: list[SpeedPoint]
    seconds: float
    """What the measurement cost; 0 when it was remembered."""


@dataclass(frozen=True)
class SpeedModel:
    """Seconds a token as prices of what has to be done for it."""

    prices: tuple[float, ...]

    @classmethod
    def fit(cls, points: Sequence[SpeedPoint], ceiling_gflops: float) -> "SpeedModel":
        """Fit the prices to measurements by relative error; without enough of them, from the device's ceiling.

        Args:
            ceiling_gflops: speed of a large matrix product in the precision used. No shape is believed to pass it, and
                as one weak measurement of its own it fills in for directions that the points do not show.
        """
        floor = 1 / (ceiling_gflops * 1e9)
        prior = np.array([2 * floor, 100 * floor, 100_000 * floor, 30 * floor])
        rows = [
            np.array(_work(p.model, p.batch_tokens, p.micro_batch_tokens, p.optimizer, p.checkpoint_activations))
            for p in points
        ]
        design = [row * p.tokens_per_second for row, p in zip(rows, points, strict=True)]
        weak = PRIOR_WEIGHT * np.diag(1 / prior)
        wanted = [1.0] * len(points) + [PRIOR_WEIGHT] * 4
        prices, _ = nnls(np.array([*design, *weak]), np.array(wanted))
        prices[0] = max(prices[0], floor)
        return cls(tuple(float(price) for price in prices))

    def tokens_per_second(
        self,
        model: ModelConfig,
        batch_tokens: float,
        micro_batch_tokens: float,
        optimizer: str,
        checkpoint_activations: bool = False,
    ) -> float:
        """Predicted speed of optimisation steps."""
        work = _work(model, batch_tokens, micro_batch_tokens, optimizer, checkpoint_activations)
        return 1 / float(np.dot(self.prices, work))


def _work(
    model: ModelConfig, batch_tokens: float, micro_batch_tokens: float, optimizer: str, checkpointed: bool
) -> tuple[float, ...]:
    """What one token costs: FLOPs (Muon's too), memory traffic, kernel launches, the optimizer's passes.

    The forward pass is a third of it, and a checkpointed block takes a second one.
    """
    head, blocks = 6 * model.vocab_size * model.width, 4 / 3 if checkpointed else 1.0
    flops = head + blocks * (flops_per_token(model) - head)
    traffic = 2 * model.vocab_size + blocks * (activation_elements(model) - 2 * model.vocab_size)
    launches = (blocks * model.depth + 1) / max(1.0, min(batch_tokens, micro_batch_tokens))
    if optimizer == "muon":
        # Five Newton-Schulz steps on an (a, b) matrix, a <= b: each 4·a²·b + 2·a³ operations.
        shapes = [(min(s), max(s)) for s in block_matrices(model)]
        flops += model.depth * sum(5 * (4 * a * a * b + 2 * a**3) for a, b in shapes) / batch_tokens
    return flops, traffic, launches, PASSES.get(optimizer, 10.0) * parameters(model) / batch_tokens
