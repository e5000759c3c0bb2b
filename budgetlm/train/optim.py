"""The optimizers of a recipe, from `torch.optim` and `schedulefree`, with what each trains and how strongly it is decayed.

One of them trains everything, or Muon the matrices of the blocks and AdamW the rest. Learning rate and weight decay mean the
same for all, so that one range of a search serves all of them and a recipe is moved to other budgets by one rule:

- a rate is in AdamW's measure. Muon's update is scaled to AdamW's size (arXiv:2502.16982, section 2.2); the others are given
  the multiple of the rate that `LR_SCALE` says;
- weight decay is decoupled: a step shrinks weights by rate · decay, before any multiple of the rate (arXiv:1711.05101). `adam`
  is the published one, without decay (arXiv:1412.6980): with a decoupled one it would be AdamW.
"""

import math
from typing import Any

import torch

# The first optimizer imports it (2.7 s, 70 MB, measured): better once, here, than in every process forked for a trial.
import torch._dynamo
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from budgetlm.train.config import OptimizerConfig, OptimizerName
from budgetlm.train.parallel.spread import gathered, is_spread, part_of

LR_SCALE: dict[OptimizerName, float] = {"sgd": 25.0, "adafactor": 20.0, "adamax": 2.0}
"""Rate that an optimizer is given, for AdamW's: what brings its best one near AdamW's in two tiny models (docs/LOG.md)."""


class MuonFloat32(torch.optim.Muon):
    """`torch.optim.Muon` whose orthogonalisation computes in fp32.

    torch's own converts to bf16, which a processor without bf16 instructions emulates: measured 77 GFLOP/s in fp32 against
    0.8 in bf16. Matrices of one shape go through the iteration together. State and options are the parent's.

    Of a matrix that is spread over devices each gathers the whole update, for the iteration has no meaning for a part, and moves its own part.
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
        # Given away at once: a name for it here would keep it through the iteration, and that is the fullest moment of a step.
        orthogonal = _orthogonalise(
            torch.stack([gathered(update) for update in updates]), group["ns_coefficients"], group["ns_steps"]
        )
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        scale = 0.2 * math.sqrt(max(weights[0].shape))
        moves = [part_of(move, weight) for move, weight in zip(orthogonal.unbind(), weights, strict=True)]
        torch._foreach_add_(weights, moves, alpha=-group["lr"] * scale)


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


Groups = list[dict[str, Any]]


def build_optimizers(network: nn.Module, config: OptimizerConfig, *, bf16_is_fast: bool) -> list[torch.optim.Optimizer]:
    """Optimizers that together train every parameter once; rate, decay and momentum are set before every step."""
    named = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
    by_muon = [w for name, w in named if config.name == "muon" and w.ndim == 2 and ".layers." in name]
    taken = {id(weight) for weight in by_muon}
    groups = _groups([(name, weight) for name, weight in named if id(weight) not in taken], config)
    optimizers = [_everything_but_muon(groups, config)]
    if by_muon:
        muon = torch.optim.Muon if bf16_is_fast and not is_spread(by_muon[0]) else MuonFloat32
        group = {"params": by_muon, "lr_scale": 1.0, "decayed": True}
        optimizers.append(muon([group], lr=config.peak_lr, adjust_lr_fn="match_rms_adamw"))
    set_lr(optimizers, config.peak_lr)
    set_decay(optimizers, config.weight_decay)
    set_training(optimizers, on=True)
    return optimizers


def _groups(named: list[tuple[str, nn.Parameter]], config: OptimizerConfig) -> Groups:
    """Matrices, embedding and head, norms: what has a rate or a decay of its own."""
    scale = LR_SCALE.get(config.name, 1.0)
    ends = [w for name, w in named if "embed_tokens" in name or "lm_head" in name]
    apart = {id(weight) for weight in ends}
    matrices = [w for _, w in named if w.ndim >= 2 and id(w) not in apart]
    norms = [w for _, w in named if w.ndim < 2]
    decays = config.name != "adam"
    groups = [
        {"params": matrices, "lr_scale": scale, "decayed": decays},
        {"params": ends, "lr_scale": scale * config.embedding_lr, "decayed": decays},
        {"params": norms, "lr_scale": scale, "decayed": False},
    ]
    return [group for group in groups if group["params"]]


def _everything_but_muon(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of what Muon does not train. None works on all weights at once, which would take memory for copies of all."""
    lr, betas = config.peak_lr, (config.beta1, config.beta2)
    match config.name:
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=betas, eps=1e-8, fused=True)
        case "adamax":
            return _decayed_apart(torch.optim.Adamax(groups, lr=lr, betas=betas, eps=1e-8, foreach=False))
        case "sgd":
            return _decayed_apart(torch.optim.SGD(groups, lr=lr, momentum=config.beta1, nesterov=True, fused=True))
        case "nadam":
            return torch.optim.NAdam(groups, lr=lr, betas=betas, eps=1e-8, decoupled_weight_decay=True, foreach=False)
        case "adafactor":
            # torch's own first epsilon is far above the squared gradients of a large model whose gradient is clipped.
            return torch.optim.Adafactor(groups, lr=lr, eps=(1e-15, 1e-3), foreach=False)
        case "schedulefree":
            free: torch.optim.Optimizer = AdamWScheduleFree(groups, lr=lr, betas=betas, eps=1e-8, foreach=False)
            return free
        case "adamw" | "muon":
            return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=True)


def _decayed_apart(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Decoupled weight decay for an optimizer whose own would be added to the gradient."""
    for group in optimizer.param_groups:
        group["decoupled_decay"] = 0.0

    def shrink(stepping: torch.optim.Optimizer, *_: Any) -> None:
        with torch.no_grad():
            for group in stepping.param_groups:
                torch._foreach_mul_(group["params"], 1 - group["lr"] * group["decoupled_decay"])

    optimizer.register_step_pre_hook(shrink)
    return optimizer


def set_lr(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Give every parameter group the learning rate of the coming step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]


def set_decay(optimizers: list[torch.optim.Optimizer], decay: float) -> None:
    """Give every parameter group the weight decay of the coming step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            name = "decoupled_decay" if "decoupled_decay" in group else "weight_decay"
            group[name] = decay / group["lr_scale"] if group["decayed"] else 0.0


def set_momentum(optimizers: list[torch.optim.Optimizer], momentum: float) -> None:
    """Give Muon the momentum of the coming step; the others keep theirs."""
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.Muon):
            for group in optimizer.param_groups:
                group["momentum"] = momentum


def set_training(optimizers: list[torch.optim.Optimizer], *, on: bool) -> None:
    """Let schedule-free AdamW put into the network the weights that it trains at, or those to evaluate and export.

    The others have but one kind. Going back and forth rounds, so it is done where evaluations are, and nowhere else.

    Source: Defazio et al. 2024, "The Road Less Scheduled" (arXiv:2405.15682).
    """
    for optimizer in optimizers:
        if isinstance(optimizer, AdamWScheduleFree):
            optimizer.train() if on else optimizer.eval()


def average_into(average: nn.Module, network: nn.Module, weight: float) -> None:
    """Move averaged weights this share of the way towards those of the network."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), weight)
