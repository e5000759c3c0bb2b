import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from budgetlm.errors import ConfigError
from budgetlm.model.footprint import (
    BF16,
    FP32,
    block_activation_bytes,
    block_copy_bytes,
    embedding_activation_bytes,
    evaluation_sequences,
    loss_activation_bytes,
    mask_bytes,
    optimizer_state_bytes,
    saved_bytes,
    training_memory,
)
from budgetlm.model.size import ModelConfig, body_parameters, compute_parameters, end_products, flops_per_token, parameters
from budgetlm.model.transformer import LanguageModel, build
from budgetlm.train.checkpoint import Position, save_checkpoint
from budgetlm.train.config import OPTIMIZERS, OptimizerConfig
from budgetlm.train.evaluate import evaluate
from budgetlm.train.memory import run_memory
from budgetlm.train.optim import average_into
from budgetlm.train.step import Stepper
from tests.conftest import tiny_model, tiny_run

SHAPES = [
    tiny_model(),
    tiny_model(tie_embeddings=False),
    tiny_model(width=128, kv_groups=4, depth=3),
    tiny_model(width=64, mlp_ratio=2.5, kv_groups=2, tie_embeddings=False),
    tiny_model(width=512, depth=1, vocab_size=1000),
    tiny_model(width=64, norm_embedding=True),
    tiny_model(width=64, depth=5, share_layers=2),
    tiny_model(width=64, embedding_rank=16, norm_embedding=True),
    tiny_model(width=64, embedding_rank=32, tie_embeddings=False),
]


@pytest.mark.parametrize("model", SHAPES)
def test_counted_parameters_are_those_of_the_built_model(model):
    network = LanguageModel(model)
    assert parameters(model) == sum(p.numel() for p in network.parameters())
    embeddings = {"model.embed_tokens.weight", "model.embed_norm.weight", "lm_head.weight"}
    embeddings |= {"model.embed_factor.weight", "head_factor.weight"}
    assert body_parameters(model) == sum(p.numel() for n, p in network.named_parameters() if n not in embeddings)
    blocks = [sum(p.numel() for p in block.parameters() if p.ndim == 2) for block in network.model.layers]
    matrices = sum(blocks[layer // model.share_layers] for layer in range(model.depth))
    factors = 2 * model.width * model.embedding_rank  # the embedding's and the head's, whether or not they are one
    assert compute_parameters(model) == matrices + network.lm_head.weight.numel() + factors


def test_flops_are_six_per_computing_parameter_plus_attention():
    model = tiny_model(depth=3, width=64, context_length=128)
    assert flops_per_token(model) == 6 * compute_parameters(model) + 12 * 3 * 64 * 128


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "model",
    [
        *SHAPES,
        tiny_model(width=64, context_length=48, depth=3, kv_groups=4),
        tiny_model(document_end=0),
        tiny_model(width=64, depth=3, kv_groups=4, document_end=0),
    ],
)
def test_counted_activations_are_those_that_autograd_keeps(model, precision):
    network = LanguageModel(model)
    tokens = torch.zeros(3, model.context_length, dtype=torch.long)
    own = {t.untyped_storage().data_ptr() for t in [*network.parameters(), *network.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        loss = network.loss(tokens, tokens)
    assert torch.isfinite(loss)
    ends = embedding_activation_bytes(model, precision) + loss_activation_bytes(model, precision)
    a_token = model.depth * block_activation_bytes(model, precision) + ends
    head, ids = model.vocab_size * model.embedding_width, 8
    # The loss keeps the gradients that it has made, that of the features in the place of the features.
    copies = BF16 * (end_products(model) - head) + block_copy_bytes(model, precision)
    of_the_loss = FP32 * head + (copies if precision == "bf16" else 0)
    mask = mask_bytes(model, len(tokens), precision)
    assert sum(s.nbytes() for s in kept.values()) == tokens.numel() * (a_token + ids) + of_the_loss + mask


def allocated_peak(work: Callable[[], object]) -> int:
    """The most that PyTorch's allocator held at once during `work`, above what it held before: exact, in bytes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max(initial=0))


def run_of(micro, passes, optimizer="adamw", again=False, precision="fp32", ema=0.0, products=0, **shape):
    return tiny_run(
        model=tiny_model(**shape),
        optimizer=OptimizerConfig(name=optimizer),
        batch_sequences=micro * passes,
        micro_batch_sequences=micro,
        checkpoint_activations=again,
        precision=precision,
        ema=ema,
        products_up_to=products,
        steps=2,
    )


@pytest.mark.parametrize(
    "config",
    [
        run_of(8, 1, width=128, context_length=128, depth=3),
        run_of(8, 3, width=64, context_length=128, depth=4, kv_groups=2, tie_embeddings=False),
        run_of(8, 3, "muon", width=64, context_length=128, depth=4, norm_embedding=True),
        run_of(8, 1, width=64, context_length=64, depth=2, norm_embedding=True, precision="bf16"),
        run_of(8, 1, again=True, width=128, context_length=128, depth=6),
        run_of(16, 2, "muon", again=True, width=64, context_length=128, depth=4, tie_embeddings=False),
        run_of(1, 1, "muon", width=256, depth=6),
        *(run_of(1, 1, name, width=256, depth=2, vocab_size=2048) for name in OPTIMIZERS if name != "muon"),
        *(run_of(1, 1, name, width=256, depth=2, tie_embeddings=False) for name in OPTIMIZERS if name != "muon"),
        run_of(8, 1, ema=0.1, width=128, context_length=128, depth=3),
        run_of(1, 1, ema=0.1, width=256, depth=2, vocab_size=2048, tie_embeddings=False),
        run_of(2, 2, again=True, width=256, context_length=128, depth=4, vocab_size=512),
        run_of(16, 1, width=64, context_length=128, depth=1, vocab_size=8192),
        run_of(8, 1, width=64, context_length=64, depth=3, precision="bf16"),
        run_of(8, 1, products=256, width=64, context_length=256, depth=3),
        run_of(8, 1, products=256, width=64, context_length=256, depth=3, kv_groups=2, precision="bf16"),
        run_of(2, 2, products=1024, width=64, context_length=1024, depth=2),  # fullest within attention
        run_of(8, 1, products=128, again=True, width=64, context_length=128, depth=3),
        run_of(8, 1, width=64, context_length=64, depth=3, precision="bf16", again=True),
        run_of(8, 1, width=64, context_length=64, depth=3, precision="bf16-master"),
        run_of(2, 3, "muon", width=128, context_length=64, depth=3, precision="bf16-master"),
        run_of(4, 1, width=128, context_length=64, depth=3, precision="bf16-master", again=True),
        run_of(1, 1, width=16, context_length=4096, depth=1, vocab_size=20_000),  # the loss in chunks
        run_of(8, 2, width=64, context_length=256, depth=3, document_end=0),
        run_of(8, 1, width=64, context_length=256, depth=3, document_end=0, again=True),
        run_of(8, 2, width=64, context_length=256, depth=3, document_end=0, window=32),
        run_of(8, 1, width=64, context_length=256, depth=3, window=32),
        run_of(8, 1, products=256, width=64, context_length=256, depth=3, window=32, precision="bf16"),
        run_of(1, 1, "muon", width=256, depth=6, share_layers=2),
        run_of(8, 2, width=128, context_length=64, depth=4, share_layers=4),
        run_of(1, 1, width=256, depth=2, vocab_size=2048, embedding_rank=64),
        run_of(2, 3, "muon", width=128, context_length=64, depth=2, vocab_size=2048, embedding_rank=32, norm_embedding=True),
    ],
)
def test_the_counted_peak_is_what_the_allocator_gives_out(config):
    model = config.model
    network, random_ids = build(model, 0), np.random.default_rng(0)
    stepper = Stepper(config, network)
    rows = random_ids.integers(1, model.vocab_size, size=(config.batch_sequences, model.context_length + 1))
    stepper.step(rows, 1e-4)  # the first one makes the optimizer's state
    passes = evaluation_sequences(model, config.micro_batch_sequences)
    windows = random_ids.integers(1, model.vocab_size, size=(passes, model.context_length + 1))
    bytes_V = np.ones(model.vocab_size, dtype=np.int64)
    average = copy.deepcopy(network) if config.ema else network
    transient = max(
        allocated_peak(lambda: stepper.step(rows, 1e-4)),
        allocated_peak(lambda: average_into(average, network, 0.1)),
        allocated_peak(lambda: evaluate(average, windows, bytes_V, micro_batch=passes, precision=config.precision)),
    )
    unlike = {weight for one in (network, average, stepper._trained) for weight in one.parameters()}
    weights = sum(weight.nbytes for weight in unlike)
    held = weights + optimizer_state_bytes(model, config.optimizer.name)
    assert run_memory(config).peak == pytest.approx(held + transient, rel=0.05)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("tied", [True, False])
def test_counted_optimizer_state_is_what_the_optimizer_keeps(name, tied):
    config = run_of(2, 1, name, tie_embeddings=tied, kv_groups=2, depth=3, share_layers=2, embedding_rank=16)
    stepper = Stepper(config, build(config.model, 0))
    stepper.step(np.ones((2, config.model.context_length + 1), dtype=np.int64), 1e-4)
    state = [v for o in stepper.optimizers for values in o.state.values() for v in values.values()]
    assert optimizer_state_bytes(config.model, name) == sum(t.nbytes for t in state if t.ndim)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("ema", [0.0, 0.2])
def test_a_checkpoint_weighs_no_more_than_is_reckoned_with(name, ema, tmp_path):
    if ema and name == "schedulefree":
        pytest.skip("it averages by itself")
    config = run_of(2, 1, name, ema=ema, width=64)
    network = build(config.model, 0)
    stepper = Stepper(config, network)
    stepper.step(np.ones((2, config.model.context_length + 1), dtype=np.int64), 1e-4)
    average = copy.deepcopy(network) if ema else None
    path = save_checkpoint(tmp_path, network, stepper.optimizers, Position(step=1), {}, average)
    reckoned = saved_bytes(config.model, averaged=ema > 0)
    written = sum(file.stat().st_size for file in path.iterdir())
    assert written < 1.05 * reckoned + 50_000  # names, numbers of steps, PyTorch's random state
    if name in ("adamw", "adam", "schedulefree"):
        assert written > reckoned


def test_memory_grows_with_micro_batch_and_model_and_falls_with_checkpointing():
    def peak(model: ModelConfig, **changes) -> int:
        facts = {"micro_batch_sequences": 16, "optimizer": "adamw", "precision": "fp32"}
        facts |= {"checkpoint_activations": False, "accumulates": True}
        return training_memory(model, **{**facts, **changes}).peak

    model = tiny_model(depth=4, width=64, context_length=128)
    assert peak(model) < peak(model, micro_batch_sequences=32) < peak(replace(model, width=128), micro_batch_sequences=32)
    assert peak(model, checkpoint_activations=True) < 0.7 * peak(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 40}, "multiple of 16. Use 32"),
        ({"depth": 0}, "at least 1"),
        ({"share_layers": 0}, "at least 1"),
        ({"kv_groups": 3}, "groups of 3"),
        ({"embedding_rank": 24}, "Use 32, or 0"),
        ({"embedding_rank": 64}, "no more than the width, which is 32. Use 32"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_model(**changes)
