"""Pipeline parallel: every member holds some blocks, and hands on what comes of them, a micro-batch at a time.

By PyTorch's `torch.distributed.pipelining`: all micro-batches of a step forward and backward, one of each in turns (1F1B), so that at most as many are under way as there are
stages. The first member has the embedding, the last the head and the loss; a tied matrix is with both, which add up its gradients and so move it alike. Members need
only a slow link, to their neighbours; each waits at a step's beginning and end, for a share of about (stages - 1) / micro-batches of it.

What another member holds is here as a shape without memory, so that optimizers and checkpoints count weights as one device alone does.

Not run on a GPU by us. Sources: Huang et al. 2018, GPipe (arXiv:1811.06965); Narayanan et al. 2019, PipeDream (arXiv:1806.03377), for 1F1B; PyTorch's
documentation, `torch.distributed.pipelining`.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle
from torch.nn import functional

from budgetlm.budget.clock import Clock
from budgetlm.model.size import ModelConfig, block_matrices, end_products
from budgetlm.model.transformer import LanguageModel, tied_names
from budgetlm.train.config import RunConfig
from budgetlm.train.parallel.parts import InParts
from budgetlm.train.parallel.team import Reader, Team

MICRO_BATCHES = 4
"""So many a stage, where the batch has them: then members wait for a fifth of a step at most (GPipe, section 3.3)."""
PADDING = -1
"""The target of what fills up a last micro-batch, for all have one shape."""


class Pipelined(InParts):
    """Every member holds some blocks."""

    def __init__(self, clock: Clock, asked: Callable[[], bool], device: str = "cpu") -> None:
        super().__init__(clock, asked, device)
        self._scheduled: tuple[int, ...] = ()
        self._tied: list[nn.Parameter] = []
        """What the first and the last member have both."""
        self._pair: dist.ProcessGroup | None = None

    def passes(self, total: int, micro_batch: int) -> list[tuple[slice, float]]:
        """All of it, for every member."""
        return Team.passes(self, total, micro_batch)

    def take(self, network: LanguageModel, config: RunConfig) -> None:
        """Keep this member's blocks, and of the others' the shapes."""
        self._stage, self._scheduled = _Stage(network, config, self.rank, self.size), ()
        own = {id(weight) for weight in self._stage.kept.parameters()}
        self._stage.kept.to(config.device)
        trunk = network.model
        trunk.cos_LS, trunk.sin_LS = trunk.cos_LS.to(config.device), trunk.sin_LS.to(config.device)
        for module in network.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                if id(weight) not in own:
                    setattr(module, name, nn.Parameter(weight.to("meta")))
        network.tie()
        ends = (0, self.size - 1)
        self._pair = dist.new_group(ends)  # all members call it
        tied = sorted(set(tied_names(config.model).values()))
        self._tied = [network.get_parameter(name) for name in tied] if self.rank in ends else []

    def learn(self, _read: Reader, sequences: Tensor, micro_batch: int) -> list[Tensor]:
        """Hand micro-batches of one shape forward and back; the last member has the loss."""
        total = len(sequences)
        size = -(-total // max(-(-total // micro_batch), min(total, MICRO_BATCHES * self.size)))
        count = -(-total // size)
        tokens = functional.pad(sequences.to(self._stage.device, non_blocking=True), (0, 0, 0, count * size - total))
        targets = tokens[:, 1:].clone()
        targets[total:] = PADDING
        schedule, losses = self._schedule(count, size, tokens.shape[1], total), list[Tensor]()
        if self._stage.first:
            schedule.step(tokens[:, :-1], return_outputs=False)
        elif self._stage.last:
            schedule.step(target=targets, losses=losses, return_outputs=False)
        else:
            schedule.step(return_outputs=False)
        return [loss.detach() for loss in losses] or [torch.zeros((), device=self._stage.device)]

    def _schedule(self, *shape: int) -> PipelineScheduleSingle:
        """What hands on so many micro-batches: of so many sequences, of so many tokens, of so many sequences altogether. One is kept, for it has its own memory."""
        if self._scheduled != shape:
            count, *_, total = shape
            stage = PipelineStage(self._stage, self.rank, self.size, self._stage.device)
            kind = Schedule1F1B if count >= self.size else ScheduleGPipe
            self._scheduled = shape
            self._latest = kind(stage, count, loss_fn=partial(self._stage.loss, total=total), scale_grads=False)
        return self._latest

    def nats(self, _network: LanguageModel, sequences_BL: Tensor) -> Tensor:
        """The last member's are all, and the others have none."""
        stage = self._stage
        x: Tensor = sequences_BL[:, :-1]
        if not stage.first:
            x = torch.empty(*x.shape, stage.width, device=stage.device)
            dist.recv(x, self.rank - 1)
        x = stage(x)
        if stage.last:
            return stage.nats(x, sequences_BL[:, 1:], "none")
        dist.send(x, self.rank + 1)
        return torch.empty(0)

    def clip(self, weights: Sequence[nn.Parameter], longest: float) -> Tensor:
        """Add up the gradients of what two members hold; the norm is that of all, those once."""
        for weight in self._tied:
            dist.all_reduce(weight.grad, group=self._pair)
        twice = {id(weight) for weight in self._tied} if self._stage.last else set()
        once = [weight.grad for weight in weights if weight.grad is not None and id(weight) not in twice]
        square = torch.nn.utils.get_total_norm(once).square()
        dist.all_reduce(square)
        torch.nn.utils.clip_grads_with_norm_(weights, longest, norm := square.sqrt())
        return norm

    def gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """One after the other, each from the first who holds it."""
        mine = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items() if not tensor.is_meta}
        theirs: list[dict[str, tuple[torch.Size, torch.dtype]]] = [{} for _ in range(self.size)]
        dist.all_gather_object(theirs, mine)
        kept: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for held in theirs for name in held):
            holder = next(rank for rank, held in enumerate(theirs) if name in held)
            if self.leads:
                shape, dtype = theirs[holder][name]
                kept[name] = torch.empty(shape, dtype=dtype) if holder else tensors[name].cpu()
            if self.leads and holder:
                dist.recv(kept[name], holder)
            elif holder and self.rank == holder:
                dist.send(tensors[name].cpu().contiguous(), 0)
        return kept

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """All of what this member holds, and of the rest the shape."""
        return torch.empty_like(tensor, device="meta") if like.is_meta else tensor


class _Stage(nn.Module):
    """What one member computes: tokens or what came of them, shape (B, L) or (B, L, D) -> (B, L, D), the last one's normalised."""

    def __init__(self, network: LanguageModel, config: RunConfig, rank: int, size: int) -> None:
        super().__init__()
        trunk = network.model
        self.first, self.last = rank == 0, rank == size - 1
        self.layers, self.width = stages(config.model, size)[rank], config.model.width
        self.device, self._rounded = torch.device(config.device), config.precision != "fp32"
        kept: list[nn.Module | None] = [trunk.layers[layer] for layer in self.layers]
        kept += [trunk.embed_tokens, trunk.embed_factor, trunk.embed_norm] if self.first else []
        kept += [trunk.norm, network.head_factor, network.lm_head] if self.last else []
        self.kept = nn.ModuleList(module for module in kept if module is not None)
        self._network = [network]  # in a list, so that its weights do not count as this one's

    def forward(self, x: Tensor) -> Tensor:
        """Embed if it is the first, compute the blocks, and make what the head reads if it is the last."""
        network = self._network[0]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._rounded):
            x = network.model.embed(x) if self.first else x
            x = network.model.through(x, self.layers)
            if self.last:
                x = network.model.norm(x)
                x = x if network.head_factor is None else network.head_factor(x)
        return x

    def nats(self, features: Tensor, target_BL: Tensor, reduction: str) -> Tensor:
        """Cross-entropy of the targets."""
        network = self._network[0]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._rounded):
            return network.head_loss(features.flatten(0, 1), network.lm_head.weight, target_BL.flatten(), reduction)

    def loss(self, features: Tensor, target_BL: Tensor, *, total: int) -> Tensor:
        """The share of a micro-batch in the loss of so many sequences."""
        counts = target_BL[:, 0] != PADDING
        return self.nats(features[counts], target_BL[counts], "mean") * (counts.sum() / total)


def stages(model: ModelConfig, count: int) -> list[range]:
    """Which layers each member has, where the slowest has as little as possible: the head is work for the last one, like that of a few layers."""
    block, head, before = sum(a * b for a, b in block_matrices(model)), end_products(model), count - 1
    of_last = min(
        range(1, model.depth - before + 1), key=lambda k: max(-(-(model.depth - k) // before) * block, k * block + head)
    )
    rest = model.depth - of_last
    cuts = [rest * number // before for number in range(count)]
    return [*(range(start, end) for start, end in itertools.pairwise(cuts)), range(rest, model.depth)]
