"""Training on a source whose rest is still being read."""

import json

import pytest
import torch

from budgetlm.budget.clock import Clock, Meter
from budgetlm.data.corpus import DataConfig, prepare_corpus
from budgetlm.data.rest import write_rest
from budgetlm.data.tokens import prepare_tokens
from budgetlm.train.loop import Checkpoints, train
from tests.conftest import sentences, tiny_model, tiny_run
from tests.train.test_checkpoint import LABEL, StopAfter

BATCH = 40


@pytest.fixture(scope="module")
def config_and_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    rows = (json.dumps({"text": text}) + "\n" for text in sentences(700))
    (folder / "texts.jsonl").write_text("".join(rows))
    return DataConfig(source=str(folder / "texts.jsonl"), vocab_size=320, head_bytes=60_000, stream="on"), folder / "cache"


@pytest.fixture(scope="module")
def streamed(config_and_cache):
    config, cache = config_and_cache
    tokens = prepare_tokens(config, prepare_corpus(config, cache), 320, cache)
    write_rest(config, cache, tokens)
    return tokens


def run(tokens, steps, **options):
    model = tiny_model(vocab_size=tokens.facts.vocab_size, depth=1, width=16)
    config = tiny_run(steps=steps, model=model, batch_sequences=BATCH, micro_batch_sequences=BATCH)
    return train(config, LABEL, tokens, Meter(Clock()), **options)


def assert_equal(one, other):
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert one.record.bpb == other.record.bpb


def test_a_run_that_is_stopped_in_several_shards_and_resumed_equals_one_that_is_not_to_the_bit(streamed, tmp_path):
    steps = int(1.3 * streamed.train_tokens / 32 / BATCH)  # into the second pass
    straight = run(streamed, steps)
    checkpoints = Checkpoints(folder=tmp_path / "checkpoints")
    for part in (steps // 4, steps // 4, steps // 3):
        assert run(streamed, steps, checkpoints=checkpoints, should_stop=StopAfter(part)).record.state == "interrupted"
    resumed = run(streamed, steps, checkpoints=checkpoints)
    assert_equal(straight, resumed)
    assert 1 < resumed.record.epochs < 1.5


def test_what_was_read_again_for_want_of_a_shard_is_read_so_by_a_resumed_run_too(streamed, tmp_path):
    head = len(streamed.split("train")) // 32 // BATCH
    steps = 2 * head + 20

    def trained(folder, stops):
        """Two passes over the head while nothing else is there; then the shards come."""
        checkpoints = Checkpoints(folder=tmp_path / folder)
        streamed.rest.rename(tmp_path / "hidden")
        run(streamed, steps, checkpoints=checkpoints, should_stop=StopAfter(head + 5))
        (tmp_path / "hidden").rename(streamed.rest)
        for stop in stops:
            run(streamed, steps, checkpoints=checkpoints, should_stop=StopAfter(stop))
        return run(streamed, steps, checkpoints=checkpoints)

    assert_equal(trained("once", ()), trained("often", (head // 2, head // 2, 5)))
