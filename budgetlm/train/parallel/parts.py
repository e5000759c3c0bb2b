"""What teams have in common whose members hold parts of a network: what is saved, loaded and written is whole, as one device alone would have it."""

import torch
from torch import Tensor

from budgetlm.model.transformer import LanguageModel
from budgetlm.train.parallel.members import Members
from budgetlm.train.parallel.spread import gathered, part_of


class InParts(Members):
    """Members whose weights are parts of whole ones."""

    def gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """One after the other, so that a device has room for one more."""
        kept: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            whole = gathered(tensor)
            if self.leads:
                kept[name] = whole.cpu()
        return kept

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """This member's part."""
        return part_of(tensor, like)

    def assembled(self, network: LanguageModel) -> LanguageModel:
        """The leader's has all weights; another member's none that mean anything."""
        weights = self.gathered(network.state_dict())
        with torch.device("meta"):
            whole = LanguageModel(network.config)
        if not self.leads:
            return whole
        whole.load_state_dict(weights, assign=True)
        whole.tie()
        whole.model.fill_positions()
        return whole
