"""One optimisation step: forward, backward, clip, update. What it computes with, and on which of its twins."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from budgetlm.compress.apply import Option
from budgetlm.compress.quantize import import_torchao, rounded_twin
from budgetlm.model.transformer import LanguageModel
from budgetlm.train.config import RunConfig
from budgetlm.train.fp8 import fp8_twin
from budgetlm.train.halves import Halves
from budgetlm.train.numerics import set_matmul
from budgetlm.train.optim import build_optimizers, set_lr
from budgetlm.train.parallel.team import ALONE, Team


def warm_up() -> None:
    """Load what PyTorch loads at the first step of a process, before a device's time is counted. On the CPU alone."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    torch.autograd.backward(weight.sum())
    torch.optim.AdamW([weight], fused=True).step()
    torch.optim.Muon([weight]).zero_grad()
    import_torchao()


def transferable(sequences: torch.Tensor, device: str) -> torch.Tensor:
    """Sequences that can be copied to a device while the CPU goes on: a GPU's from memory that stays where it is."""
    return sequences.pin_memory() if device == "cuda" else sequences


def in_pieces(sequences_BL: torch.Tensor, pieces: int) -> torch.Tensor:
    """Sequences (B, L + 1) cut into (B · pieces, L / pieces + 1): every target stays one, with fewer tokens before it."""
    if pieces == 1:
        return sequences_BL
    length = (sequences_BL.shape[1] - 1) // pieces
    return sequences_BL.unfold(1, length + 1, length).flatten(0, 1)


class Stepper:
    """One optimisation step: forward, backward, clip, update."""

    pieces = 1
    """Parts that each sequence is cut into."""

    gradient_norm = math.nan
    """Of the latest step, before it was clipped."""

    meanwhile: Callable[[], None] | None = None
    """Done in every step once the device has all its work, before it is waited for."""

    loss: Callable[[LanguageModel, Tensor, Tensor], Tensor] = staticmethod(LanguageModel.loss)
    """What is lessened: of a network, tokens (B, L) and their targets (B, L), a scalar."""

    def __init__(self, config: RunConfig, network: LanguageModel, team: Team = ALONE) -> None:
        self.config, self.network, self.team = config, network, team
        set_matmul(config.matmul, config.device)
        self.compiles = config.compile and team.compiles
        self.optimizers = build_optimizers(network, config.optimizer, bf16_is_fast=config.bf16_is_fast)
        self.renew()

    def renew(self, rounds: Option | None = None) -> None:
        """Compute by the network as it is now: after parts of it were taken out, or from now on with rounded weights.

        Args:
            rounds: whose rounding; rounded weights are not compiled, for most of a run has passed.
        """
        config, network = self.config, self.network
        self._weights = [weight for weight in network.parameters() if weight.requires_grad]
        self._halves = Halves(network) if config.precision == "bf16-master" and not rounds else None
        if rounds:
            self._trained = rounded_twin(network, rounds)
        elif config.precision == "fp8":
            self._trained = fp8_twin(network, emulate=config.device == "cpu")
        else:
            self._trained = self._halves.network if self._halves else network
        self._trained.model.checkpoint_activations = config.checkpoint_activations
        self._trained.model.attend_by_products(config.products_up_to)
        if self.compiles and not rounds:
            self._trained.model.compile_blocks(cuda_graphs=config.cuda_graphs)
        if (
            config.cuda_graphs
        ):  # a graph's own gradients are overwritten when it runs again: they are added to these, which stay
            for weight in self._weights:
                weight.grad = torch.zeros_like(weight)

    def do_not_compile(self) -> None:
        """From now on, compute by the blocks as they are; what a step that was broken off has left is forgotten."""
        self.compiles, self._trained.model.compiled = False, []
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self, rows: np.ndarray, lr: float) -> float:
        """Train on sequences of token ids, int64, shape (B, L + 1), of which this member of the team reads its part.

        Returns:
            The mean loss of all in nats, NaN once diverged.
        """
        config = self.config
        sequences = transferable(in_pieces(torch.from_numpy(rows), self.pieces), config.device)
        if self._halves:
            self._halves.refresh()
        losses = self.team.learn(self._read, sequences, self.pieces * config.micro_batch_sequences)
        norm = self.team.clip(self._weights, config.optimizer.clip)
        set_lr(self.optimizers, lr)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=not config.cuda_graphs)
        if self.meanwhile:
            self.meanwhile()
        losses_and_norm = torch.stack([self.team.total(torch.stack(losses).sum()), norm])
        mean, self.gradient_norm = losses_and_norm.tolist()  # the one time that the device is waited for
        return mean if math.isfinite(self.gradient_norm) else math.nan

    def _read(self, sequences: torch.Tensor, share: float) -> torch.Tensor:
        config = self.config
        tokens = sequences.to(config.device, non_blocking=True)
        if config.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.autocast(config.device, torch.bfloat16, enabled=config.precision != "fp32"):
            loss = self.loss(self._trained, tokens[:, :-1], tokens[:, 1:]) * share
        torch.autograd.backward(loss)
        return loss.detach()
