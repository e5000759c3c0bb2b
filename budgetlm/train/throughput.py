"""How fast a shape will train, from what was measured on others. Arithmetic only, no torch.

The seconds for one token are a sum of what the device does for it, each kind of work at a price of its own. The prices are
fitted, non-negative, to measured speeds, beside a prior for kinds that the measurements hardly show; small models then come out
at the low utilisation that they really have, which is what a miniature has to know (DESIGN 4.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import NamedTuple

import numpy as np

from budgetlm.compress.apply import Compression
from budgetlm.model.size import ModelConfig, block_matrices, end_products, flops_per_token, parameters
from budgetlm.train.compilation import EXPECTED, Compilation
from budgetlm.train.config import Precision

PRIOR_WEIGHT = 0.4
"""How much a guessed price counts beside a measurement, which counts 1."""


class Work(NamedTuple):
    """What a token of an optimisation step takes; or, in the same fields, the seconds for one of each."""

    products: float
    """Floating-point operations of the model's matrix products and attention."""
    elements: float
    """Numbers that the blocks read or write beside them: norms, rotations, activations, residuals."""
    scores: float
    """Attention scores."""
    words: float
    """Scores of the vocabulary, through softmax and loss."""
    passes: float
    """Blocks begun: what a forward and backward pass through one costs however few tokens there are."""
    steps: float
    """Optimisation steps begun."""
    updates: float
    """Parameters updated by the optimizer, in units of AdamW's update; Muon's matrices count twice."""
    gradients: float
    """Parameters whose gradient is written, once a pass."""
    orthogonal: float
    """Floating-point operations of Muon."""
    matrices: float
    """Matrices that Muon makes orthogonal, once a step: what that takes however small they are."""


def _prior(device: str, floor: float, precision: Precision) -> Work:
    """Prices to begin with, in seconds; `floor` is what a floating-point operation takes at the measured ceiling.

    Those of a CPU are what 32 and 64 shapes on one core of an AMD EPYC gave (tests/benchmarks/bench_oracle.py), in fp32 on one without units for
    bf16 and in bf16 on one with: there all that is no product takes longer beside them. Those of a GPU are reckoned, not measured: about 10 bytes an
    element at 200 operations in the time of a byte, and 75 kernels of 5 microseconds for a block.
    """
    if device == "cuda":
        return Work(
            products=1.2 * floor,
            elements=2000 * floor,
            scores=20 * floor,
            words=3000 * floor,
            passes=4e-4,
            steps=1e-3,
            updates=6000 * floor,
            gradients=2000 * floor,
            orthogonal=1.5 * floor,
            matrices=1e-4,
        )
    if precision == "fp32":
        return Work(
            products=floor,
            elements=600 * floor,
            scores=150 * floor,
            words=800 * floor,
            passes=1.2e-3,
            steps=4e-4,
            updates=500 * floor,
            gradients=300 * floor,
            orthogonal=1.1 * floor,
            matrices=2.1e-4,
        )
    return Work(
        products=0.75 * floor,
        elements=700 * floor,
        scores=150 * floor,
        words=800 * floor,
        passes=1.6e-3,
        steps=4.3e-4,
        updates=570 * floor,
        gradients=350 * floor,
        orthogonal=floor,
        matrices=2.2e-4,
    )


UPDATE = {"adamax": 2.2, "nadam": 3.1, "adafactor": 4.8, "schedulefree": 2.9}
"""What an optimizer's update of a parameter takes, as a multiple of AdamW's, 1 for those not named. Measured on a CPU
(`bench_optimizers`); an average of the weights, about a third of AdamW's, is left out."""


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
    products_up_to: int = 0
    """Length of the longest sequences whose attention plain products compute faster than the fused kernel."""
    compilation: Compilation = EXPECTED["cpu"]
    """What compiling gains and takes: tried, or as expected."""


@dataclass(frozen=True)
class SpeedModel:
    """Seconds a token as the sum of its work at these prices."""

    prices: Work
    floor: float = 0.0
    """Seconds of a floating-point operation at the device's ceiling: no shape is believed to pass it."""

    @classmethod
    def fit(
        cls, points: Sequence[SpeedPoint], ceiling_gflops: float, device: str = "cpu", precision: Precision = "fp32"
    ) -> "SpeedModel":
        """Fit the prices to measurements by relative error.

        Args:
            ceiling_gflops: speed of a large matrix product in that precision, of which the prior is made.
            precision: what is trained in.
        """
        from scipy.optimize import nnls  # here, for it takes longer to load than all else that a command needs at once

        floor = 1 / (ceiling_gflops * 1e9)
        prior = np.array(_prior(device, floor, precision))
        work = [
            np.array(work_of(p.model, p.batch_tokens, p.micro_batch_tokens, p.optimizer, p.checkpoint_activations))
            for p in points
        ]
        measured = [row * p.tokens_per_second for row, p in zip(work, points, strict=True)]
        design = np.array([*measured, *(PRIOR_WEIGHT * np.diag(1 / prior))])
        wanted = np.array([1.0] * len(points) + [PRIOR_WEIGHT] * len(prior))
        prices, _ = nnls(design, wanted)
        return cls(Work(*(float(price) for price in prices)), floor)

    def tokens_per_second(
        self,
        model: ModelConfig,
        batch_tokens: float,
        micro_batch_tokens: float,
        optimizer: str,
        checkpoint_activations: bool = False,
    ) -> float:
        """Predicted speed of optimisation steps."""
        work = work_of(model, batch_tokens, micro_batch_tokens, optimizer, checkpoint_activations)
        seconds: float = sum(map(mul, self.prices, work))
        return 1 / max(seconds, self.floor * (work.products + work.orthogonal))


ROUNDED_PACE = 0.8
"""Speed of steps with rounded weights, as a share of the others', before a study has learnt its own (`bench_compress`)."""


def paced(whole: float, small: float, compression: Compression, model: SpeedModel) -> float:
    """Tokens per second in the mean over a compressed run's time.

    Args:
        whole, small: of the shape as it is at first, and as it is once parts were taken out.
    """
    if compression.distils:  # a forward pass of the teacher is two operations for each of its parameters
        teacher = 2 * compression.teacher_parameters * model.prices.products
        whole, small = 1 / (1 / whole + teacher), 1 / (1 / small + teacher)
    mean = compression.start * whole + (1 - compression.start) * small if compression.shrinks else whole
    return mean - compression.rounded_share * (1 - ROUNDED_PACE) * small


def learnt_paces(measured: Sequence[tuple[str, float, float]]) -> dict[str, float]:
    """How fast options proved to be, as a multiple of what was foretold: the median of an option's runs, and one that was right.

    Args:
        measured: of runs, option, measured and foretold tokens per second.
    """
    ratios: dict[str, list[float]] = {}
    for option, found, foretold in measured:
        ratios.setdefault(option, [1.0]).append(found / foretold)
    return {option: float(np.median(values)) for option, values in ratios.items()}


class Again(NamedTuple):
    """What a second forward pass through a block adds, as a share of what the block takes without."""

    products: float
    """One forward pass beside two backward ones' worth."""
    beside: float
    """Of elements and scores, where backward passes are quicker than twice a forward one."""
    passes: float
    """With what it takes to go back and begin again."""


AGAIN = Again(1 / 3, 0.6, 1.0)
"""The last two fitted to 64 shapes in bf16 on a CPU (`bench_oracle`, docs/LOG.md)."""


def work_of(model: ModelConfig, batch_tokens: float, micro_batch_tokens: float, optimizer: str, checkpointed: bool) -> Work:
    """What one token takes; of a checkpointed block, with its second forward pass (`AGAIN`)."""
    micro = max(1.0, min(batch_tokens, micro_batch_tokens))
    again = AGAIN if checkpointed else Again(0, 0, 0)
    head, count = 6 * end_products(model), parameters(model)
    beside = model.depth * (1 + again.beside)
    updated, orthogonal, matrices = UPDATE.get(optimizer, 1.0) * count, 0.0, 0
    if optimizer == "muon":
        # Five Newton-Schulz steps on an (a, b) matrix, a <= b: each 4·a²·b + 2·a³ operations.
        shapes = [(min(s), max(s)) for s in block_matrices(model)]
        matrices = model.blocks * len(shapes)
        orthogonal = model.blocks * sum(5 * (4 * a * a * b + 2 * a**3) for a, b in shapes)
        updated += model.blocks * sum(a * b for a, b in shapes)
    return Work(
        products=head + (flops_per_token(model) - head) * (1 + again.products),
        elements=beside * (10 * model.width + 4 * model.hidden),
        scores=beside * model.heads * model.context_length * (model.mixer == "attention"),
        words=model.vocab_size * (model.mask_rate if model.encodes else 1.0),
        passes=(model.depth * (1 + again.passes) + 1) / micro,
        steps=1 / batch_tokens,
        updates=updated / batch_tokens,
        gradients=count / micro,
        orthogonal=orthogonal / batch_tokens,
        matrices=matrices / batch_tokens,
    )
