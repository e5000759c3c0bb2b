"""What encoders and decoders of other mixers weigh and cost, held against PyTorch's own numbers."""

import numpy as np
import pytest
import torch

from budgetlm.compress.apply import Compression
from budgetlm.compress.layout import artefact_bytes
from budgetlm.data.masks import hide
from budgetlm.errors import ConfigError
from budgetlm.model.export import load_model, save_model
from budgetlm.model.footprint import (
    FP32,
    block_activation_bytes,
    embedding_activation_bytes,
    loss_activation_bytes,
    optimizer_state_bytes,
    saved_bytes,
)
from budgetlm.model.generate import generate
from budgetlm.model.size import block_matrices, body_parameters, parameters
from budgetlm.model.transformer import LanguageModel, build
from budgetlm.train.config import OptimizerConfig
from budgetlm.train.evaluate import evaluate
from budgetlm.train.memory import run_memory
from budgetlm.train.step import Stepper
from tests.conftest import tiny_model, tiny_run
from tests.model.test_size import allocated_peak
from tests.model.test_transformer import TOKENS_BL, trained_looking

KINDS = {
    "encoder": {"mask_token": 3},
    "encoder, untied": {"mask_token": 3, "tie_embeddings": False, "width": 64},
    "lstm": {"mixer": "lstm", "width": 64, "norm_embedding": True},
    "conv": {"mixer": "conv", "tie_embeddings": False},
}
kinds = pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)


def rows_of(model, count: int) -> np.ndarray:
    rows = np.random.default_rng(0).integers(4, model.vocab_size, size=(count, model.context_length + 1))
    return hide(rows, model.mask_rate, seed=0) if model.encodes else rows


@kinds
def test_counted_parameters_and_matrices_are_those_of_the_built_model(changes):
    model = tiny_model(depth=3, **changes)
    network = LanguageModel(model)
    assert parameters(model) == sum(p.numel() for p in network.parameters())
    around = ("embed", "lm_head", "head.")
    assert body_parameters(model) == sum(
        p.numel() for n, p in network.named_parameters() if not any(part in n for part in around)
    )
    built = [tuple(p.shape) for n, p in network.named_parameters() if p.ndim == 2 and ".layers.1." in n]
    assert sorted(block_matrices(model)) == sorted(built)


@kinds
def test_what_is_saved_weighs_as_was_foretold_and_comes_back_the_same(tmp_path, tokens, changes):
    network = trained_looking(tiny_model(**changes))
    save_model(tmp_path, network, tokens.tokenizer_file, 0)
    assert (tmp_path / "model.safetensors").stat().st_size == artefact_bytes(network.config, Compression())
    assert artefact_bytes(network.config, Compression()) == pytest.approx(
        saved_bytes(network.config, 0, exported=True), rel=0.05
    )
    again, _, _ = load_model(tmp_path)
    assert torch.allclose(again(TOKENS_BL), network(TOKENS_BL), atol=1e-6)


@kinds
@pytest.mark.parametrize("again", [False, True])
def test_the_counted_peak_is_what_the_allocator_gives_out(changes, again):
    model = tiny_model(**{"depth": 3, "context_length": 128, **changes, "width": 128})
    config = tiny_run(
        model=model,
        optimizer=OptimizerConfig(name="adamw"),
        batch_sequences=8,
        micro_batch_sequences=8,
        steps=2,
        checkpoint_activations=again,
    )
    network = build(model, 0)
    stepper, rows = Stepper(config, network), rows_of(model, 8)
    stepper.step(rows, 1e-4)
    bytes_V = np.ones(model.vocab_size, dtype=np.int64)
    transient = max(
        allocated_peak(lambda: stepper.step(rows, 1e-4)),
        allocated_peak(lambda: evaluate(network, rows_of(model, 16), bytes_V, micro_batch=16)),
    )
    held = FP32 * parameters(model) + optimizer_state_bytes(model, "adamw")
    assert run_memory(config).peak == pytest.approx(held + transient, rel=0.1)


@kinds
def test_counted_activations_are_those_that_autograd_keeps(changes):
    model = tiny_model(**{**changes, "width": 128})
    network, rows = build(model, 0), torch.from_numpy(rows_of(model, 8))
    own = {t.untyped_storage().data_ptr() for t in [*network.parameters(), *network.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        if (storage := tensor.untyped_storage()).data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.loss(rows[:, :-1], rows[:, 1:])
    a_token = model.depth * block_activation_bytes(model, "fp32") + 8
    a_token += embedding_activation_bytes(model, "fp32") + loss_activation_bytes(model, "fp32")
    head = FP32 * model.vocab_size * model.width
    assert 8 * model.context_length * a_token + head == pytest.approx(sum(s.nbytes() for s in kept.values()), rel=0.03)


@pytest.mark.parametrize("mixer", ["lstm", "conv"])
def test_the_same_seed_gives_the_same_weights_and_text(mixer):
    first, again, other = (build(tiny_model(mixer=mixer), seed) for seed in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not any(
        torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True) if a.ndim > 1 and a.any()
    )
    network = trained_looking(tiny_model(mixer=mixer))
    assert list(generate(network, [1, 2], 40, seed=3)) == list(generate(network, [1, 2], 40, seed=3))


def test_an_unknown_mixer_is_refused():
    with pytest.raises(ConfigError, match="'mamba' is not known. Use one of attention, lstm, conv"):
        tiny_model(mixer="mamba")
