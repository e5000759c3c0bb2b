import pytest
import torch

from budgetlm.budget.clock import Clock, Meter
from budgetlm.errors import CheckpointError, DiskFull
from budgetlm.train.loop import Checkpoints, Label, train
from tests.conftest import tiny_run

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

    from budgetlm.train.config import OptimizerConfig
    from tests.conftest import tiny_model

    base = tiny_run(steps=12, model=tiny_model(vocab_size=tokens.facts.vocab_size), micro_batch_sequences=3)
    return lambda name="adamw", **changes: dataclasses.replace(
        base, optimizer=OptimizerConfig(name=name, peak_lr=0.01), **changes
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stops", [(1,), (5,), (3, 4, 2)])
def test_stopped_and_resumed_equals_not_stopped_to_the_bit(tokens, config, tmp_path, optimizer, stops):
    straight = run(config(optimizer), tokens)
    checkpoints = Checkpoints(folder=tmp_path / "checkpoints")
    for steps in stops:
        part = run(config(optimizer), tokens, checkpoints=checkpoints, should_stop=StopAfter(steps))
        assert part.record.state == "interrupted"
    resumed = run(config(optimizer), tokens, checkpoints=checkpoints)
    assert resumed.record.steps == straight.record.steps == 12
    pairs = zip(straight.network.state_dict().items(), resumed.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in pairs)
    assert resumed.record.bpb == straight.record.bpb


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
