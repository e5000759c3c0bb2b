"""Tiny worlds that the tests share: a corpus of made-up sentences, its tokens, and clocks that never wait."""

import functools
import random
import shutil
from pathlib import Path

import pytest
import torch

from budgetlm import passport
from budgetlm.budget.clock import ManualClock
from budgetlm.config import StudyConfig, study_config
from budgetlm.data.corpus import DataConfig, prepare_corpus
from budgetlm.data.tokens import Tokens, prepare_tokens
from budgetlm.model.size import ModelConfig, flops_per_token
from budgetlm.records import RunRecord
from budgetlm.search import scheduler, study, trials
from budgetlm.train import calibrate, loop
from budgetlm.train.config import OptimizerConfig, RunConfig
from budgetlm.watch import Watcher
from tests.workers.inline import Inline

torch.set_num_threads(1)  # models this small are slower with more


def sentences(count: int, seed: int = 0) -> list[str]:
    """Documents with some structure to learn: subject, verb, object, and a number that follows from them."""
    chance = random.Random(seed)
    words = ["tree", "river", "stone", "cloud", "engine", "paper", "letter", "garden"]
    verbs = ["sees", "moves", "finds", "keeps"]
    documents = []
    for number in range(count):
        lines = [
            f"the {a} {verb} the {b} and counts {len(a) + len(b)}\n"
            for a, verb, b in ((chance.choice(words), chance.choice(verbs), chance.choice(words)) for _ in range(12))
        ]
        documents.append(f"document {number}\n" + "".join(lines))
    return documents


def install_clock(monkeypatch, every: int = 1) -> ManualClock:
    """A clock that only training moves: real steps and evaluations, of a speed that is the same on every machine.

    Args:
        every: so manieth steps alone are computed; the others take their time on the clock and change nothing.
    """
    clock = ManualClock()
    step, measure = loop.Stepper.step, loop.evaluate

    def timed_step(self, rows, lr):
        clock.move(step_seconds(self.config.model, rows.size))
        self.steps_seen = getattr(self, "steps_seen", -1) + 1
        if self.steps_seen % every == 0:
            self.last_loss = step(self, rows, lr)
        elif self.meanwhile:
            self.meanwhile()
        return self.last_loss

    def timed_evaluate(network, windows, *arguments, **options):
        clock.move(step_seconds(network.config, windows.size) / 3)
        return measure(network, windows, *arguments, **options)

    monkeypatch.setattr(loop.Stepper, "step", timed_step)
    monkeypatch.setattr(loop, "evaluate", timed_evaluate)
    monkeypatch.setattr(calibrate, "MICRO_BATCH_TOKENS", (128,))
    monkeypatch.setattr(passport, "_ceiling", measured_ceiling)
    monkeypatch.setattr(trials, "RESAMPLES", 5)
    monkeypatch.setattr(scheduler, "MARGIN_SECONDS", 0.01)  # what surrounds a run takes no time on this clock
    monkeypatch.setattr(study, "processes", lambda _config, clock, should_stop: Inline(clock, should_stop))
    return clock


@functools.cache
def measured_ceiling(device: str, dtype: str, measure=passport._ceiling) -> float:
    """What the machine reaches, measured once for all studies."""
    return measure(device, dtype)


@pytest.fixture
def clock(monkeypatch) -> ManualClock:
    """A clock that only training moves."""
    return install_clock(monkeypatch)


@pytest.fixture
def fast_clock(monkeypatch) -> ManualClock:
    """The same where few steps are computed: for whole studies, of which a test minds everything but how well they learn."""
    return install_clock(monkeypatch, every=6)


def step_seconds(model: ModelConfig, tokens: int) -> float:
    """How long a step takes on the clock above."""
    return tokens * (1e-4 + 4e-10 * flops_per_token(model))


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(sentences(300)):
        (folder / f"{number:03d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tokens(corpus_folder, cache) -> Tokens:
    config = DataConfig(source=str(corpus_folder), vocab_size=320)
    return prepare_tokens(config, prepare_corpus(config, cache), 320, cache)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty folder to run commands in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study_of(corpus_folder: Path, seconds: float, **changes) -> StudyConfig:
    """A study that takes seconds, on the clock above and in truth."""
    table = {
        "name": "tiny",
        "budget": {"hours": seconds / 3600, "target_hours": 3.2 / 3600},
        "data": {"source": str(corpus_folder), "vocab_size": 320},
        "model": {"context_length": 32},
        "train": {"eval_tokens": 256, "threads": 1, "compile": "off"},
        "search": {"least_rung_seconds": 0.15, "stop_early": False},
        "space": {"depth": {"low": 1, "high": 2}, "width": {"low": 16, "high": 48, "step": 16}, "batch_tokens": 128},
    }
    return study_config(table | changes)


def small_study(corpus_folder: Path, **changes) -> str:
    """The file of a study that takes seconds on the real clock."""
    settings = {
        "hours": 6 / 3600,
        "devices": 0,
        "memory_gb": 0.0,
        "width": "{ low = 16, high = 48, step = 16 }",
    } | changes
    return f"""
        [budget]
        hours = {settings["hours"]}
        target_hours = {4 / 3600}
        [data]
        source = "{corpus_folder}"
        vocab_size = 320
        [model]
        context_length = 32
        [train]
        threads = 1
        devices = {settings["devices"]}
        memory_gb = {settings["memory_gb"]}
        eval_tokens = 512
        [search]
        least_rung_seconds = 0.25
        stop_early = false
        [space]
        depth = {{ low = 1, high = 2 }}
        width = {settings["width"]}
        batch_tokens = 256
    """


@pytest.fixture
def tiny_study(corpus_folder, home):
    """Makes studies of a given budget."""
    return lambda seconds=6.0, **changes: study_of(corpus_folder, seconds, **changes)


@pytest.fixture(scope="session")
def searched_folder(corpus_folder, cache, tmp_path_factory) -> Path:
    """A folder with one finished study, made once."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study.search(study_of(corpus_folder, 6.0), cache, install_clock(patch), Watcher())
    return folder


@pytest.fixture
def searched(searched_folder, corpus_folder, home) -> StudyConfig:
    """A finished study of one's own."""
    shutil.copytree(searched_folder / "studies", home / "studies")
    return study_of(corpus_folder, 6.0)


def tiny_model(**changes) -> ModelConfig:
    return ModelConfig(**{"vocab_size": 320, "depth": 2, "width": 32, "context_length": 32, **changes})


def tiny_run(**changes) -> RunConfig:
    values = {
        "model": tiny_model(),
        "optimizer": OptimizerConfig(peak_lr=1e-2),
        "batch_sequences": 4,
        "micro_batch_sequences": 4,
        "eval_tokens": 512,
    }
    return RunConfig(**{**values, **changes})


def record(trial: int, rung: int, seconds: float, bpb: float | None, target: float = 1000.0, **changes) -> RunRecord:
    """A record of a rung, as a search would have left it."""
    values = {
        "run": f"trial{trial:04d}-rung{rung}",
        "kind": "rung",
        "trial": trial,
        "rung": rung,
        "state": "done" if bpb is not None else "failed",
        "recipe": {"depth": 2, "width": 32, "batch_tokens": 128, "peak_lr": 0.01 * (trial + 1)},
        "config": {"model": {"depth": 2, "width": 32}},
        "seed": 0,
        "target_seconds": target,
        "planned_seconds": seconds,
        "seconds": seconds,
        "by_purpose": {"train": seconds},
        "steps": 10,
        "tokens": 1000,
        "parameters": 100,
        "compute_parameters": 100,
        "flops": 1e6,
        "tokens_per_second": 100.0,
        "bpb": bpb,
    }
    return RunRecord(**{**values, **changes})
