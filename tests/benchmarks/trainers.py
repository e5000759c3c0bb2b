"""The trainings that `bench_train` compares: budgetlm's own step, and models of equal shape trained in the way of others.

On a CPU. All have the depth, width, heads, context and vocabulary of a `ModelConfig`, AdamW, clipping at 1, and the same tokens a step.
GPT-2's kind has hidden layers of 4 widths and two matrices where ours has three of 3 (8 % more operations in a block); Llama's kind
has ours. Only litgpt's head is not the embedding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetlm.model.size import ModelConfig

LR, DECAY, BETAS, CLIP = 1e-3, 0.1, (0.9, 0.95), 1.0
Loss = Callable[[Tensor], Tensor]
"""Token ids, shape (B, L + 1) -> mean cross-entropy."""


@dataclass(frozen=True)
class Trainer:
    """One way of training one model."""

    network: nn.Module
    step: Callable[[np.ndarray, int], None]
    """Train on sequences, shape (B, L + 1), so many in one pass."""


def flops_per_token(network: nn.Module, model: ModelConfig) -> int:
    """As `budgetlm.model.size` counts them, of the matrices that this network has."""
    # The Hugging Face library's GPT-2 calls its linear layers Conv1D.
    linear = [m.weight.numel() for m in network.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    return 6 * sum(linear) + 12 * model.depth * model.width * model.context_length


def passes(rows: np.ndarray, micro: int) -> Iterator[np.ndarray]:
    """The rows of each forward pass."""
    return (rows[start : start + micro] for start in range(0, len(rows), micro))


# --- ours -------------------------------------------------------------------------------------------------------------


def budgetlm(model: ModelConfig, compiled: bool, bf16: bool, products: bool = False) -> Trainer:
    """The step of a run, on the heap of a run."""
    from budgetlm.model.transformer import build
    from budgetlm.train.config import OptimizerConfig, RunConfig
    from budgetlm.train.heap import set_heap
    from budgetlm.train.step import Stepper

    set_heap("cpu")
    optimizer = OptimizerConfig(name="adamw", peak_lr=LR, weight_decay=DECAY, clip=CLIP)
    how = {"compile": compiled, "precision": "bf16" if bf16 else "fp32", "bf16_is_fast": bf16}
    how["products_up_to"] = model.context_length if products else 0
    config = RunConfig(model=model, optimizer=optimizer, steps=1, batch_sequences=1, micro_batch_sequences=1, **how)
    stepper = Stepper(config, build(model, 0))

    def step(rows: np.ndarray, micro: int) -> None:
        stepper.config = replace(config, batch_sequences=len(rows), micro_batch_sequences=micro)
        stepper.step(rows, LR)

    return Trainer(stepper.network, step)


# --- plain loops ------------------------------------------------------------------------------------------------------


def plain(network: nn.Module, loss: Loss, compiled: bool, bf16: bool) -> Trainer:
    """nanoGPT's training step: mean over passes, clip, fused AdamW that decays matrices, gradients set to none."""
    weights = list(network.parameters())
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": DECAY},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=LR, betas=BETAS, fused=True)
    used = torch.compile(loss) if compiled else loss

    def step(rows: np.ndarray, micro: int) -> None:
        for part in passes(rows, micro):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                mean = used(torch.from_numpy(part)) * (len(part) / len(rows))
            mean.backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Trainer(network, step)


class ReferenceBlock(nn.Module):
    """A block of GPT-2: LayerNorm, attention with one matrix for queries, keys and values, GELU."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        width = model.width
        self.heads = model.heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        parts = self.qkv(self.norm_1(x_BLD)).split(x_BLD.shape[-1], dim=2)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BLD = x_BLD + self.out(mixed.transpose(1, 2).flatten(2))
        return x_BLD + self.down(F.gelu(self.up(self.norm_2(x_BLD))))


class Reference(nn.Module):
    """GPT-2 in the style of nanoGPT with its defaults: learned positions, tied embedding, no biases, no dropout."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(model.vocab_size, model.width)
        self.positions = nn.Embedding(model.context_length, model.width)
        self.blocks = nn.ModuleList(ReferenceBlock(model) for _ in range(model.depth))
        self.norm = nn.LayerNorm(model.width, bias=False)
        self.head = nn.Linear(model.width, model.vocab_size, bias=False)
        for weight in self.parameters():
            if weight.ndim >= 2:
                nn.init.normal_(weight, std=0.02)
        self.head.weight = self.words.weight

    def logits(self, ids_BL: Tensor) -> Tensor:
        """Token ids (B, L) -> logits (B, L, V)."""
        x_BLD = self.words(ids_BL) + self.positions(torch.arange(ids_BL.shape[1]))
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.head(self.norm(x_BLD))

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Token ids (B, L + 1) -> mean cross-entropy of the last L."""
        return F.cross_entropy(self.logits(ids_BL[:, :-1]).flatten(0, 1), ids_BL[:, 1:].flatten())


def nanogpt(model: ModelConfig, compiled: bool, bf16: bool) -> Trainer:
    """Our own writing of nanoGPT's model; the package does not exist."""
    network = Reference(model)
    return plain(network, network, compiled, bf16)


def gpt2_network(model: ModelConfig) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"n_embd": model.width, "n_layer": model.depth, "n_head": model.heads, "n_positions": model.context_length}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    end = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=model.vocab_size, use_cache=False, **size, **no_dropout, **end)).train()


def llama_network(model: ModelConfig) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.width,
        intermediate_size=model.hidden,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        max_position_embeddings=model.context_length,
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).train()


def hugging_face(network: nn.Module, compiled: bool, bf16: bool) -> Trainer:
    """A plain loop round a model of the Hugging Face library, which shifts the labels itself."""
    return plain(network, lambda ids: network(input_ids=ids[:, :-1], labels=ids[:, :-1]).loss, compiled, bf16)


def gpt2(model: ModelConfig, compiled: bool, bf16: bool) -> Trainer:
    """transformers' GPT-2 in a plain loop."""
    return hugging_face(gpt2_network(model), compiled, bf16)


def llama(model: ModelConfig, compiled: bool, bf16: bool) -> Trainer:
    """transformers' Llama in a plain loop."""
    return hugging_face(llama_network(model), compiled, bf16)


def litgpt(model: ModelConfig, compiled: bool, bf16: bool) -> Trainer:
    """litgpt's model with Llama's parts in a plain loop."""
    from litgpt import GPT, Config

    sizes = {"n_layer": model.depth, "n_head": model.heads, "n_embd": model.width, "head_size": model.head_size}
    parts = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "intermediate_size": model.hidden}
    vocabulary = {"vocab_size": model.vocab_size, "padded_vocab_size": model.vocab_size}
    layout = {"rotary_percentage": 1.0, "parallel_residual": False, "bias": False}
    network = GPT(Config(block_size=model.context_length, **sizes, **parts, **vocabulary, **layout))
    network.apply(network._init_weights)

    def loss(ids_BL: Tensor) -> Tensor:
        return F.cross_entropy(network(ids_BL[:, :-1]).flatten(0, 1), ids_BL[:, 1:].flatten())

    return plain(network, loss, compiled, bf16)


# --- transformers' Trainer --------------------------------------------------------------------------------------------


class Sampled(torch.utils.data.Dataset):
    """Endless samples for `Trainer`, each of L tokens."""

    def __init__(self, sample: Callable[[int], np.ndarray]) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 2**20

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.from_numpy(self.sample(1)[0, :-1])
        return {"input_ids": ids, "labels": ids}


def run_hugging_face_trainer(
    network: nn.Module,
    sequences: int,
    micro: int,
    bf16: bool,
    sample: Callable[[int], np.ndarray],
    after_step: Callable[[], None],
    folder: str,
) -> None:
    """Train through transformers' `Trainer`, which keeps the loop: it calls `after_step` until that ends the process."""
    import transformers as hf

    class Turn(hf.TrainerCallback):
        def on_step_end(self, *_, **__) -> None:
            after_step()

    settings = hf.TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=max(1, sequences // micro),
        max_steps=100_000,
        optim="adamw_torch_fused",
        learning_rate=LR,
        weight_decay=DECAY,
        adam_beta2=BETAS[1],
        max_grad_norm=CLIP,
        use_cpu=True,
        bf16=bf16,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    hf.Trainer(network, settings, train_dataset=Sampled(sample), callbacks=[Turn()]).train()
