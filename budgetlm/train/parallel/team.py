"""The devices that train one network together, as the loop sees them. This is one alone; the others are beside it, a file a kind.

All members run the same loop on the same clock, so that they decide alike without asking each other: the clock stands still
between the moments that they agree on (`train/parallel/members.py`). What differs is which sequences a member reads, and what it holds of the weights.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from budgetlm.model.transformer import LanguageModel
from budgetlm.train.config import RunConfig

Reader = Callable[[Tensor, float], Tensor]
"""Reads sequences of token ids, (B, L + 1), that are so large a share of a step's: their share of the loss, whose gradients are added to the weights'."""


class Team:
    """One device alone: everything is its own, and there is nobody to agree with."""

    size = 1
    """Devices that the budget pays for at once."""
    rank = 0
    """Which of them this one is."""
    device: torch.device | None = None
    """Where it computes; None for where the weights are."""
    compiles = True
    """Whether its blocks can be compiled."""

    @property
    def leads(self) -> bool:
        """Whether this member writes files and says how it goes."""
        return self.rank == 0

    def agree(self) -> None:
        """Take the leader's clock, and whether it is to stop, for everybody's. All members call it at the same places."""

    def passes(self, total: int, micro_batch: int) -> list[tuple[slice, float]]:
        """What this member reads of so many sequences: for each forward pass which ones, and what share of all they are.

        Args:
            total: sequences of a step, or of an evaluation, of all members.
            micro_batch: most in one forward pass.
        """
        count = -(-total // micro_batch)  # of about equal size, so that none is so small that it is compiled anew
        bounds = [total * part // count for part in range(count + 1)]
        return [(slice(start, end), (end - start) / total) for start, end in itertools.pairwise(bounds)]

    def clip(self, weights: Sequence[nn.Parameter], longest: float) -> Tensor:
        """Make the gradients those of all members, and no longer than this. Returns their norm before."""
        return torch.nn.utils.clip_grad_norm_(weights, longest)

    def total(self, value: Tensor) -> Tensor:
        """The sum of the members' values, a scalar."""
        return value

    def most(self, value: int) -> int:
        """The greatest of the members' values."""
        return value

    def added(self, value: float) -> float:
        """The members' values added up, each of which is its own."""
        return value

    def joined(self, values: Sequence[Tensor]) -> Tensor:
        """What the members have computed in their passes, on the CPU, in the order in which one alone would have: shape (N,)."""
        return torch.cat(list(values))

    def take(self, network: LanguageModel, config: RunConfig) -> None:
        """Put on the device what this member is to hold of a run's fresh network, which is in the processor's memory."""
        network.to(config.device)

    def learn(self, read: Reader, sequences: Tensor, micro_batch: int) -> list[Tensor]:
        """Add to the gradients what a step's sequences say, some of them at a time, and return their shares of the loss.

        Args:
            read: what reads some of them.
            sequences: token ids of all members, shape (B, L + 1).
            micro_batch: most in one forward pass.
        """
        return [read(sequences[part], share) for part, share in self.passes(len(sequences), micro_batch)]

    def nats(self, network: LanguageModel, sequences_BL: Tensor) -> Tensor:
        """Cross-entropy of each target of some sequences, as this member has it, shape (targets,)."""
        return network.loss(sequences_BL[:, :-1], sequences_BL[:, 1:], reduction="none")

    def gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """State of a network and its optimizers as one device alone would have it; all of it for the leader only."""
        return tensors

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:  # noqa: ARG002  # members that hold parts look at it
        """What this member is to hold of a whole tensor of a checkpoint, in the place of `like`."""
        return tensor

    def assembled(self, network: LanguageModel) -> LanguageModel:
        """The network with all of its weights, for whoever writes it."""
        return network


ALONE = Team()
