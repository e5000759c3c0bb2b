import pytest
import torch

from budgetlm.budget.clock import Clock, Meter
from budgetlm.errors import CheckpointError, DiskFull
from budgetlm.model.transformer import build
from budgetlm.train.checkpoint import Position, load_newest, save_checkpoint
from budgetlm.train.config import OPTIMIZERS, OptimizerConfig
from budgetlm.train.loop import Checkpoints, Label, train
from budgetlm.train.optim import build_optimizers, set_training
from budgetlm.train.schedule import ScheduleConfig
from tests.conftest import tiny_model, tiny_run

LABEL = Label(run="x", kind="final", trial=0, rung=-1, recipe={}, target_seconds=1.0)


class StopAfter:
    def __init__(self, steps):
        self.left = steps

    def __call__(self):
        self.left -= 1
        return self.left < 0


def run(config, tokens, **arguments):
    return train(config, LABEL, tokens, Meter(Clock()), **arguments)


@pytest.fixture
def config(tokens):
    import dataclasses

    base = tiny_run(steps=12, model=tiny_model(vocab_size=tokens.facts.vocab_size), micro_batch_sequences=3)
    return lambda name="adamw", **changes: dataclasses.replace(
        base, optimizer=OptimizerConfig(name=name, peak_lr=0.01), **changes
    )


MOVING = ScheduleConfig(weight_decay_schedule="linear", batch_ramp=0.8, momentum_warmup=0.7, short_sequences=0.6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stops", [(1,), (3, 4, 2)])
def test_stopped_and_resumed_equals_not_stopped_to_the_bit(tokens, config, tmp_path, optimizer, stops):
    compare_stopped_with_straight(config(optimizer), stops, tokens, tmp_path)


@pytest.mark.parametrize("changes", [{"ema": 0.3}, {"schedule": MOVING}, {"ema": 0.3, "schedule": MOVING}])
@pytest.mark.parametrize("tied", [True, False])
def test_averages_ramps_and_schedules_go_on_where_they_stood(tokens, config, tmp_path, changes, tied):
    model = tiny_model(vocab_size=tokens.facts.vocab_size, tie_embeddings=tied)
    compare_stopped_with_straight(config("muon", model=model, **changes), (3, 4, 2), tokens, tmp_path)


def compare_stopped_with_straight(config, stops, tokens, folder):
    straight = run(config, tokens)
    checkpoints = Checkpoints(folder=folder / "checkpoints")
    for steps in stops:
        part = run(config, tokens, checkpoints=checkpoints, should_stop=StopAfter(steps))
        assert part.record.state == "interrupted"
    resumed = run(config, tokens, checkpoints=checkpoints)
    assert resumed.record.steps == straight.record.steps == 12
    assert resumed.record.tokens == straight.record.tokens
    pairs = zip(straight.network.state_dict().items(), resumed.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in pairs)
    assert resumed.record.bpb == straight.record.bpb


def test_schedule_free_weights_saved_as_evaluated_are_trained_on_as_if_never_saved(tmp_path):
    def stepped(network, optimizers, seed):
        for number, weight in enumerate(network.parameters()):
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 * seed + number))
        optimizers[0].step()

    def begun():
        network = build(tiny_model(), 0)
        return network, build_optimizers(network, OptimizerConfig(name="schedulefree"), bf16_is_fast=False)

    network, optimizers = begun()
    stepped(network, optimizers, 1)
    stepped(network, optimizers, 2)
    set_training(optimizers, on=False)
    save_checkpoint(tmp_path, network, optimizers, Position(step=2), {})
    loaded, its_optimizers = begun()
    load_newest(tmp_path, loaded, its_optimizers, {})
    for parts in ((network, optimizers), (loaded, its_optimizers)):
        set_training(parts[1], on=True)
        stepped(*parts, 3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), loaded.parameters(), strict=True))


def test_only_the_newest_checkpoints_are_kept(tokens, config, tmp_path):
    run(config(), tokens, checkpoints=Checkpoints(folder=tmp_path, every_steps=2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000012"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "state"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tokens, config, tmp_path, damage):
    run(config(), tokens, checkpoints=Checkpoints(folder=tmp_path, every_steps=2), should_stop=StopAfter(6))
    newest = max(tmp_path.iterdir())
    file = newest / ("state.json" if damage == "state" else "tensors.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content[: len(content) // 2] if damage != "flip" else content)
    resumed = run(config(), tokens, checkpoints=Checkpoints(folder=tmp_path))
    assert len(resumed.notes) == 1
    assert newest.name in resumed.notes[0]
    assert resumed.record.bpb == run(config(), tokens).record.bpb


def test_when_none_can_be_used_the_message_says_what_to_delete(tokens, config, tmp_path):
    run(config(), tokens, checkpoints=Checkpoints(folder=tmp_path), should_stop=StopAfter(3))
    with pytest.raises(CheckpointError, match=f"another configuration.*Delete {tmp_path}"):
        run(config(seed=1), tokens, checkpoints=Checkpoints(folder=tmp_path))


def test_a_disk_that_would_fill_is_noticed_before_the_write_with_the_figures(tokens, config, tmp_path, monkeypatch):
    from budgetlm.train import checkpoint

    run(config(), tokens, checkpoints=Checkpoints(folder=tmp_path, every_steps=2), should_stop=StopAfter(5))
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert len(kept) == 2
    usage = type("Usage", (), {"free": 10_000_000})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(checkpoint, "RESERVE_BYTES", 50_000_000)
    with pytest.raises(DiskFull, match=r"needs 50 MB, and 10 MB are free.*Free 40 MB"):
        run(config(), tokens, checkpoints=Checkpoints(folder=tmp_path, every_steps=2))
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == kept[1:]  # the older one made room, the newest is untouched
    monkeypatch.undo()
    resumed = run(config(), tokens, checkpoints=Checkpoints(folder=tmp_path))
    assert resumed.record.bpb == run(config(), tokens).record.bpb


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_steps_and_resumed_equals_uninterrupted_to_the_bit(tokens, config, tmp_path, seed):
    import random

    chance, longer = random.Random(seed), config(steps=40)
    straight = run(longer, tokens)
    checkpoints = Checkpoints(folder=tmp_path / "checkpoints", every_steps=3)

    class Killed(Exception):
        pass

    def die(_point):
        if chance.random() < 0.1:
            raise Killed  # no checkpoint is written on the way out

    kills = 0
    while True:
        try:
            resumed = run(longer, tokens, checkpoints=checkpoints, on_point=die)
            break
        except Killed:
            kills += 1
    assert kills
    pairs = zip(straight.network.state_dict().items(), resumed.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in pairs)
    assert resumed.record.bpb == straight.record.bpb
