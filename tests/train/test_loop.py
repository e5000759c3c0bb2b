import dataclasses
import itertools
import math
import multiprocessing

import numpy as np
import pytest
import torch

from budgetlm.budget.clock import Clock, Meter
from budgetlm.data.batches import Batches, validation_windows
from budgetlm.errors import ConfigError
from budgetlm.model.transformer import LanguageModel, Trunk
from budgetlm.train import loop
from budgetlm.train.config import OPTIMIZERS, OptimizerConfig, as_dict, run_config_from
from budgetlm.train.evaluate import evaluate
from budgetlm.train.loop import Checkpoints, Label, train
from budgetlm.train.memory import run_memory
from budgetlm.train.schedule import ScheduleConfig
from budgetlm.train.step import Stepper, transferable
from tests.conftest import step_seconds, tiny_model, tiny_run

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


def dear_evaluations(monkeypatch, clock, times):
    """Evaluations that take so many times as long as the steps let expect, in turns."""
    plain, costs = loop.evaluate, itertools.cycle(times)

    def timed(network, windows, *arguments, **options):
        before = clock.seconds
        bpb = plain(network, windows, *arguments, **options)
        clock.seconds = before + next(costs) * (clock.seconds - before)
        return bpb

    monkeypatch.setattr(loop, "evaluate", timed)


@pytest.mark.parametrize("seconds", [1.0, 3.0])  # in the shorter one no evaluation on the way would be affordable
@pytest.mark.parametrize("times", [(0.1,), (1,), (3,), (6,), (3, 3.3, 2.9, 3.2), (1, 1.1)], ids=str)
def test_a_final_is_always_evaluated_on_the_larger_sample_within_its_seconds(
    tokens, config, clock, monkeypatch, times, seconds
):
    dear_evaluations(monkeypatch, clock, times)
    points = []
    run = config(seconds=seconds, eval_tokens=256, full_eval_tokens=1024)
    record = train(run, LABEL, tokens, Meter(clock), on_point=points.append).record
    assert record.bpb_full is not None
    assert record.bpb_full != record.bpb
    assert clock.seconds <= seconds
    assert points[-1].lr == pytest.approx(0.0, abs=1e-9)
    assert clock.seconds > seconds - 0.2 * record.by_purpose["evaluate"] - 3 * record.by_purpose["train"] / record.steps


def test_so_is_one_that_goes_on_close_to_its_end(tokens, config, clock, monkeypatch, tmp_path):
    dear_evaluations(monkeypatch, clock, (4,))
    run, kept = config(seconds=3.0, full_eval_tokens=4096), Checkpoints(folder=tmp_path)
    part = train(run, LABEL, tokens, Meter(clock), checkpoints=kept, should_stop=lambda: clock.seconds > 1.6).record
    assert part.state == "interrupted"
    record = train(run, LABEL, tokens, Meter(clock), checkpoints=kept).record
    assert record.bpb_full is not None
    assert clock.seconds <= 3.0


@pytest.mark.parametrize("full_eval_tokens", [0, 256])
def test_all_evaluations_of_a_run_together_take_a_fiftieth_of_it_at_most(tokens, config, clock, full_eval_tokens):
    points = []
    run = config(seconds=2.5, eval_tokens=128, full_eval_tokens=full_eval_tokens)
    record = train(run, LABEL, tokens, Meter(clock), on_point=points.append).record
    assert sum(point.bpb is not None for point in points) > 2
    assert 0.01 * run.seconds < record.by_purpose["evaluate"] <= 0.02 * run.seconds


def test_a_deadline_shorter_than_a_step_is_overspent_by_one_step_at_most(tokens, config, clock):
    record = train(config(seconds=1e-4), LABEL, tokens, Meter(clock)).record
    assert record.steps == 1


def test_real_training_on_a_real_clock_learns(tokens, config):
    clock = Clock()
    record = train(config(seconds=3.0), LABEL, tokens, Meter(clock)).record
    untrained = train(config(steps=1, optimizer=OptimizerConfig(peak_lr=1e-9)), LABEL, tokens, Meter(clock)).record
    assert record.bpb < 0.6 * untrained.bpb


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_at_a_rate_in_adamws_measure(tokens, config, name):
    shape = "constant" if name == "schedulefree" else "linear"
    run = config(steps=60, optimizer=OptimizerConfig(name=name, peak_lr=0.01), schedule=ScheduleConfig(shape=shape))
    learnt = train(run, LABEL, tokens, Meter(Clock())).record.bpb
    untrained = train(config(steps=1, optimizer=OptimizerConfig(peak_lr=1e-9)), LABEL, tokens, Meter(Clock())).record.bpb
    assert learnt < 0.7 * untrained


def test_the_schedule_follows_the_clock_not_the_steps(tokens, config, clock):
    schedule = ScheduleConfig(shape="linear", warmup=0.5)
    points = []
    run = config(seconds=1.0, schedule=schedule, optimizer=OptimizerConfig(peak_lr=0.01))
    train(run, LABEL, tokens, Meter(clock), on_point=points.append)
    peak = max(points, key=lambda p: p.lr)
    assert 0.4 < peak.seconds < 0.6
    assert peak.lr == pytest.approx(0.01, rel=0.1)


def test_compiling_takes_nothing_of_the_schedule(tokens, config, clock, monkeypatch):
    rates, plain = [], Stepper.step

    def step(stepper, rows, lr):
        rates.append(lr)
        clock.seconds += 3.0 if len(rates) == 1 else 0.0
        return plain(stepper, rows, lr)

    monkeypatch.setattr(Stepper, "step", step)
    monkeypatch.setattr(Trunk, "compile_blocks", lambda _, cuda_graphs: None)
    schedule = ScheduleConfig(warmup=0.2)
    record = train(config(seconds=9.0, compile=True, schedule=schedule), LABEL, tokens, Meter(clock)).record
    rising = sum(before < after for before, after in itertools.pairwise(rates))
    assert rising / len(rates) == pytest.approx(0.2, abs=0.02)
    assert record.by_purpose["compile"] == pytest.approx(3.0, abs=0.2)
    assert clock.seconds <= 9.0


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


def test_old_records_without_newer_settings_are_read_as_they_were_meant(config):
    run, values = config(steps=3), as_dict(config(steps=3))
    newer = {"schedule": ("cooldown_shape", "weight_decay_schedule", "batch_ramp", "momentum_warmup", "short_sequences")}
    newer["optimizer"] = ("embedding_lr",)
    for part, names in newer.items():
        values[part] = {name: value for name, value in values[part].items() if name not in names}
    del values["ema"]
    assert run_config_from(values) == run


def spied(monkeypatch, look):
    """Let `look` see every step's stepper and sequences, after it was done."""
    plain = Stepper.step

    def step(self, rows, lr):
        loss = plain(self, rows, lr)
        look(self, rows)
        return loss

    monkeypatch.setattr(Stepper, "step", step)


def test_short_sequences_come_first_and_keep_every_target(tokens, config, monkeypatch):
    shapes, plain = [], LanguageModel.loss

    def loss(self, ids, targets, reduction="mean"):
        if torch.is_grad_enabled():
            shapes.append((tuple(ids.shape), int(targets.sum())))
        return plain(self, ids, targets, reduction)

    monkeypatch.setattr(LanguageModel, "loss", loss)
    run = config(steps=4, batch_sequences=3, micro_batch_sequences=3)
    sums = []
    for share in (0.0, 0.5):
        train(dataclasses.replace(run, schedule=ScheduleConfig(short_sequences=share)), LABEL, tokens, Meter(Clock()))
        sums.append([total for _, total in shapes[-4:]])
    length = run.model.context_length
    assert [shape for shape, _ in shapes] == 4 * [(3, length)] + 2 * [(12, length // 4)] + 2 * [(3, length)]
    assert sums[0] == sums[1]  # the same targets, whatever the pieces


def test_a_batch_ramp_reads_every_sequence_once_and_counts_what_it_read(tokens, config, clock, monkeypatch):
    read, points = [], []
    spied(monkeypatch, lambda _, rows: read.append(rows))
    run = config(seconds=2.0, batch_sequences=16, schedule=ScheduleConfig(batch_ramp=0.5))
    record = train(run, LABEL, tokens, Meter(clock), on_point=points.append).record
    counts = [len(rows) for rows in read]
    assert counts[0] == 4
    assert counts == sorted(counts)
    assert counts[-1] == 16
    in_order = Batches(tokens.split("train"), run.model.context_length, run.seed).take(0, sum(counts))
    assert np.array_equal(np.concatenate(read), in_order)
    assert record.tokens == points[-1].tokens == 32 * sum(counts)
    assert record.flops == pytest.approx(record.tokens * train_flops(run))
    assert clock.seconds <= 2.0
    speed = 32 / step_seconds(run.model, 33)  # this clock takes as long for a sequence in any batch
    assert record.tokens_per_second == pytest.approx(speed)
    assert all(point.tokens_per_second == pytest.approx(speed) for point in points[:-1])


def test_the_sequences_of_the_next_step_are_taken_before_the_device_is_waited_for(tokens, config, monkeypatch):
    seen, take, waiting = [], Batches.take, torch.Tensor.tolist
    monkeypatch.setattr(Batches, "take", lambda self, at, count: seen.append(at) or take(self, at, count))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: seen.append("wait") or waiting(self))
    train(config(steps=3), LABEL, tokens, Meter(Clock()))
    assert seen == [0, 4, "wait", 8, "wait", 12, "wait"]


def test_on_a_gpu_sequences_are_copied_from_memory_that_stays_where_it_is(monkeypatch):
    rows, pinned = torch.zeros((2, 3), dtype=torch.int64), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    assert transferable(rows, "cpu").shape == (2, 3)
    assert not pinned
    assert transferable(rows, "cuda") is pinned[0]


def train_flops(run):
    from budgetlm.model.size import flops_per_token

    return flops_per_token(run.model)


def test_momentum_and_weight_decay_follow_the_progress(tokens, config, monkeypatch):
    seen = []
    spied(monkeypatch, lambda stepper, _: seen.append(dict(stepper.optimizers[1].param_groups[0])))
    schedule = ScheduleConfig(weight_decay_schedule="linear", momentum_warmup=0.5)
    muon = OptimizerConfig(name="muon", peak_lr=0.01, weight_decay=0.2)
    train(config(steps=10, optimizer=muon, schedule=schedule), LABEL, tokens, Meter(Clock()))
    assert [group["weight_decay"] for group in seen] == pytest.approx([0.2 * (1 - (i + 0.5) / 10) for i in range(10)])
    assert [group["momentum"] for group in seen] == pytest.approx([0.86, 0.88, 0.90, 0.92, 0.94] + [0.95] * 5)


def bpb_of(network, tokens, run):
    windows = validation_windows(tokens.split("validation"), run.model.context_length, run.eval_tokens)
    return evaluate(network, windows, tokens.bytes_V, micro_batch=64)


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_evaluated_and_handed_out_is_the_average_over_the_steps(tokens, config, monkeypatch, tied):
    seen = []
    spied(monkeypatch, lambda stepper, _: seen.append([w.detach().clone() for w in stepper.network.parameters()]))
    model = tiny_model(vocab_size=tokens.facts.vocab_size, tie_embeddings=tied)
    run = config(steps=8, ema=0.3, model=model)
    trained = train(run, LABEL, tokens, Meter(Clock()))
    counts = [math.exp(-(8 - step) / 8 / 0.3) for step in range(1, 9)]
    for number, weight in enumerate(trained.network.parameters()):
        average = sum(c * weights[number] for c, weights in zip(counts, seen, strict=True)) / sum(counts)
        assert torch.allclose(weight, average, atol=1e-5)
        assert not torch.equal(weight, seen[-1][number])
    assert bpb_of(trained.network, tokens, run) == pytest.approx(trained.record.bpb)


def test_an_average_covers_the_whole_run_by_its_clock(tokens, config, clock, monkeypatch):
    from budgetlm.train import loop

    plain, spans = loop.averaging_weight, []
    monkeypatch.setattr(
        loop, "averaging_weight", lambda ema, before, after: spans.append((before, after)) or plain(ema, before, after)
    )
    record = train(config(seconds=1.0, ema=0.2), LABEL, tokens, Meter(clock)).record
    assert len(spans) == record.steps
    assert spans[0][0] == 0
    assert [before for before, _ in spans[1:]] == [after for _, after in spans[:-1]]
    assert 0.95 < spans[-1][1] <= 1


def test_schedule_free_hands_out_the_weights_that_it_evaluated(tokens, config, monkeypatch):
    seen = []
    spied(monkeypatch, lambda stepper, _: seen.append([w.detach().clone() for w in stepper.network.parameters()]))
    run = config(steps=20, optimizer=OptimizerConfig(name="schedulefree", peak_lr=0.01))
    trained = train(run, LABEL, tokens, Meter(Clock()))
    assert bpb_of(trained.network, tokens, run) == trained.record.bpb
    pairs = zip(trained.network.parameters(), seen[-1], strict=True)
    assert not all(torch.allclose(weight, last, atol=1e-5) for weight, last in pairs)


def test_schedule_free_goes_on_training_after_an_evaluation_on_the_way(tokens, config, clock, monkeypatch):
    modes = []
    spied(monkeypatch, lambda stepper, _: modes.append(stepper.optimizers[0].param_groups[0]["train_mode"]))
    monkeypatch.setattr("budgetlm.train.loop.EVALUATION_SHARE", 0.3)
    points = []
    run = config(seconds=1.0, optimizer=OptimizerConfig(name="schedulefree"))
    train(run, LABEL, tokens, Meter(clock), on_point=points.append)
    assert sum(point.bpb is not None for point in points) > 1
    assert all(modes)


def test_a_second_average_beside_schedule_frees_own_is_refused(config):
    with pytest.raises(ConfigError, match="averages the weights by itself.*over 0.1 of the run. Set `ema` to 0"):
        config(steps=3, ema=0.1, optimizer=OptimizerConfig(name="schedulefree"))
    with pytest.raises(ConfigError, match="ema is 1.5"):
        config(steps=3, ema=1.5)


def peak_of(config, tokens) -> int:
    return train(config, LABEL, tokens, Meter(Clock())).record.peak_bytes


def test_a_record_says_how_much_memory_the_run_held(tokens, config):
    wide = config(steps=2, model=tiny_model(vocab_size=tokens.facts.vocab_size, width=512, depth=4))
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # its own process, as every trial has
        peak = pool.apply(peak_of, (wide, tokens))
    assert 0.9 < peak / run_memory(wide).peak < 2
