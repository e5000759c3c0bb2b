"""Compression on the way of real, tiny runs."""

import dataclasses
import json
import math
import shutil

import pytest
import torch

from budgetlm.budget.clock import Clock, Meter
from budgetlm.compress.apply import Compression, shrunk
from budgetlm.compress.compressor import Compressor
from budgetlm.compress.distill import load_teacher
from budgetlm.compress.layout import artefact_bytes
from budgetlm.compress.prune import masks_for, prunable, share_after, updates_due
from budgetlm.compress.quantize import quantised, rounded_twin
from budgetlm.errors import ConfigError
from budgetlm.model.export import exported, save_model
from budgetlm.model.size import parameters
from budgetlm.model.transformer import build
from budgetlm.train.config import OPTIMIZERS, OptimizerConfig
from budgetlm.train.loop import Checkpoints, Label, train
from budgetlm.train.schedule import ScheduleConfig
from tests.conftest import tiny_model, tiny_run
from tests.model.test_transformer import TOKENS_BL, trained_looking

LABEL = Label(run="x", kind="rung", trial=0, rung=0, recipe={}, target_seconds=9.0)
MODEL = tiny_model(depth=3, width=64, norm_embedding=True)


def run_of(option, *, steps=12, optimizer="muon", ema=0.0, seconds=0.0, **changes):
    rates = OptimizerConfig(name=optimizer, peak_lr=1e-2)
    schedule = ScheduleConfig(shape="constant" if optimizer == "schedulefree" else "linear")
    asked = Compression(option=option, **changes)
    return tiny_run(
        model=MODEL,
        optimizer=rates,
        schedule=schedule,
        ema=ema,
        compression=asked,
        steps=0 if seconds else steps,
        seconds=seconds,
    )


def trained(config, tokens, clock=None, **options):
    return train(config, LABEL, tokens, Meter(clock or Clock(), lambda *_: None), **options)


def stopping_after(steps):
    asked = iter(range(10**6))
    return lambda: next(asked) >= steps


def same_weights(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="session")
def teacher(tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    save_model(folder, trained_looking(tiny_model(width=48)), tokens.tokenizer_file, 0)
    return str(folder)


# --- pruning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.77])
def test_sparsity_is_exactly_what_was_asked(scope, share):
    network = trained_looking(MODEL)
    masks = masks_for(network, Compression(option="prune", sparsity=share, scope=scope))
    counts = [round(mask.numel() * share) for mask in masks.values()]
    gone = [int((~mask).sum()) for mask in masks.values()]
    assert sum(gone) == sum(counts)
    assert scope == "global" or gone == counts


def test_of_every_four_weights_two_are_left_and_they_are_the_larger():
    network = trained_looking(MODEL)
    for name, mask in masks_for(network, Compression(option="prune24")).items():
        fours, weights = mask.reshape(-1, 4), network.get_parameter(name).detach().abs().reshape(-1, 4)
        assert (fours.sum(1) == 2).all()
        assert (weights.masked_fill(~fours, math.inf).amin(1) >= weights.masked_fill(fours, 0).amax(1)).all()


def test_the_schedule_begins_and_ends_where_it_says_and_never_falls():
    asked = Compression(option="prune", start=0.25, end=0.75)
    shares = [share_after(updates_due(asked, progress / 100)) for progress in range(101)]
    assert shares[24] == 0
    assert 0 < shares[30] < shares[60] < 1
    assert shares[75:] == [1.0] * 26
    assert shares == sorted(shares)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_stay_zero_through_the_steps_of_every_optimizer(optimizer, tokens):
    done = trained(run_of("prune", optimizer=optimizer, sparsity=0.6, start=0.1, end=0.4), tokens)
    for name, weight in prunable(done.network).items():
        assert int((weight == 0).sum()) == round(0.6 * weight.numel()), name


@pytest.mark.parametrize("option", ["prune", "prune24"])
def test_so_they_do_in_the_averaged_weights(option, tokens):
    done = trained(run_of(option, ema=0.3, start=0.1, end=0.4), tokens)
    for name, weight in prunable(done.network).items():
        assert int((weight == 0).sum()) == weight.numel() // 2, name


def test_the_sparsity_is_reached_even_where_the_run_has_hardly_any_steps(tokens):
    done = trained(run_of("prune", steps=1, sparsity=0.8, start=0.5, end=1.0), tokens)
    assert all(int((w == 0).sum()) == round(0.8 * w.numel()) for w in prunable(done.network).values())


# --- smaller models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_left_of_a_network_is_a_plain_smaller_one_that_trains_on(optimizer, tokens):
    config = run_of("shrink-layers+shrink-heads+shrink-hidden", optimizer=optimizer, start=0.4, ema=0.0)
    config = dataclasses.replace(config, model=tiny_model(depth=4, width=128))
    done = trained(config, tokens)
    small = shrunk(config.model, config.compression)
    assert (small.depth, small.heads, small.hidden) == (2, 1, config.model.hidden // 2)
    assert done.network.config == small
    assert sum(p.numel() for p in done.network.parameters()) == parameters(small)
    assert done.record.bpb is not None
    assert done.record.artefact_bytes == pytest.approx(artefact_bytes(config.model, config.compression), rel=0.01)
    full = trained(dataclasses.replace(config, compression=Compression()), tokens)
    assert done.record.flops < full.record.flops


def test_the_weightiest_parts_stay_with_what_the_optimizer_knew_of_them():
    model = tiny_model(depth=2, width=128)
    network = trained_looking(model)
    with torch.no_grad():
        network.model.layers[0].mlp.gate_proj.weight[: model.hidden // 2] *= 0.01
        network.model.layers[1].self_attn.v_proj.weight[:64] *= 0.01
    optimizer = torch.optim.AdamW(network.parameters())
    network.loss(TOKENS_BL[:, :-1], TOKENS_BL[:, 1:]).backward()
    optimizer.step()
    gate, value = network.model.layers[0].mlp.gate_proj.weight, network.model.layers[1].self_attn.v_proj.weight
    expected = [
        w.detach().clone()
        for w in (gate[model.hidden // 2 :], value[64:], optimizer.state[gate]["exp_avg"][model.hidden // 2 :])
    ]
    asked = Compression(option="shrink-heads+shrink-hidden")
    compressor = Compressor(asked, network, [optimizer], None, None, "cpu")
    assert compressor.before_step(0.5, 7, TOKENS_BL.numpy())
    gate, value = network.model.layers[0].mlp.gate_proj.weight, network.model.layers[1].self_attn.v_proj.weight
    assert all(map(torch.equal, (gate, value, optimizer.state[gate]["exp_avg"]), expected))
    assert len(optimizer.state) == len(list(network.parameters()))


# --- quantisation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["int8-qat", "int8-dynamic-qat", "int4-qat"])
@pytest.mark.parametrize("normed", [True, False])
def test_training_with_rounded_weights_computes_what_is_deployed(option, normed):
    network = trained_looking(tiny_model(width=64, norm_embedding=normed))
    chosen = Compression(option=option).quantised
    twin, deployed = rounded_twin(network, chosen), quantised(exported(network), chosen)
    loss, expected = (n.loss(TOKENS_BL[:, :-1], TOKENS_BL[:, 1:], "none") for n in (twin, deployed))
    # A row's largest activation lies between two integers, so that the last bit of what came before decides which.
    assert torch.allclose(loss, expected, atol=0.1 if chosen.rounds_activations else 1e-4)
    assert loss.mean().item() == pytest.approx(expected.mean().item(), rel=2e-3 if chosen.rounds_activations else 1e-5)
    loss.mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("option", ["int8", "int8-dynamic", "int4", "int4-qat", "prune+int8", "shrink-hidden+int8"])
def test_a_run_is_scored_as_it_would_be_deployed(option, tokens):
    done = trained(run_of(option), tokens)
    assert done.record.dense_bpb is not None
    assert done.record.bpb != done.record.dense_bpb
    assert done.record.bpb == pytest.approx(done.record.dense_bpb, rel=0.03)
    assert done.record.artefact_bytes == len(done.artefact.weights)


def test_compressing_and_scoring_are_within_the_deadline_and_charged(tokens, clock, monkeypatch):
    plain = Compressor.deployed

    def slow(self, network):
        clock.move(0.3)
        return plain(self, network)

    monkeypatch.setattr(Compressor, "deployed", slow)
    done = trained(run_of("int8", seconds=4.0), tokens, clock)
    assert done.record.bpb is not None
    assert done.record.by_purpose["compress"] == pytest.approx(0.6)  # once to learn what it takes, once at the end
    assert 3.5 < done.record.seconds <= 4.0


# --- distillation ----------------------------------------------------------------------------------------------------


def test_a_student_that_does_not_listen_is_trained_as_any_other_to_the_bit(tokens, teacher):
    alone = trained(run_of("none"), tokens)
    deaf = trained(run_of("distil", teacher=teacher, distil_weight=0.0), tokens)
    listens = trained(run_of("distil", teacher=teacher, distil_weight=0.5), tokens)
    assert same_weights(alone.network, deaf.network)
    assert alone.record.bpb == deaf.record.bpb
    assert not same_weights(alone.network, listens.network)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (2.0, 0), (1.5, 7)])
def test_the_gradient_of_distillation_is_that_of_its_formula(temperature, top_k, tokens, teacher):
    asked = Compression(
        option="distil", teacher=teacher, distil_weight=0.3, distil_temperature=temperature, distil_top_k=top_k
    )
    network = trained_looking(tiny_model())
    compressor = Compressor(asked, network, [], None, tokens.tokenizer_file, "cpu")
    taught = load_teacher(teacher, tokens.tokenizer_file, "cpu")
    ids, targets = TOKENS_BL[:, :-1], TOKENS_BL[:, 1:].flatten()
    loss = compressor.loss(network, ids, TOKENS_BL[:, 1:])
    loss.backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    logits, theirs = network(ids).flatten(0, 1), taught.head(taught.features(ids)).flatten(0, 1) / temperature
    if top_k:
        theirs = theirs.masked_fill(theirs < theirs.topk(top_k).values[:, -1:], -torch.inf)
    kl = torch.nn.functional.kl_div((logits / temperature).log_softmax(1), theirs.softmax(1), reduction="batchmean")
    expected = 0.7 * torch.nn.functional.cross_entropy(logits, targets) + 0.3 * temperature**2 * kl
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, parameter in zip(gradients, network.parameters(), strict=True):
        assert torch.allclose(mine, parameter.grad, atol=1e-5)


def test_a_teacher_of_other_tokens_is_refused_with_the_remedy(tokens, teacher, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    text = json.loads((other / "tokenizer.json").read_text())
    vocabulary, last = text["model"]["vocab"], max(text["model"]["vocab"], key=text["model"]["vocab"].get)
    vocabulary["another"] = vocabulary.pop(last)
    text["model"]["merges"] = [merge for merge in text["model"]["merges"] if "".join(merge) != last]
    (other / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(
        ConfigError, match=r"320 tokens and the study 320, of which 319 are the same.*Set `data\.tokenizer ="
    ):
        load_teacher(str(other), tokens.tokenizer_file, "cpu")
    (other / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        load_teacher(str(other), tokens.tokenizer_file, "cpu")


def test_any_folder_of_transformers_can_teach(tokens, teacher, tmp_path):
    folder = tmp_path / "theirs"
    shutil.copytree(teacher, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("budgetlm_mlp_ratio")
    (folder / "config.json").write_text(json.dumps(config))
    ours, theirs = (load_teacher(str(f), tokens.tokenizer_file, "cpu") for f in (teacher, folder))
    ids = TOKENS_BL[:, :-1]
    assert torch.allclose(ours.head(ours.features(ids)), theirs.head(theirs.features(ids)), atol=1e-4)


# --- all of it -------------------------------------------------------------------------------------------------------

RESUMED = [
    ("prune", {}),
    ("prune", {"ema": 0.3, "scope": "global"}),
    ("prune24+int8", {"optimizer": "schedulefree"}),
    ("shrink-layers+shrink-hidden", {"ema": 0.3}),
    ("shrink-heads+int8-qat", {"optimizer": "adafactor", "qat_share": 0.4}),
    ("int4-qat", {"qat_share": 0.6}),
    ("distil+int8", {}),
]


@pytest.mark.parametrize(("option", "changes"), RESUMED)
def test_under_autocast_every_option_trains_as_in_fp32_to_the_precision_of_bf16(option, changes, tokens, teacher):
    asked = changes | ({"teacher": teacher} if "distil" in option else {})
    exact = run_of(option, **asked)
    bits = [trained(config, tokens).record.bpb for config in (exact, dataclasses.replace(exact, precision="bf16"))]
    assert bits[1] == pytest.approx(bits[0], rel=0.02)


@pytest.mark.parametrize("stop", [4, 9])
@pytest.mark.parametrize(("option", "changes"), RESUMED)
def test_stop_and_resume_equals_no_stop_to_the_bit(option, changes, stop, tokens, teacher, tmp_path):
    config = run_of(option, start=0.4, end=0.8, sparsity=0.5, teacher=teacher, **changes)
    straight = trained(config, tokens)
    checkpoints = Checkpoints(folder=tmp_path)
    first = trained(config, tokens, checkpoints=checkpoints, should_stop=stopping_after(stop))
    assert first.record.state == "interrupted"
    second = trained(config, tokens, checkpoints=checkpoints)
    assert second.record.state == "done"
    assert same_weights(straight.network, second.network)
    assert (straight.record.bpb, straight.record.flops) == (second.record.bpb, second.record.flops)


def test_a_run_goes_on_from_before_parts_were_taken_out_where_the_newer_checkpoint_is_damaged(tokens, tmp_path):
    config = run_of("shrink-layers", start=0.5)
    straight = trained(config, tokens)
    trained(config, tokens, checkpoints=Checkpoints(folder=tmp_path, every_steps=4), should_stop=stopping_after(9))
    newest = max(tmp_path.glob("step-*"))
    (newest / "tensors.safetensors").write_bytes(b"broken")
    again = trained(config, tokens, checkpoints=Checkpoints(folder=tmp_path))
    assert again.record.state == "done"
    assert again.notes
    assert again.record.bpb == straight.record.bpb


def test_a_plain_run_has_nothing_to_do_with_it(tokens):
    done = trained(run_of("none"), tokens)
    assert done.artefact is None
    assert done.record.dense_bpb is None
    assert done.record.by_purpose["compress"] == 0
    assert done.record.artefact_bytes == artefact_bytes(MODEL, Compression())
    assert build(MODEL, 0).config == done.network.config
