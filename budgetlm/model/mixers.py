"""What may mix a decoder's tokens in the place of attention: an LSTM, or a gated causal convolution. The rest of a block stays as it is.

Neither knows positions or documents by itself: what it is told of them it leaves aside. The projection back into the residual stream is `o_proj`, as
attention's, and begins at zero. What they weigh: `model/kinds.py`.

Shapes: B batch, L length, D width, S state, K kernel.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from budgetlm.model.documents import Reach
from budgetlm.model.kinds import KERNEL, state_size
from budgetlm.model.size import ModelConfig


class Recurrence(nn.Module):
    """An LSTM of one layer (Hochreiter & Schmidhuber 1997), PyTorch's own, that begins every sequence with an empty state."""

    products_up_to = 0
    """Of attention; without meaning here."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(model.width, state_size(model), batch_first=True)
        self.o_proj = nn.Linear(state_size(model), model.width, bias=False)

    def forward(self, x_BLD: Tensor, _cos: Tensor, _sin: Tensor, _reach: Reach | None = None) -> Tensor:
        """Mix each position with those before it: (B, L, D) -> (B, L, D)."""
        state_BLS, _ = self.lstm(x_BLD)
        out_BLD: Tensor = self.o_proj(state_BLS)
        return out_BLD


class Convolution(nn.Module):
    """A causal convolution of each channel, gated before and after, as LFM2's but for a longer kernel (arXiv:2511.23404)."""

    products_up_to = 0
    """Of attention; without meaning here."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.in_proj = nn.Linear(model.width, 3 * model.width, bias=False)
        self.kernel = nn.Conv1d(model.width, model.width, KERNEL, groups=model.width, bias=False)
        self.o_proj = nn.Linear(model.width, model.width, bias=False)

    def forward(self, x_BLD: Tensor, _cos: Tensor, _sin: Tensor, _reach: Reach | None = None) -> Tensor:
        """Mix each position with the K - 1 before it: (B, L, D) -> (B, L, D)."""
        before_BLD, after_BLD, value_BLD = self.in_proj(x_BLD).chunk(3, dim=-1)
        padded_BDL = F.pad((before_BLD * value_BLD).transpose(1, 2), (KERNEL - 1, 0))
        out_BLD: Tensor = self.o_proj(after_BLD * self.kernel(padded_BDL).transpose(1, 2))
        return out_BLD


MIXER_MODULES: dict[str, type[Any]] = {"lstm": Recurrence, "conv": Convolution}
"""By name in a recipe; attention itself is the decoder's (`model/transformer.py`)."""
