"""Pruning: the smallest weights of the blocks set to zero on the way, or whole heads, hidden units and layers taken out.

Zeros come on the schedule of Zhu & Gupta 2017 (section 3, arXiv:1710.01878), by magnitude, and stay: a mask is applied after every step
to weights and average. Taken-out parts leave a smaller dense network, with its optimizer's state cut along; what is left trains on faster.
"""

import math

import torch
from torch import Tensor, nn

from budgetlm.compress.apply import Compression, shrunk
from budgetlm.compress.layout import pruned_of
from budgetlm.model.size import ModelConfig
from budgetlm.model.transformer import Block, LanguageModel

UPDATES = 32
"""Steps in which the share of zeros rises."""
Kept = dict[str, tuple[Tensor | None, ...]]
"""Of each parameter, and each of its dimensions, the indices that stay; None for all."""


def updates_due(compression: Compression, progress: float) -> int:
    """Pruning updates, of `UPDATES`, that are due at `progress`."""
    length = compression.end - compression.start
    if progress < compression.start:
        return 0
    return UPDATES if length <= 0 else min(UPDATES, math.floor(UPDATES * (progress - compression.start) / length))


def share_after(updates: int) -> float:
    """Share of what is asked for that is pruned after so many updates: 1 - (1 - t)^3, fast at first (Zhu & Gupta 2017, equation 1)."""
    return 1 - (1 - updates / UPDATES) ** 3


def prunable(network: LanguageModel) -> dict[str, nn.Parameter]:
    """The matrices that are pruned: those of the blocks."""
    return {n: p for n, p in network.named_parameters() if p.ndim == 2 and ".layers." in n}


def masks_for(network: LanguageModel, compression: Compression, share: float = 1.0) -> dict[str, Tensor]:
    """True where weights stay, when this share of what is asked for is pruned: exactly as many as that, the smallest first.

    Zeros go before anything else, so what is pruned stays pruned as the share grows.
    """
    weights = {name: weight.detach().abs() for name, weight in prunable(network).items()}
    if compression.prunes == "prune24":
        return {name: _two_of_four(weight, share) for name, weight in weights.items()}
    counts = {name: pruned_of(weight.numel(), compression.sparsity * share) for name, weight in weights.items()}
    if compression.scope == "layer":
        return {name: _without_smallest(weight, counts[name]) for name, weight in weights.items()}
    flat = torch.cat([weight.flatten() for weight in weights.values()])
    pieces = torch.split(_without_smallest(flat, sum(counts.values())), [weight.numel() for weight in weights.values()])
    return {name: piece.view_as(weight) for (name, weight), piece in zip(weights.items(), pieces, strict=True)}


def _without_smallest(magnitude: Tensor, count: int) -> Tensor:
    kept = torch.ones_like(magnitude, dtype=torch.bool)
    kept.view(-1)[magnitude.flatten().topk(count, largest=False).indices] = False
    return kept


def _two_of_four(magnitude_AB: Tensor, share: float) -> Tensor:
    """The pattern in this share of all fours, those first in which it takes the least away."""
    fours_N4 = magnitude_AB.reshape(-1, 4)
    smallest_N2 = fours_N4.topk(2, largest=False).indices
    lost_N = fours_N4.gather(1, smallest_N2).square().sum(1)
    chosen = lost_N.topk(round(share * len(lost_N)), largest=False).indices
    kept = torch.ones_like(fours_N4, dtype=torch.bool)
    kept[chosen[:, None], smallest_N2[chosen]] = False
    return kept.view_as(magnitude_AB)


def zeros_of(network: LanguageModel) -> dict[str, Tensor]:
    """The masks that a network with pruned weights shows."""
    return {name: weight.detach() != 0 for name, weight in prunable(network).items()}


def apply_masks(masks: dict[str, Tensor], network: LanguageModel) -> None:
    """Set what is pruned to zero."""
    weights = prunable(network)
    with torch.no_grad():
        torch._foreach_mul_([weights[name] for name in masks], list(masks.values()))


def mask_states(masks: dict[str, Tensor], network: LanguageModel, optimizers: list[torch.optim.Optimizer]) -> None:
    """Set what optimizers remember of pruned weights to zero, so that nothing pushes them back."""
    named = prunable(network)
    for optimizer in optimizers:
        for name, mask in masks.items():
            for value in optimizer.state.get(named[name], {}).values():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    value.mul_(mask)


# --- whole parts -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def parts_to_keep(network: LanguageModel, compression: Compression, token_BL: Tensor | None) -> Kept:
    """What stays of every parameter when heads, hidden units and layers are taken out, the weightiest kept.

    A head, with its keys and values, weighs the product of its value's and its output's norms; a hidden unit the product of the norms of its three
    vectors; a layer how much it turns the residual stream over a few sequences (Men et al. 2024, ShortGPT, section 3, arXiv:2403.03853).

    Args:
        token_BL: sequences to see layers at work on; None for any parts of the right number, for weights that will be replaced.
    """
    old, new = network.config, shrunk(network.config, compression)
    layers = list(range(old.blocks))
    if new.blocks < old.blocks and token_BL is not None:
        turned = _turning(network, token_BL)
        layers = sorted(sorted(layers, key=lambda layer: -turned[layer])[: new.blocks])
    kept: Kept = {}
    for layer in layers[: new.blocks]:
        block = network.model.layers[layer]
        assert isinstance(block, Block)
        hidden = _largest(_unit_weights(block), new.hidden)
        groups = _largest(_head_weights(block, old), new.kv_heads)
        queries, keys = _heads(groups, old.kv_groups * old.head_size), _heads(groups, old.head_size)
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        kept |= {f"model.layers.{layer}.{name}": (None,) * p.ndim for name, p in block.named_parameters()}
        kept |= {f"{attention}.q_proj.weight": (queries, None), f"{attention}.o_proj.weight": (None, queries)}
        kept |= {f"{attention}.{name}_proj.weight": (keys, None) for name in "kv"}
        kept |= {f"{mlp}.{name}_proj.weight": (hidden, None) for name in ("gate", "up")}
        kept |= {f"{mlp}.down_proj.weight": (None, hidden)}
    others = {name: p for name, p in network.named_parameters() if ".layers." not in name}
    return kept | {name: (None,) * p.ndim for name, p in others.items()}


@torch.no_grad()
def take_out(
    network: LanguageModel, kept: Kept, new: ModelConfig
) -> dict[nn.Parameter, tuple[nn.Parameter, tuple[Tensor | None, ...]]]:
    """Leave of a network what is kept, in place.

    Returns:
        Of each parameter as it was, the one that took its place and what was kept of it.
    """
    replaced: dict[nn.Parameter, tuple[nn.Parameter, tuple[Tensor | None, ...]]] = {}
    for name, parameter in list(network.named_parameters()):
        if name in kept and any(index is not None for index in kept[name]):
            module_name, _, own = name.rpartition(".")
            smaller = nn.Parameter(_cut(parameter.detach(), kept[name]), requires_grad=parameter.requires_grad)
            setattr(network.get_submodule(module_name), own, smaller)
            replaced[parameter] = (smaller, kept[name])
        elif name in kept:
            replaced[parameter] = (parameter, kept[name])
    layers = sorted({int(name.split(".")[2]) for name in kept if ".layers." in name})
    network.model.layers = nn.ModuleList(network.model.layers[layer] for layer in layers)
    network.config = network.model.model = new
    return replaced


def cut_states(
    optimizers: list[torch.optim.Optimizer], replaced: dict[nn.Parameter, tuple[nn.Parameter, tuple[Tensor | None, ...]]]
) -> None:
    """Let optimizers go on with the parameters that are left, and what they remember of them.

    A state that sums over a dimension (Adafactor's) is kept along it as it is.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [replaced[p][0] for p in group["params"] if p in replaced]
        before = dict(optimizer.state)
        optimizer.state.clear()
        for parameter, state in before.items():
            if isinstance(parameter, nn.Parameter) and parameter in replaced:
                smaller, kept = replaced[parameter]
                optimizer.state[smaller] = {
                    key: _cut(value, kept) if isinstance(value, Tensor) and value.ndim == len(kept) else value
                    for key, value in state.items()
                }


def _cut(value: Tensor, kept: tuple[Tensor | None, ...]) -> Tensor:
    for dimension, index in enumerate(kept):
        if index is not None and value.shape[dimension] > 1:
            value = value.index_select(dimension, index)
    return value.contiguous()


def _turning(network: LanguageModel, token_BL: Tensor) -> list[float]:
    """One minus the cosine between what goes into each block and what comes out, its mean over tokens; of a shared one the sum over its layers."""
    blocks = list(network.model.layers)
    turned = [0.0] * len(blocks)

    def look(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        turned[blocks.index(block)] += 1 - float(nn.functional.cosine_similarity(inputs[0], output, dim=-1).mean())

    hooks = [block.register_forward_hook(look) for block in blocks]
    network.model(token_BL)
    for hook in hooks:
        hook.remove()
    return turned


def _unit_weights(block: Block) -> Tensor:
    mlp = block.mlp
    weights: Tensor = mlp.gate_proj.weight.norm(dim=1) * mlp.up_proj.weight.norm(dim=1) * mlp.down_proj.weight.norm(dim=0)
    return weights


def _head_weights(block: Block, model: ModelConfig) -> Tensor:
    """Of each key/value head, with the queries that share it."""
    attention, groups = block.self_attn, model.kv_heads
    value = attention.v_proj.weight.view(groups, -1).norm(dim=1)
    output = attention.o_proj.weight.view(model.width, groups, -1).norm(dim=(0, 2))
    weights: Tensor = value * output
    return weights


def _largest(weights: Tensor, count: int) -> Tensor:
    return torch.sort(weights.topk(count).indices).values


def _heads(groups: Tensor, size: int) -> Tensor:
    """Rows of the heads with these numbers, so many to a head."""
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()
