import dataclasses
import multiprocessing

import pytest
import torch

from budgetlm.budget.clock import Clock, Meter
from budgetlm.train.config import OptimizerConfig, as_dict, run_config_from
from budgetlm.train.loop import Label, train
from budgetlm.train.memory import run_memory
from budgetlm.train.schedule import ScheduleConfig
from tests.conftest import tiny_model, tiny_run

LABEL = Label(run="x", kind="rung", trial=3, rung=1, recipe={"depth": 2}, target_seconds=9.0, passport="here")


@pytest.fixture
def config(tokens):
    model = tiny_model(vocab_size=tokens.facts.vocab_size)
    return lambda **changes: tiny_run(**{"model": model, **changes})


@pytest.mark.parametrize("seconds", [0.2, 1.0, 5.0])
def test_a_run_ends_on_its_deadline_last_evaluation_included(tokens, config, clock, seconds):
    points = []
    record = train(config(seconds=seconds), LABEL, tokens, Meter(clock), on_point=points.append).record
    step = record.by_purpose["train"] / record.steps
    assert clock.seconds <= seconds
    assert clock.seconds >= seconds - 2.5 * step - 0.15 * record.by_purpose["evaluate"]
    assert record.state == "done"
    assert record.bpb == points[-1].bpb
    assert points[-1].lr == pytest.approx(0.0, abs=1e-9)


def test_a_deadline_shorter_than_a_step_is_overspent_by_one_step_at_most(tokens, config, clock):
    record = train(config(seconds=1e-4), LABEL, tokens, Meter(clock)).record
    assert record.steps == 1


def test_real_training_on_a_real_clock_learns(tokens, config):
    clock = Clock()
    record = train(config(seconds=3.0), LABEL, tokens, Meter(clock)).record
    untrained = train(config(steps=1, optimizer=OptimizerConfig(peak_lr=1e-9)), LABEL, tokens, Meter(clock)).record
    assert record.bpb < 0.6 * untrained.bpb


def test_the_schedule_follows_the_clock_not_the_steps(tokens, config, clock):
    schedule = ScheduleConfig(shape="linear", warmup=0.5)
    points = []
    run = config(seconds=1.0, schedule=schedule, optimizer=OptimizerConfig(peak_lr=0.01))
    train(run, LABEL, tokens, Meter(clock), on_point=points.append)
    peak = max(points, key=lambda p: p.lr)
    assert 0.4 < peak.seconds < 0.6
    assert peak.lr == pytest.approx(0.01, rel=0.1)


def test_micro_batches_add_up_to_the_batch(tokens, config):
    whole = train(config(steps=4, batch_sequences=6, micro_batch_sequences=6), LABEL, tokens, Meter(Clock()))
    parts = train(config(steps=4, batch_sequences=6, micro_batch_sequences=4), LABEL, tokens, Meter(Clock()))
    for a, b in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_loss_that_explodes_ends_the_run_as_diverged(tokens, config):
    run = config(steps=200, optimizer=OptimizerConfig(peak_lr=1e6, clip=1e9), schedule=ScheduleConfig(warmup=0.0))
    record = train(run, LABEL, tokens, Meter(Clock())).record
    assert record.state == "diverged"
    assert record.bpb is None
    assert record.steps < 200
    assert "finite" in record.error


def test_not_a_number_in_the_weights_is_noticed_at_once(tokens, config, monkeypatch):
    from budgetlm.model.transformer import LanguageModel

    plain = LanguageModel.loss
    calls = []

    def poisoned(self, *arguments, **options):
        calls.append(1)
        return plain(self, *arguments, **options) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(LanguageModel, "loss", poisoned)
    record = train(config(steps=50, micro_batch_sequences=4), LABEL, tokens, Meter(Clock())).record
    assert (record.state, record.steps) == ("diverged", 5)


def test_a_request_to_stop_is_heard_after_the_step(tokens, config):
    asked = iter([False, False, True])
    record = train(config(steps=100), LABEL, tokens, Meter(Clock()), should_stop=lambda: next(asked)).record
    assert (record.state, record.steps, record.bpb) == ("interrupted", 2, None)


def test_every_second_of_a_run_has_a_purpose(tokens, config, clock):
    record = train(config(seconds=0.5), LABEL, tokens, Meter(clock)).record
    assert sum(record.by_purpose.values()) == pytest.approx(record.seconds)
    assert record.by_purpose["train"] > 0.5 * record.seconds
    assert record.by_purpose["other"] == 0
    assert record.by_purpose["evaluate"] > 0


def test_the_record_says_what_was_run(tokens, config):
    run = config(steps=3, unique_tokens=640)
    record = train(run, LABEL, tokens, Meter(Clock())).record
    assert run_config_from(record.config) == run
    assert as_dict(run) == record.config
    assert (record.trial, record.rung, record.passport) == (3, 1, "here")
    assert record.tokens == 3 * 4 * 32
    assert record.epochs == pytest.approx(12 / 20)


def test_bf16_and_untied_grouped_models_train_on_this_device_too(tokens, config):
    model = tiny_model(vocab_size=tokens.facts.vocab_size, width=64, kv_groups=2, tie_embeddings=False)
    record = train(config(steps=3, precision="bf16", model=model), LABEL, tokens, Meter(Clock())).record
    assert record.state == "done"


def test_the_same_seed_gives_the_same_run_and_another_another(tokens, config):
    first, again, other = (
        train(dataclasses.replace(config(steps=5), seed=s), LABEL, tokens, Meter(Clock())).record.bpb for s in (0, 0, 1)
    )
    assert first == again != other


def peak_of(config, tokens) -> int:
    return train(config, LABEL, tokens, Meter(Clock())).record.peak_bytes


def test_a_record_says_how_much_memory_the_run_held(tokens, config):
    wide = config(steps=2, model=tiny_model(vocab_size=tokens.facts.vocab_size, width=512, depth=4))
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # its own process, as every trial has
        peak = pool.apply(peak_of, (wide, tokens))
    assert 0.9 < peak / run_memory(wide).peak < 2
