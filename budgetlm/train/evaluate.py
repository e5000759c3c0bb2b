"""Bits per byte: the one quality metric, comparable across tokenizers.

Shapes: B sequences, L context length, V vocabulary.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from budgetlm.errors import EvaluationError
from budgetlm.model.encoder import hidden_targets
from budgetlm.model.transformer import LanguageModel
from budgetlm.train.parallel.team import ALONE, Team


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


def hidden_bits_per_byte(nats_N: Tensor, target_N: Tensor, sequences_BL: Tensor, bytes_V: Tensor) -> float:
    """Pseudo-log-likelihood of a masked language model, in bits per byte of text: an estimate from a sample of hidden tokens.

    The mean loss of a hidden token that stands for bytes, in bits, divided by the mean bytes of such a token in all of the sequences. Over the choice of
    what is hidden the loss has no bias, and the bytes do not depend on it. It is of tokens hidden together with others at a fixed rate
    (`data/masks.py`), so it is above that of one token at a time, and nothing that a decoder's bits per byte can be compared with.

    Args:
        nats_N: cross-entropy of each hidden token, in nats.
        target_N: their ids.
        sequences_BL: ids of all tokens of which some were hidden.
        bytes_V: as of `bits_per_byte`.

    Raises:
        EvaluationError: no hidden token stands for any byte.

    Source: Salazar et al. 2020, "Masked Language Model Scoring", equation 1 (arXiv:1910.14659), by a sample and per byte.
    """
    counted_N, bytes_BL = bytes_V[target_N] > 0, bytes_V[sequences_BL]
    if not counted_N.any():
        raise EvaluationError("no hidden token of the validation sample stands for any byte. Give more validation text.")
    nats = float((nats_N.double() * counted_N).sum()) / int(counted_N.sum())
    return nats / math.log(2) * int((bytes_BL > 0).sum()) / int(bytes_BL.sum())


@torch.no_grad()
def evaluate(
    network: LanguageModel,
    windows: np.ndarray,
    bytes_V: np.ndarray,
    *,
    micro_batch: int,
    precision: str = "fp32",
    tick: Callable[[], None] | None = None,
    team: Team = ALONE,
) -> float:
    """Bits per byte of a model on fixed windows.

    Args:
        windows: token ids, int64, shape (B, L + 1); with marks on those that an encoder is not to see.
        bytes_V: UTF-8 bytes behind each token id, shape (V,).
        micro_batch: sequences in one forward pass.
        precision: `fp32`, or any other for bf16 autocast.
        team: whose members evaluate a part each, and all are told the result.
    """
    device = team.device or next(network.parameters()).device
    nats: list[Tensor] = []
    for part, share in team.passes(len(windows), micro_batch):
        rows = torch.from_numpy(windows[part]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision != "fp32"):
            nats_N = team.nats(network, rows).float().cpu()
        if share:
            nats.append(nats_N)
        if tick:
            tick()
    nats_N, counts_V, all_BL = team.joined(nats), torch.from_numpy(bytes_V), torch.from_numpy(windows)
    target_N = hidden_targets(all_BL[:, :-1]) if network.config.encodes else all_BL[:, 1:].flatten()
    if network.config.encodes:
        whole = torch.from_numpy(np.where(windows < 0, ~windows, windows)[:, :-1])
        return hidden_bits_per_byte(nats_N, target_N, whole, counts_V)
    return bits_per_byte(nats_N, target_N, counts_V)
