import dataclasses

import pytest
import torch

from budgetlm.budget.clock import Clock, Meter
from budgetlm.files import digest
from budgetlm.train.config import Label, OptimizerConfig
from budgetlm.train.loop import Checkpoints, train
from budgetlm.train.schedule import SHAPES, ScheduleConfig
from budgetlm.train.trunk import can_begin_at, trunk_of, trunk_share
from tests.conftest import tiny_model, tiny_run

WSD = ScheduleConfig(shape="wsd", warmup=0.1, cooldown=0.4)


@pytest.fixture
def config(tokens):
    model, muon = tiny_model(vocab_size=tokens.facts.vocab_size), OptimizerConfig(name="muon", peak_lr=0.01)

    def make(**changes):
        schedule = dataclasses.replace(WSD, **{n: changes.pop(n) for n in list(changes) if hasattr(WSD, n)})
        length = {} if "seconds" in changes else {"steps": 20}
        return tiny_run(**{"model": model, "optimizer": muon, "schedule": schedule, **length, **changes})

    return make


@pytest.fixture
def run(tokens, tmp_path):
    """Trains with a folder of trunks, under a name of its own."""

    def go(config, name="x", trunks=True, clock=None, **arguments):
        label = Label(run=name, kind="rung", trial=0, rung=0, recipe={}, target_seconds=9.0)
        kept = Checkpoints(folder=tmp_path / name, trunks=tmp_path / "trunks" if trunks else None)
        return train(config, label, tokens, Meter(clock or Clock()), checkpoints=kept, **arguments)

    return go


def same_weights(one, other):
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.3},
        {"weight_decay_schedule": "linear", "batch_ramp": 0.5, "momentum_warmup": 0.4},
        {"short_sequences": 0.3},
        {"short_sequences": 0.7, "ema": 0.2},
    ],
)
def test_runs_that_differ_in_their_cool_down_alone_share_the_rest_to_the_bit(config, run, changes):
    first = run(config(cooldown=0.5, **changes), "first")
    other = config(cooldown=0.25, cooldown_shape="sqrt", floor=0.1, **changes)
    straight, branched = run(other, "straight", trunks=False), run(other, "branched")
    assert first.record.inherited_from == straight.record.inherited_from == ""
    assert branched.record.inherited_from == "first"
    assert branched.record.steps == straight.record.steps == 20
    assert branched.record.tokens == straight.record.tokens
    assert same_weights(branched, straight)
    assert branched.record.bpb == straight.record.bpb


def test_a_longer_run_goes_on_from_a_shorter_ones_trunk_as_if_it_had_trained_it(config, run):
    schedule = {"warmup": 0.0, "short_sequences": 0.5}
    run(config(**schedule), "short")
    longer = config(**schedule, steps=80)
    straight, branched = run(longer, "straight", trunks=False), run(longer, "branched")
    assert branched.record.inherited_from == "short"
    assert same_weights(branched, straight)


def test_a_trunk_of_its_own_length_is_not_lost_for_those_of_longer_runs(config, run):
    run(config(warmup=0.0, cooldown=0.5), "short")
    run(config(warmup=0.0, steps=80), "long")
    run(config(warmup=0.0, steps=320), "longer")
    other = config(warmup=0.0, cooldown=0.3)
    heir = run(other, "heir")
    assert heir.record.inherited_from == "short"
    assert same_weights(heir, run(other, "straight", trunks=False))


def test_device_time_is_spent_once_and_the_deadline_stands(config, run, clock):
    first = run(config(seconds=1.0), "first", clock=clock).record
    before = clock.seconds
    heir = run(config(seconds=4.0), "heir", clock=clock).record
    spent = clock.seconds - before
    assert heir.inherited_from == "first"
    assert 0.5 < heir.inherited_seconds <= 0.6
    assert heir.seconds == pytest.approx(spent)
    assert heir.planned_seconds == 4.0
    assert 3.8 < spent + heir.inherited_seconds <= 4.0
    assert sum(heir.by_purpose.values()) == pytest.approx(spent)
    assert first.inherited_seconds == 0
    again = run(config(seconds=4.0, cooldown=0.3), "again", clock=clock).record
    assert again.inherited_from == "heir"  # which has left a longer one
    assert again.inherited_seconds == pytest.approx(2.4, abs=0.1)


def test_an_heir_that_is_stopped_goes_on_from_its_own_checkpoint_and_still_says_whose_heir_it_is(config, run, clock):
    run(config(seconds=1.0), "first", clock=clock)
    began = clock.seconds
    part = run(config(seconds=4.0), "heir", clock=clock, should_stop=lambda: clock.seconds > began + 1).record
    whole = run(config(seconds=4.0), "heir", clock=clock).record
    assert (part.state, whole.state) == ("interrupted", "done")
    assert part.inherited_from == whole.inherited_from == "first"
    assert part.inherited_seconds == whole.inherited_seconds > 0.5
    assert 3.8 < clock.seconds - began + whole.inherited_seconds <= 4.0


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"warmup": 0.2},
        {"batch_sequences": 8},
        {"optimizer": OptimizerConfig(name="muon", peak_lr=0.011)},
        {"short_sequences": 0.3},
        {"weight_decay_schedule": "linear"},
        {"ema": 0.1},
        {"cooldown": 0.7},  # its own fall begins before the other's trunk ends
        {"unique_tokens": 640},
        {"shape": "linear"},
    ],
)
def test_nothing_is_taken_over_where_anything_before_the_fall_differs(config, run, changes):
    run(config(), "first")
    other = config(**changes)
    heir = run(other, "heir")
    assert heir.record.inherited_from == ""
    assert same_weights(heir, run(other, "straight", trunks=False))


@pytest.mark.parametrize("damage", ["truncate", "flip", "state", "delete"])
def test_a_damaged_trunk_costs_what_it_would_have_saved_and_nothing_else(config, run, tmp_path, damage):
    run(config(), "first")
    [folder] = tmp_path.glob("trunks/*/*/step-*")
    file = folder / ("state.json" if damage == "state" else "tensors.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content[: len(content) // 2] if damage != "flip" else content)
    if damage == "delete":
        file.unlink()
    other = config(cooldown=0.2)
    heir = run(other, "heir")
    assert (heir.record.state, heir.record.inherited_from) == ("done", "")
    assert same_weights(heir, run(other, "straight", trunks=False))
    assert run(config(cooldown=0.1), "next").record.inherited_from == "heir"  # which has left a whole one


def test_a_disk_without_room_for_a_trunk_ends_no_run(config, run, tmp_path, monkeypatch):
    from budgetlm.train import checkpoint

    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    assert run(config(), "first").record.state == "done"
    assert not list(tmp_path.glob("trunks/*/*/*"))


def test_only_schedules_with_a_plateau_have_a_trunk_and_it_ends_where_runs_of_other_lengths_part(config):
    assert {shape for shape in SHAPES if trunk_share(config(shape=shape))} == {"wsd"}
    assert trunk_share(config()) == 0.6
    assert trunk_share(config(short_sequences=0.5)) == 0.5
    assert trunk_share(config(short_sequences=0.5, ema=0.1)) == 0.6  # shared by runs of one length alone
    assert trunk_share(config(warmup=0.5, cooldown=0.5)) == 0
    short, long = config(seconds=1.0), config(seconds=4.0)
    assert digest(trunk_of(short)) == digest(trunk_of(long))
    assert trunk_of(dataclasses.replace(short, ema=0.1)) != trunk_of(dataclasses.replace(long, ema=0.1))
    assert can_begin_at(long, 0.6, 99)
    assert not can_begin_at(long, 0.3, 99)  # its own warm-up would not be over
    assert not can_begin_at(long, 2.5, 99)
