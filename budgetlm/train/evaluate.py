"""Bits per byte: the one quality metric, comparable across tokenizers.

Shapes: B sequences, L context length, V vocabulary.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from budgetlm.errors import EvaluationError
from budgetlm.model.transformer import LanguageModel


def bits_per_byte(nats_BL: Tensor, target_BL: Tensor, bytes_V: Tensor) -> float:
    """Cost of coding the targets, in bits per byte of text.

    Args:
        nats_BL: cross-entropy of each target, in nats, any shape.
        target_BL: token ids, int64, the same shape.
        bytes_V: UTF-8 bytes behind each token id, shape (V,); 0 leaves that token out.

    Raises:
        EvaluationError: no target stands for any byte, so there is nothing to measure.

    Source: Gao et al. 2020, "The Pile", section 3 (arXiv:2101.00027).
    """
    bytes_BL = bytes_V[target_BL]
    total = int(bytes_BL.sum())
    if total == 0:
        raise EvaluationError("no target of the validation sample stands for any byte. Give more validation text.")
    return float((nats_BL.double() * (bytes_BL > 0)).sum()) / math.log(2) / total


@torch.no_grad()
def evaluate(
    network: LanguageModel,
    windows: np.ndarray,
    bytes_V: np.ndarray,
    *,
    micro_batch: int,
    precision: str = "fp32",
    tick: Callable[[], None] | None = None,
) -> float:
    """Bits per byte of a model on fixed windows.

    Args:
        windows: token ids, int64, shape (B, L + 1).
        bytes_V: UTF-8 bytes behind each token id, shape (V,).
        micro_batch: sequences in one forward pass.
        precision: `fp32`, or any other for bf16 autocast.
    """
    device = next(network.parameters()).device
    nats, targets = [], []
    for start in range(0, len(windows), micro_batch):
        rows = torch.from_numpy(windows[start : start + micro_batch]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision != "fp32"):
            nats.append(network.loss(rows[:, :-1], rows[:, 1:], reduction="none").float().cpu())
        targets.append(rows[:, 1:].flatten().cpu())
        if tick:
            tick()
    return bits_per_byte(torch.cat(nats), torch.cat(targets), torch.from_numpy(bytes_V))
