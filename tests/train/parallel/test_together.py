"""Finals on two devices, each a process of its own, from the command's function to the model's folder."""

import dataclasses
import json
import multiprocessing
import os
import signal

import pytest
from transformers import AutoModelForCausalLM

from budgetlm.budget.clock import Clock
from budgetlm.budget.database import file_address
from budgetlm.budget.ledger import open_ledger
from budgetlm.final import final
from budgetlm.records import read_curve
from budgetlm.watch import Watcher


class Notes(Watcher):
    """Keeps what is said, and does something at the first point of each curve."""

    def __init__(self, first_point=lambda: None):
        self.said, self.first_point = [], first_point

    def note(self, text):
        self.said.append(text)

    def point(self, point):
        if self.first_point:
            self.first_point, act = None, self.first_point
            act()


def run(config, cache, watcher=None, *, seconds=20.0, **train):
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **train))
    return final("tiny", cache, Clock(), watcher or Notes(), config=config, hours=seconds / 3600)


def charged(config, run):
    return open_ledger(file_address(config.folder / "study.db")).balance(run).charged_seconds


def kill_a_member():
    os.kill(multiprocessing.active_children()[-1].pid, signal.SIGKILL)


def ask_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("parallel", ["ddp", "pp"])
def test_a_final_on_two_devices_outlives_a_member_and_is_charged_for_both(searched, cache, tokens, parallel):
    watcher = Notes(kill_a_member)
    result = run(searched, cache, watcher, final_devices=2, checkpoint_seconds=0.2, parallel=parallel)
    record = result.record
    assert record.state == "done"
    assert any("all 2 began again from the newest checkpoint" in note for note in watcher.said)
    assert record.seconds == pytest.approx(charged(searched, record.run), rel=0.02)
    assert sum(record.by_purpose.values()) == pytest.approx(record.seconds, rel=0.02)
    assert AutoModelForCausalLM.from_pretrained(result.folder / "model").config.vocab_size == tokens.facts.vocab_size
    assert json.loads((result.folder / "model" / "recipe.json").read_text())["bpb"] == record.bpb
    seconds = [p.seconds for p in read_curve(searched.folder, record.run)]
    assert seconds == sorted(seconds)
    assert not (result.folder / "checkpoints").exists()
    assert not multiprocessing.active_children()


def test_a_stopped_final_of_two_devices_goes_on_with_one(searched, cache):
    parts = [run(searched, cache, Notes(ask_to_stop), seconds=300.0, final_devices=devices) for devices in (2, 1)]
    for part in parts:
        assert (part.record.state, part.exit_code) == ("interrupted", 75)
    assert [part.record.devices for part in parts] == [2, 1]
    assert parts[0].record.steps < parts[1].record.steps
    assert parts[0].record.seconds < parts[1].record.seconds
    assert parts[1].record.seconds == pytest.approx(charged(searched, parts[1].record.run), rel=0.02)
    assert list(parts[1].folder.glob("checkpoints/step-*"))
