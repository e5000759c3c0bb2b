"""How fast a shape will train, from what was measured on others. Arithmetic only, no torch.

The seconds for one token are a sum of what the device does for it: matrix products, memory traffic beside them, kernels
launched, and the optimizer's share of the step. The four prices are fitted, non-negative, to measured speeds; small
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


@dataclass(frozen=True)
class SpeedPoint:
    """A measured training speed."""

    model: ModelConfig
    batch_tokens: int
    micro_batch_tokens: int
    optimizer: str
    tokens_per_second: float


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
        prior = np.array([2 * floor, 30 * floor, 100_000 * floor, 2 * floor])
        rows = [np.array(_work(p.model, p.batch_tokens, p.micro_batch_tokens, p.optimizer)) for p in points]
        design = [row * p.tokens_per_second for row, p in zip(rows, points, strict=True)]
        weak = [0.1 * np.eye(4)[i] / prior[i] for i in range(4)]
        wanted = [1.0] * len(points) + [0.1] * 4
        prices, _ = nnls(np.array(design + weak), np.array(wanted))
        prices[0] = max(prices[0], floor)
        return cls(tuple(float(price) for price in prices))

    def tokens_per_second(self, model: ModelConfig, batch_tokens: float, micro_batch_tokens: float, optimizer: str) -> float:
        """Predicted speed of optimisation steps."""
        return 1 / float(np.dot(self.prices, _work(model, batch_tokens, micro_batch_tokens, optimizer)))


def _work(model: ModelConfig, batch_tokens: float, micro_batch_tokens: float, optimizer: str) -> tuple[float, ...]:
    """What one token costs: FLOPs, memory traffic, kernel launches, the optimizer's share."""
    launches = (model.depth + 1) / max(1.0, min(batch_tokens, micro_batch_tokens))
    update = 10.0 * parameters(model)
    if optimizer == "muon":
        # Five Newton-Schulz steps on an (a, b) matrix, a <= b: each 4·a²·b + 2·a³ operations.
        shapes = [(min(s), max(s)) for s in block_matrices(model)]
        update += model.depth * sum(5 * (4 * a * a * b + 2 * a**3) for a, b in shapes)
    return float(flops_per_token(model)), float(activation_elements(model)), launches, update / batch_tokens
