import dataclasses
import importlib.util

import pytest
import torch
from torch import nn

from budgetlm.budget.clock import Clock, Meter
from budgetlm.doctor import examine
from budgetlm.errors import ConfigError
from budgetlm.final import final
from budgetlm.model.export import load_model, save_model
from budgetlm.model.footprint import training_memory
from budgetlm.model.transformer import build
from budgetlm.outlook import look_ahead
from budgetlm.search import study
from budgetlm.studies import ledger_of
from budgetlm.train.fp8 import check_fp8, fp8_twin
from budgetlm.train.loop import Checkpoints, Label, train
from budgetlm.watch import Watcher
from tests.conftest import tiny_model, tiny_run
from tests.model.test_transformer import TOKENS_BL, trained_looking

LABEL = Label(run="x", kind="rung", trial=0, rung=0, recipe={}, target_seconds=9.0)
has_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the extra fp8")


# --- refused where it cannot be had -----------------------------------------------------------------------------------


def test_what_is_missing_is_said_with_the_remedy(monkeypatch):
    with pytest.raises(ConfigError, match="the device is the CPU. Use `auto`"):
        check_fp8("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    with pytest.raises(ConfigError, match=r"capability 8\.9 or newer, but this one has 8\.6"):
        check_fp8("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'budgetlm\[fp8\]'"):
        check_fp8("cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: "there")
    check_fp8("cuda")


def wanting_fp8(config):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, precision="fp8"))


def test_a_search_on_a_cpu_is_refused_before_anything_is_charged(tiny_study, cache, clock):
    config = wanting_fp8(tiny_study())
    with pytest.raises(ConfigError, match="the device is the CPU"):
        study.search(config, cache, clock, Watcher())
    assert ledger_of(config.name).balance().charged_seconds == 0
    with pytest.raises(ConfigError, match="the device is the CPU"):
        look_ahead(config, cache, Watcher())


def test_a_final_is_refused_before_anything_is_charged(searched, cache, clock, monkeypatch):
    monkeypatch.setattr("budgetlm.final.load_plan", lambda folder: eight_bits(study.load_plan(folder)))
    with pytest.raises(ConfigError, match="the device is the CPU"):
        final(searched.name, cache, clock, Watcher(), config=searched)
    assert set(ledger_of(searched.name).accounts()) == {"search"}


def eight_bits(plan):
    return dataclasses.replace(plan, world=dataclasses.replace(plan.world, precision="fp8"))


def test_the_doctor_calls_it_a_fault(tiny_study, cache):
    check = next(c for c in examine(wanting_fp8(tiny_study()), cache) if c.name == "precision")
    assert check.state == "fault"
    assert "the device is the CPU" in check.says


def test_memory_is_counted_as_that_of_bf16():
    facts = {"micro_batch_sequences": 4, "optimizer": "adamw", "checkpoint_activations": False, "accumulates": True}
    eight, sixteen = (training_memory(tiny_model(document_end=0), precision=p, **facts) for p in ("fp8", "bf16"))
    assert eight == sixteen


# --- emulated ---------------------------------------------------------------------------------------------------------


@has_torchao
def test_the_twin_trains_the_networks_own_weights_under_the_same_names():
    from torchao.float8.float8_linear import Float8Linear

    network = trained_looking(tiny_model(width=64, kv_groups=2, tie_embeddings=True))
    names = list(network.state_dict())
    twin = fp8_twin(network, emulate=True)
    assert list(twin.state_dict()) == list(network.state_dict()) == names
    assert all(a is b for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    assert twin.lm_head.weight is twin.model.embed_tokens.weight
    assert not any(isinstance(module, Float8Linear) for module in network.modules())
    assert sum(isinstance(module, Float8Linear) for module in twin.modules()) == 7 * 2
    assert type(twin.lm_head) is nn.Linear
    exact, rounded = (n.loss(TOKENS_BL[:, :-1], TOKENS_BL[:, 1:]) for n in (network, twin))
    assert exact != rounded
    assert torch.allclose(exact, rounded, rtol=0.05)
    rounded.backward()
    assert all(weight.grad is not None for weight in network.parameters())


@has_torchao
def test_layers_of_other_sizes_than_the_units_take_stay_as_they_are():
    twin = fp8_twin(build(tiny_model(width=48, kv_groups=2), 0), emulate=True)
    attention = twin.model.layers[0].self_attn
    assert attention.k_proj.out_features % 16
    assert type(attention.k_proj) is nn.Linear
    assert type(attention.q_proj) is not nn.Linear


@has_torchao
@pytest.mark.parametrize("changes", [{}, {"checkpoint_activations": True}, {"ema": 0.1}])
def test_a_run_learns_is_measured_as_exported_and_goes_on_from_its_checkpoint(tmp_path, tokens, changes):
    model = tiny_model(vocab_size=tokens.facts.vocab_size, context_length=31)  # tokens a pass: no multiple of 16
    config = tiny_run(model=model, steps=12, precision="fp8", batch_sequences=5, micro_batch_sequences=3, **changes)
    short = train(dataclasses.replace(config, steps=1), LABEL, tokens, Meter(Clock())).record
    done = train(config, LABEL, tokens, Meter(Clock()), checkpoints=Checkpoints(folder=tmp_path / "c", every_steps=6))
    assert done.record.bpb < short.bpb - 0.5
    exported = tmp_path / "model"
    exported.mkdir()
    save_model(exported, done.network, tokens.tokenizer_file, tokens.facts.end_of_text)
    loaded, _, _ = load_model(exported)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), done.network.parameters(), strict=True))
    again = train(config, LABEL, tokens, Meter(Clock()), checkpoints=Checkpoints(folder=tmp_path / "c", every_steps=6))
    assert again.record.bpb == done.record.bpb
