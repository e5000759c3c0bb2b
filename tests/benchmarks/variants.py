"""The choices that `bench_ablation` compares: each a change to one base, in its configuration, its network or its steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetlm.model.documents import Reach
from budgetlm.model.size import ModelConfig
from budgetlm.model.transformer import LanguageModel
from budgetlm.train.config import OptimizerConfig, RunConfig
from budgetlm.train.schedule import ScheduleConfig

CONTEXT, SEQUENCES = 256, 4
BASE = RunConfig(
    model=ModelConfig(vocab_size=1024, depth=3, width=96, context_length=CONTEXT),
    optimizer=OptimizerConfig(name="muon", peak_lr=12e-3),
    batch_sequences=SEQUENCES,
    micro_batch_sequences=SEQUENCES,
    steps=1,
    eval_tokens=2**16,
)
"""What every variant changes one thing of."""


@dataclass(frozen=True)
class Variant:
    """One change."""

    name: str
    config: Callable[[RunConfig], RunConfig] = lambda config: config
    network: Callable[[LanguageModel], None] = lambda _network: None
    same_step: bool = False
    """Whether its step does what the base's does, so that its time need not be measured."""


# --- changes of the configuration -------------------------------------------------------------------------------------


def model(title: str, /, **values) -> Variant:
    change = lambda config: replace(config, model=replace(config.model, **values))  # noqa: E731
    return Variant(title, change, same_step="rope_theta" in values)


def optimizer(title: str, /, **values) -> Variant:
    change = lambda config: replace(config, optimizer=replace(config.optimizer, **values))  # noqa: E731
    return Variant(title, change, same_step="name" not in values)


def schedule(title: str, /, **values) -> Variant:
    change = lambda config: replace(config, schedule=replace(config.schedule, **values))  # noqa: E731
    return Variant(title, change, same_step="short_sequences" not in values)


def run(title: str, /, **values) -> Variant:
    return Variant(title, lambda config: replace(config, **values))


def context(length: int) -> Variant:
    """Another context, in as many tokens a step."""

    def change(config: RunConfig) -> RunConfig:
        count = SEQUENCES * CONTEXT // length
        shape = replace(config.model, context_length=length)
        return replace(config, model=shape, batch_sequences=count, micro_batch_sequences=count)

    return Variant(f"context {length}", change)


def sequences(count: int) -> Variant:
    return run(f"batch of {count * CONTEXT:,} tokens", batch_sequences=count, micro_batch_sequences=min(16, count))


# --- changes of the network -------------------------------------------------------------------------------------------


class SquaredReLU(nn.Module):
    """An MLP of two matrices, as many weights as SwiGLU's three (Primer, arXiv:2109.08668)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = round(4.5 * width)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        nn.init.normal_(self.up_proj.weight, std=1 / math.sqrt(width))
        nn.init.zeros_(self.down_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.relu(self.up_proj(x)).square())


def squared_relu(network: LanguageModel) -> None:
    for block in network.model.layers:
        block.mlp = SquaredReLU(network.config.width)


def gated_squared_relu(network: LanguageModel) -> None:
    for block in network.model.layers:
        mlp = block.mlp
        mlp.forward = lambda x, mlp=mlp: mlp.down_proj(F.relu(mlp.gate_proj(x)).square() * mlp.up_proj(x))


def no_query_key_norm(network: LanguageModel) -> None:
    for block in network.model.layers:
        block.self_attn.q_norm, block.self_attn.k_norm = nn.Identity(), nn.Identity()


def sharper(factor: float) -> Callable[[LanguageModel], None]:
    """Attention begins with scores so many times as far apart."""

    def change(network: LanguageModel) -> None:
        for block in network.model.layers:
            nn.init.constant_(block.self_attn.q_norm.weight, factor)

    return change


def projections_at_random(network: LanguageModel) -> None:
    """GPT-2's: projections into the residual stream begin small instead of at zero."""
    for block in network.model.layers:
        for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1] * 2 * network.config.depth))


def embedding_of(std: float) -> Callable[[LanguageModel], None]:
    return lambda network: nn.init.normal_(network.model.embed_tokens.weight, std=std)


def zero_head(network: LanguageModel) -> None:
    nn.init.normal_(network.model.embed_tokens.weight, std=0.5)
    nn.init.zeros_(network.lm_head.weight)


def soft_cap(network: LanguageModel) -> None:
    """Logits within +-15 (Gemma 2, arXiv:2408.00118)."""

    def loss(ids: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        logits = 15 * torch.tanh(network.lm_head(network.model(ids)) / 15)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)

    network.loss = loss


def skips(network: LanguageModel) -> None:
    """The first blocks' outputs, weighed, are added to the inputs of the last ones (U-net)."""
    blocks = list(network.model.layers)
    pairs = {len(blocks) - 1 - i: i for i in range(len(blocks) // 2)}
    network.skip_weights = nn.Parameter(torch.zeros(len(pairs)))
    kept: dict[int, Tensor] = {}
    for i, block in enumerate(blocks):
        plain = block.forward

        def forward(x: Tensor, cos: Tensor, sin: Tensor, i: int = i, plain=plain) -> Tensor:
            if i in pairs:
                x = x + network.skip_weights[pairs[i]] * kept[pairs[i]]
            kept[i] = plain(x, cos, sin)
            return kept[i]

        block.forward = forward


def last_tokens_only(count: int, whole: int = 3) -> Callable[[LanguageModel], None]:
    """A token sees so many before it, itself included, in all but every third block, or so (sliding windows; Gemma 2, arXiv:2408.00118).

    By a mask, which costs what it hides: what a kernel that skips it would save is not in its time.
    """

    def change(network: LanguageModel) -> None:
        for number, block in enumerate(network.model.layers):
            if number % whole == whole - 1:
                continue
            plain = block.self_attn.forward

            def forward(x: Tensor, cos: Tensor, sin: Tensor, _reach: Reach | None = None, plain=plain) -> Tensor:
                length, kind = x.shape[1], x.device.type
                dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
                seen = torch.ones(length, length, dtype=torch.bool).tril_().triu_(1 - count)
                mask = torch.zeros(length, length, dtype=dtype).masked_fill_(~seen, -torch.inf)
                return plain(x, cos, sin, Reach(mask_LL=mask))

            block.self_attn.forward = forward

    return change


def value_embeddings(network: LanguageModel) -> None:
    """Every block adds a vector of each token's own to its values (modded-nanogpt; arXiv:2410.17897 is near)."""
    ids: list[Tensor] = []
    network.model.register_forward_pre_hook(lambda _module, inputs: ids.__setitem__(slice(None), inputs))
    for block in network.model.layers:
        attention = block.self_attn
        attention.value_words = nn.Embedding(network.config.vocab_size, attention.v_proj.out_features)
        nn.init.normal_(attention.value_words.weight, std=0.02)
        project, words = attention.v_proj.forward, attention.value_words
        attention.v_proj.forward = lambda x, project=project, words=words: project(x) + words(ids[0])


def today(config: RunConfig, **values) -> RunConfig:
    """What a search of some minutes begins with."""
    shape = replace(config.model, vocab_size=4096, depth=2, width=64, norm_embedding=True, **values)
    return replace(config, model=shape, schedule=ScheduleConfig(short_sequences=0.5))


# --- all of them ------------------------------------------------------------------------------------------------------

VARIANTS = [
    Variant("base", same_step=True),
    *[optimizer(f"Muon at {rate:g}", peak_lr=rate) for rate in (6e-3, 24e-3)],
    *[optimizer(f"AdamW at {rate:g}", name="adamw", peak_lr=rate) for rate in (1.5e-3, 3e-3, 6e-3)],
    *[sequences(count) for count in (2, 8)],
    *[model(f"vocabulary {size:,}", vocab_size=size) for size in (512, 2048, 4096, 8192)],
    *[model(f"depth {depth} x width {width}", depth=depth, width=width) for depth, width in ((2, 112), (5, 80))],
    *[
        model(f"vocabulary 4,096, depth {depth} x width {width}", vocab_size=4096, depth=depth, width=width)
        for depth, width in ((2, 48), (2, 64), (2, 96), (3, 64), (4, 128))
    ],
    *[context(length) for length in (128, 512)],
    *[schedule(f"cut into quarters for {share:.0%} of the run", short_sequences=share) for share in (0.25, 0.5)],
    model("head of its own", tie_embeddings=False),
    Variant(
        "head of its own from zero, embedding 0.5",
        lambda config: replace(config, model=replace(config.model, tie_embeddings=False)),
        zero_head,
    ),
    Variant("default of today", today),
    Variant("default of today, head of its own", lambda config: today(config, tie_embeddings=False)),
    Variant("default of today, head of its own from zero", lambda config: today(config, tie_embeddings=False), zero_head),
    *[
        Variant(f"default of today, the last {count} tokens alone in the first block", today, last_tokens_only(count, 2))
        for count in (32, 64, 128)
    ],
    *[optimizer(f"embedding's rate x {factor:g}", embedding_lr=factor) for factor in (0.3, 3)],
    Variant("embedding from 0.1", network=embedding_of(0.1), same_step=True),
    model("norm after the embedding", norm_embedding=True),
    Variant(
        "norm after the embedding, cut into quarters for 25% of the run",
        lambda config: replace(
            config,
            model=replace(config.model, norm_embedding=True),
            schedule=ScheduleConfig(short_sequences=0.25),
        ),
    ),
    Variant("ReLU squared for SwiGLU", network=squared_relu),
    Variant("gated ReLU squared", network=gated_squared_relu),
    model("MLP ratio 4", mlp_ratio=4.0),
    model("keys and values shared by 2 heads", kv_groups=2),
    Variant("no norm of queries and keys", network=no_query_key_norm),
    *[model(f"rotary base {base:,}", rope_theta=float(base)) for base in (1_000, 100)],
    *[Variant(f"queries {factor} times as long", network=sharper(factor), same_step=True) for factor in (2, 4)],
    Variant("projections at random", network=projections_at_random, same_step=True),
    Variant("logits capped at 15", network=soft_cap),
    Variant("skips as in a U-net", network=skips),
    Variant("the last 64 tokens alone in two blocks of three", network=last_tokens_only(64)),
    Variant("value embeddings", network=value_embeddings),
    optimizer("weight decay 0.3", weight_decay=0.3),
    schedule("decay falls to 0", weight_decay_schedule="linear"),
    schedule("cosine", shape="cosine"),
    schedule("wsd, 1 - sqrt", shape="wsd", cooldown_shape="sqrt"),
    schedule("warm-up 15 %", warmup=0.15),
    schedule("batch ramp 30 %", batch_ramp=0.3),
    schedule("momentum warm-up 20 %", momentum_warmup=0.2),
    Variant("average over 5 %", lambda config: replace(config, ema=0.05), same_step=True),
    Variant(
        "constant, the average over 10 % in place of a cool-down",
        lambda config: replace(config, schedule=ScheduleConfig(shape="constant"), ema=0.1),
        same_step=True,
    ),
]
