import json
import shutil

import numpy as np
import pytest
import torch

from budgetlm.compress.apply import Compression
from budgetlm.compress.artefact import load_artefact, make_artefact, save_artefact
from budgetlm.compress.layout import artefact_bytes
from budgetlm.compress.prune import apply_masks, masks_for
from budgetlm.errors import StudyError
from budgetlm.model.export import exported, load_model, save_model
from budgetlm.model.transformer import build
from budgetlm.train.evaluate import evaluate
from tests.conftest import tiny_model
from tests.model.test_transformer import trained_looking

STORED = ["none", "prune", "prune24", "int8", "int8-dynamic", "int4", "prune+int8", "prune24+int8-dynamic"]
WINDOWS = torch.randint(0, 320, (4, 33), generator=torch.Generator().manual_seed(1)).numpy()


def finished(option, **shape):
    """A network as training leaves it, and how it was compressed."""
    compression = Compression(option=option, sparsity=0.7)
    network = trained_looking(tiny_model(width=64, norm_embedding=True, **shape))
    if compression.prunes:
        apply_masks(masks_for(network, compression), network)
    return network, compression


SMALL = [
    {"depth": 5, "share_layers": 2},
    {"embedding_rank": 16},
    {"share_layers": 3, "embedding_rank": 32, "tie_embeddings": False},
]
"""Shapes that no plain Qwen3 has, each with a norm after the embedding."""


def bits_per_byte(network):
    return evaluate(network, WINDOWS, np.ones(320), micro_batch=2, precision="fp32")


@pytest.mark.parametrize(
    ("option", "shape"),
    [
        *((option, {}) for option in STORED),
        *zip(["int4", "prune+int8", "int8-dynamic"], SMALL, strict=True),
        ("none", SMALL[2]),
    ],
)
def test_what_is_loaded_from_disk_scores_and_says_what_it_did_before(option, shape, tokens, tmp_path):
    network, compression = finished(option, **shape)
    artefact = make_artefact(network, compression)
    before = artefact.network()
    save_artefact(tmp_path, artefact, network, tokens.tokenizer_file, 0)
    again, _, end = load_artefact(tmp_path)
    ids = torch.arange(32)[None]
    assert torch.equal(before(ids), again(ids))
    assert bits_per_byte(before) == bits_per_byte(again)
    assert end == 0
    plain = bits_per_byte(network)
    assert bits_per_byte(again) == pytest.approx(plain, rel=1e-6 if not compression.quantised else 0.02)


@pytest.mark.parametrize(
    "shape", [{}, {"tie_embeddings": False, "depth": 3}, {"vocab_size": 1000, "mlp_ratio": 2.0}, *SMALL]
)
@pytest.mark.parametrize("option", STORED)
def test_the_bytes_are_foretold(option, shape):
    network, compression = finished(option, **shape)
    assert artefact_bytes(network.config, compression) == pytest.approx(
        len(make_artefact(network, compression).weights), rel=0.002
    )


@pytest.mark.parametrize("shape", SMALL)
def test_shared_layers_and_factors_are_stored_as_they_are_where_only_budgetlm_reads_the_file(shape, tokens, tmp_path):
    network, compression = finished("int4", **shape)
    artefact = make_artefact(network, compression)
    plain = make_artefact(exported(network), compression)
    assert len(artefact.weights) < 0.95 * len(plain.weights)
    assert len(make_artefact(network, Compression()).weights) == len(make_artefact(exported(network), Compression()).weights)
    save_artefact(tmp_path, artefact, network, tokens.tokenizer_file, 0)
    again, _, _ = load_artefact(tmp_path)
    assert again.config == network.config
    # What was read makes a plain folder again.
    save_model(tmp_path, again, tokens.tokenizer_file, 0)
    whole, _, _ = load_model(tmp_path)
    ids = torch.arange(32)[None]
    assert torch.allclose(whole(ids), again(ids), atol=1e-5)


def test_a_tied_matrix_is_stored_once():
    for option in ("none", "int8", "int4"):
        network = build(tiny_model(width=64), 0)
        artefact = make_artefact(network, Compression(option=option))
        assert artefact_bytes(network.config, Compression(option=option)) == pytest.approx(len(artefact.weights), rel=0.002)
        assert torch.isfinite(artefact.network()(torch.arange(8)[None])).all()


def test_pruned_weights_come_back_as_zeros_and_the_others_to_the_bit(tokens, tmp_path):
    network, compression = finished("prune")
    artefact = make_artefact(network, compression)
    for name, weight in exported(network).named_parameters():
        assert torch.equal(artefact.network().get_parameter(name), weight), name
    # What was read makes a plain folder again.
    save_model(tmp_path, artefact.network(), tokens.tokenizer_file, 0)
    plain, _, _ = load_model(tmp_path)
    assert torch.equal(plain(torch.arange(9)[None]), artefact.network()(torch.arange(9)[None]))


@pytest.mark.parametrize(("option", "near"), [("int8", 2e-4), ("int8-dynamic", 0.1)])  # a last bit may round the other way
def test_eight_bits_load_in_transformers_without_us(option, near, tokens, tmp_path):
    from transformers import AutoModelForCausalLM

    network, compression = finished(option)
    artefact = make_artefact(network, compression)
    save_artefact(tmp_path, artefact, network, tokens.tokenizer_file, 0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(32)[None]
    assert torch.allclose(theirs(ids).logits, artefact.network()(ids), atol=near)


def test_a_damaged_artefact_is_said_to_be_one(tokens, tmp_path):
    network, compression = finished("prune+int8")
    save_artefact(tmp_path, make_artefact(network, compression), network, tokens.tokenizer_file, 0)
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path, broken, ignore=shutil.ignore_patterns("broken"))
    (broken / "model.safetensors").write_bytes(b"no")
    with pytest.raises(StudyError, match="does not hold a model of budgetlm"):
        load_artefact(broken)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(StudyError, match="does not hold a model of budgetlm"):
        load_artefact(tmp_path)
