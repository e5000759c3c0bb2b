"""What a run does to its model on the way, at the right moments: the one thing of this room that the training loop knows."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from budgetlm.compress.apply import Compression, Option, shrunk
from budgetlm.compress.artefact import Artefact, make_artefact
from budgetlm.compress.distill import Teacher, distil_loss, load_teacher
from budgetlm.compress.prune import (
    UPDATES,
    apply_masks,
    cut_states,
    mask_states,
    masks_for,
    parts_to_keep,
    share_after,
    take_out,
    updates_due,
    zeros_of,
)
from budgetlm.compress.quantize import check_here
from budgetlm.model.size import ModelConfig
from budgetlm.model.transformer import LanguageModel

SEQUENCES_SEEN = 4
"""Sequences over which layers are judged before some are taken out."""


@dataclass(frozen=True)
class Stage:
    """How far a run's compression has got; a checkpoint keeps it."""

    pruning_updates: int = 0
    """Of `prune.UPDATES`."""
    shrunk_at: int = -1
    """Training sequences that had been read when parts were taken out; -1 if they are still there."""


class Compressor:
    """Compresses a network and whatever belongs to it while it is trained, in place."""

    rounds: Option | None = None
    """With whose rounding the coming steps compute."""

    def __init__(
        self,
        compression: Compression,
        network: LanguageModel,
        optimizers: list[torch.optim.Optimizer],
        average: LanguageModel | None,
        tokenizer: Path,
        device: str,
    ) -> None:
        self.compression, self.network, self.optimizers, self.average = compression, network, optimizers, average
        self.before: ModelConfig = network.config
        """The shape before anything was taken out."""
        self.stage = Stage()
        self._masks: dict[str, Tensor] = {}
        self._teacher: Teacher | None = None
        if compression.distils:
            self._teacher = load_teacher(compression.teacher, tokenizer, device)
        check_here([compression.option], device, compression.teacher)
        self.teacher_seconds = self._teacher.seconds if self._teacher else 0.0
        """Device-seconds that the teacher itself was trained for, where its folder says so."""

    def loss(self, network: LanguageModel, token_BL: Tensor, target_BL: Tensor) -> Tensor:
        """What training lessens: cross-entropy, or that and the distance to the teacher."""
        if self._teacher:
            return distil_loss(network, self._teacher, token_BL, target_BL, self.compression)
        return network.loss(token_BL, target_BL)

    def before_step(self, progress: float, sequences_done: int, rows: np.ndarray) -> bool:
        """Compress as far as is due before the step at `progress`.

        Args:
            rows: the sequences of the step.

        Returns:
            Whether the step is to compute by other modules or weights than the one before.
        """
        asked, changed = self.compression, False
        if asked.shrinks and self.stage.shrunk_at < 0 and progress >= asked.start:
            self._shrink(sequences_done, rows)
            changed = True
        if asked.prunes and (due := updates_due(asked, progress)) > self.stage.pruning_updates:
            self._prune(due)
        option = asked.quantised
        if option and option.rounds_in_training and not self.rounds and progress >= 1 - asked.qat_share:
            self.rounds, changed = option, True
        return changed

    def after_step(self) -> None:
        """Keep at zero what is pruned; some optimizers keep a second copy of the weights."""
        if self._masks:
            apply_masks(self._masks, self.network)
            if any("z" in state for optimizer in self.optimizers for state in list(optimizer.state.values())[:1]):
                mask_states(self._masks, self.network, self.optimizers)

    def finish(self, sequences_done: int, rows: np.ndarray) -> None:
        """See that all that was asked for is done, however few steps there were."""
        if self.compression.shrinks and self.stage.shrunk_at < 0:
            self._shrink(sequences_done, rows)
        if self.compression.prunes and self.stage.pruning_updates < UPDATES:
            self._prune(UPDATES)

    def fit(self, stage: Stage) -> None:
        """Give the network, its average and its optimizers the shapes that they had at `stage`; what they hold is to be replaced."""
        if stage.shrunk_at >= 0 > self.stage.shrunk_at:
            self._take_out(None)
        self.stage = stage

    def resume(self) -> None:
        """Go on from a checkpoint that was just loaded: what is zero was pruned."""
        if self.stage.pruning_updates:
            self._masks = {name: mask.float() for name, mask in zeros_of(self.network).items()}

    def deployed(self, network: LanguageModel) -> tuple[LanguageModel, Artefact]:
        """A network as it would be deployed, read again from its file's bytes; and those."""
        artefact = make_artefact(network, self.compression)
        again = artefact.network()
        # Where it was trained within documents it is to be given one at a time, so it is scored as if it were.
        again.config = again.model.model = replace(again.config, document_end=network.config.document_end)
        return again.to(next(network.parameters()).device), artefact

    def _prune(self, updates: int) -> None:
        masks = masks_for(self.network, self.compression, share_after(updates))
        self._masks = {name: mask.float() for name, mask in masks.items()}
        apply_masks(self._masks, self.network)
        mask_states(self._masks, self.network, self.optimizers)
        if self.average:
            apply_masks(self._masks, self.average)
        self.stage = Stage(updates, self.stage.shrunk_at)

    def _shrink(self, sequences_done: int, rows: np.ndarray) -> None:
        device = next(self.network.parameters()).device
        self._take_out(torch.from_numpy(rows[:SEQUENCES_SEEN, :-1]).to(device))
        self.stage = Stage(self.stage.pruning_updates, sequences_done)

    def _take_out(self, token_BL: Tensor | None) -> None:
        new = shrunk(self.network.config, self.compression)
        kept = parts_to_keep(self.network, self.compression, token_BL)
        cut_states(self.optimizers, take_out(self.network, kept, new))
        if self.average:
            take_out(self.average, kept, new)
