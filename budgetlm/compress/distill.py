"""Distillation: a student learns from a teacher's probabilities beside the text's own tokens.

The teacher's forward passes are part of every step and charged with it; nothing is kept of them from one step to the next, for a run reads
its text less than a few times. A teacher is a finished model: a folder, of budgetlm or of transformers, or a Hugging Face id. It
must have the student's tokenizer, or its probabilities would be of other tokens.

Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2 (arXiv:1503.02531); Busbridge et al. 2025,
"Distillation Scaling Laws", on when it pays (arXiv:2502.08606).

Shapes: B batch, L length, N tokens, D width, V vocabulary, R rows of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from budgetlm.compress.apply import Compression
from budgetlm.compress.teacher import check_teacher, seconds_of, teacher_folder
from budgetlm.errors import ConfigError, StudyError
from budgetlm.files import read_json
from budgetlm.model.footprint import LOGIT_ROWS
from budgetlm.model.transformer import LanguageModel


@dataclass(frozen=True)
class Teacher:
    """A finished model that a student learns from."""

    features: Callable[[Tensor], Tensor]
    """Token ids (B, L) -> what its head reads, (B, L, D)."""
    head: Callable[[Tensor], Tensor]
    """Those, (R, D) -> logits (R, V)."""
    seconds: float = 0.0
    """Device-seconds that it was trained for; 0 where its folder does not say."""


def load_teacher(name: str, tokenizer_file: Path, device: str) -> Teacher:
    """A teacher, after its tokenizer was found to be the student's.

    Raises:
        ConfigError: it cannot be loaded, or its tokens are not the student's.
    """
    folder = teacher_folder(name)
    check_teacher(name, tokenizer_file)
    if "budgetlm_mlp_ratio" in read_json(folder / "config.json"):
        from budgetlm.compress.artefact import load_artefact

        try:
            network, _, _ = load_artefact(folder)
        except StudyError as error:
            raise ConfigError(f"train.teacher: {error}") from error
        network = network.to(device).requires_grad_(False)
        return Teacher(
            network.features,
            lambda rows: torch.nn.functional.linear(rows.float(), network.lm_head.weight),
            seconds_of(folder),
        )
    return _from_transformers(name, folder, device)


def _from_transformers(name: str, folder: Path, device: str) -> Teacher:
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise ConfigError(
            f"train.teacher {name!r} is not a model of budgetlm, so it needs the package transformers: pip install transformers."
        ) from None
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"train.teacher {name!r} could not be loaded: {error}") from error
    model = cast(Any, model).to(device).eval().requires_grad_(False)
    return Teacher(lambda tokens: model(tokens).logits, lambda rows: rows)


def distil_loss(
    network: LanguageModel, teacher: Teacher, token_BL: Tensor, target_BL: Tensor, compression: Compression
) -> Tensor:
    """The mean over tokens of (1 - w) · cross-entropy + w · T² · KL(teacher || student at temperature T), in nats."""
    with torch.no_grad():
        seen_ND = teacher.features(token_BL).flatten(0, 1)
    features_ND = network.features(token_BL).flatten(0, 1)
    loss: Tensor = _DistilLoss.apply(  # type: ignore[no-untyped-call]
        features_ND.float(), network.lm_head.weight, target_BL.flatten(), seen_ND, teacher.head, compression
    )
    return loss


class _DistilLoss(torch.autograd.Function):
    """Its gradients are made on the way, some rows at a time, while the logits are at hand, as in `model/loss.py`."""

    @staticmethod
    def forward(
        ctx: Any,
        features_ND: Tensor,
        weight_VD: Tensor,
        target_N: Tensor,
        seen_ND: Tensor,
        head: Callable[[Tensor], Tensor],
        compression: Compression,
    ) -> Tensor:
        """The gradient of the logits is (1 - w) · (softmax - target's one) + w · T · (softmax at T - teacher's)."""
        w, t, most = compression.distil_weight, compression.distil_temperature, compression.distil_top_k
        count, loss = len(features_ND), features_ND.new_zeros(())
        to_features_ND, to_weight_VD = torch.empty_like(features_ND), torch.zeros_like(weight_VD)
        with torch.autocast(features_ND.device.type, enabled=False):
            for start in range(0, count, LOGIT_ROWS):
                rows = slice(start, start + LOGIT_ROWS)
                here_RD, target_R1 = features_ND[rows], target_N[rows, None]
                logits_RV = here_RD @ weight_VD.T
                taught_RV = _probabilities(head(seen_ND[rows]).float()[:, : len(weight_VD)] / t, most)
                plain_RV = logits_RV.log_softmax(1)
                soft_RV = plain_RV if t == 1 else (logits_RV / t).log_softmax(1)
                loss -= (1 - w) * plain_RV.gather(1, target_R1).sum()
                loss += w * t * t * (torch.xlogy(taught_RV, taught_RV) - taught_RV * soft_RV).sum()
                gradient_RV = (1 - w) * plain_RV.exp()
                gradient_RV.scatter_add_(1, target_R1, gradient_RV.new_full(target_R1.shape, w - 1))
                gradient_RV += w * t * (soft_RV.exp() - taught_RV)
                torch.mm(gradient_RV, weight_VD, out=to_features_ND[rows])
                to_weight_VD.addmm_(gradient_RV.T, here_RD)
        ctx.save_for_backward(to_features_ND.div_(count), to_weight_VD.div_(count))
        return loss / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Both gradients, by what the loss itself counts for."""
        to_features_ND, to_weight_VD = ctx.saved_tensors
        return to_features_ND * gradients[0], to_weight_VD * gradients[0], None, None, None, None


def _probabilities(logits_RV: Tensor, most: int) -> Tensor:
    """Softmax, among the likeliest few only where so many are asked for."""
    if 0 < most < logits_RV.shape[1]:
        least_R1 = logits_RV.topk(most, dim=1).values[:, -1:]
        logits_RV = logits_RV.masked_fill(logits_RV < least_R1, -torch.inf)
    return logits_RV.softmax(1)
