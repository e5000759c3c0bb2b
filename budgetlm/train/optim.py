"""The optimizers of a recipe, from `torch.optim`, with what each trains and how strongly it is decayed.

AdamW trains everything, or Muon the matrices of the blocks and AdamW the rest. Muon's update is scaled to AdamW's size
(arXiv:2502.16982, section 2.2), so that one peak learning rate means the same for both.
"""

import math
from typing import Any

import torch

# The first optimizer imports it (2.7 s, 70 MB, measured): better once, here, than in every process forked for a trial.
import torch._dynamo
from torch import Tensor, nn

from budgetlm.train.config import OptimizerConfig


class MuonFloat32(torch.optim.Muon):
    """`torch.optim.Muon` whose orthogonalisation computes in fp32.

    torch's own converts to bf16, which a processor without bf16 instructions emulates: measured 77 GFLOP/s in fp32 against
    0.8 in bf16. Matrices of one shape go through the iteration together. State and options are the parent's.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update. Source: Jordan et al. 2024, "Muon"; Liu et al. 2025 for the scale (arXiv:2502.16982)."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault(weight.shape, []).append(weight)
            for weights in by_shape.values():
                self._update(weights, group)

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Move weights of one shape. Its own function, so that what it needs for one shape is gone before the next."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        momenta = [
            self.state[w].setdefault("momentum_buffer", torch.zeros_like(g)) for w, g in zip(weights, gradients, strict=True)
        ]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        orthogonal = _orthogonalise(torch.stack(updates), group["ns_coefficients"], group["ns_steps"])
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        scale = 0.2 * math.sqrt(max(weights[0].shape))
        torch._foreach_add_(weights, list(orthogonal.unbind()), alpha=-group["lr"] * scale)


def _orthogonalise(x_NAB: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """The nearest orthogonal matrices, roughly: the Newton-Schulz iteration of Muon, for N matrices at once."""
    a, b, c = coefficients
    tall = x_NAB.shape[1] > x_NAB.shape[2]
    x_NAB = x_NAB.mT if tall else x_NAB
    x_NAB = x_NAB / x_NAB.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram_NAA = x_NAB @ x_NAB.mT
        polynomial_NAA = torch.baddbmm(gram_NAA, gram_NAA, gram_NAA, beta=b, alpha=c)
        x_NAB = torch.baddbmm(x_NAB, polynomial_NAA, x_NAB, beta=a)
    return x_NAB.mT if tall else x_NAB


def build_optimizers(network: nn.Module, config: OptimizerConfig, *, bf16_is_fast: bool) -> list[torch.optim.Optimizer]:
    """Optimizers that together train every parameter once; the learning rate of each is set before every step."""
    named = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
    by_muon = [w for name, w in named if config.name == "muon" and w.ndim == 2 and ".layers." in name]
    taken = {id(weight) for weight in by_muon}
    rest = [weight for _, weight in named if id(weight) not in taken]
    groups = [
        {"params": [w for w in rest if w.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in rest if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=config.peak_lr, betas=(config.beta1, config.beta2), eps=1e-8, fused=True)
    ]
    if by_muon:
        muon = torch.optim.Muon if bf16_is_fast else MuonFloat32
        decay = config.weight_decay
        optimizers.append(muon(by_muon, lr=config.peak_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def set_lr(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Give every parameter group the learning rate of the coming step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
