import json
import os
import random
import signal
import time
from collections import Counter
from multiprocessing import active_children, get_context

import numpy as np
import pytest
from tokenizers import Tokenizer

from budgetlm.budget.holder import _started
from budgetlm.data import rest as module
from budgetlm.data.batches import StreamedBatches, training_batches
from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.rest import rest_being_read, write_rest
from budgetlm.data.sieve import mark_of
from budgetlm.data.tokens import prepare_tokens
from budgetlm.errors import ConfigError, DataError
from tests.conftest import sentences

HEAD = 60_000


def write_source(path, count=2_000, twice=200):
    """A source of many small documents, some of them twice, and one that is empty."""
    documents = sentences(count)
    documents += [*documents[:twice], ""]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return documents[:count]


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source.jsonl"


@pytest.fixture
def config(source):
    write_source(source)
    return DataConfig(source=str(source), vocab_size=320, head_bytes=HEAD, stream="on", drop_overlap=False)


def head_of(config, cache):
    return prepare_tokens(config, prepare_corpus(config, cache), 320, cache)


def documents_of(tokens, *arrays):
    tokenizer, ids = Tokenizer.from_file(str(tokens.tokenizer_file)), np.concatenate(arrays)
    pieces = np.split(ids, np.flatnonzero(ids == tokens.facts.end_of_text) + 1)[:-1]
    return [tokenizer.decode(piece[:-1].tolist()) for piece in pieces]


def training_documents(tokens):
    return documents_of(tokens, tokens.split("train"), *tokens.shards())


def wait_until(true, seconds=60):
    for _ in range(seconds * 100):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError(f"it did not come within {seconds} s")


def test_head_and_rest_are_the_documents_of_the_whole_and_the_heads_validation_never_trains(config, tmp_path):
    cache = tmp_path / "cache"
    tokens = head_of(config, cache)
    assert not tokens.complete
    write_rest(config, cache, tokens)
    whole = prepare_corpus(DataConfig(source=config.source, stream="off", drop_overlap=False), cache)
    streamed = training_documents(tokens)
    assert Counter(streamed) == Counter(whole.documents("train"))
    assert max(Counter(streamed).values()) == 1
    validation = documents_of(tokens, tokens.split("validation"))
    assert set(validation) < set(whole.documents("validation"))
    assert len(validation) + tokens.totals["left_out"] == whole.facts.documents["validation"]
    assert tokens.complete
    assert tokens.totals["bytes"] + tokens.corpus.bytes["train"] == whole.facts.bytes["train"]
    assert len(tokens.shards()) > 5
    assert {len(shard) for shard in tokens.shards()[:-1]} == {tokens.shard_tokens}


def test_the_limit_cuts_a_streamed_source_where_it_cuts_a_whole_one(config, tmp_path):
    limited = {"source": config.source, "max_bytes": 500_000, "head_bytes": HEAD}
    cache, streamed = tmp_path / "cache", DataConfig(stream="on", **limited)
    tokens = head_of(streamed, cache)
    write_rest(streamed, cache, tokens)
    whole = prepare_corpus(DataConfig(stream="off", **limited), cache)
    assert training_documents(tokens) == list(whole.documents("train"))
    assert (tokens.totals["cut"], whole.facts.cut, tokens.corpus.cut) == (True, True, False)


def test_sources_are_streamed_when_they_are_large_or_it_is_wished(config, tmp_path):
    def streamed(**changes):
        changed = DataConfig(**{"source": config.source, "head_bytes": HEAD} | changes)
        return prepare_corpus(changed, tmp_path / "cache").facts.whole_bytes > 0

    assert streamed()
    assert streamed(stream="on")
    assert not streamed(stream="off")
    assert not streamed(head_bytes=10**8)
    assert not streamed(max_bytes=HEAD + 5_000)
    assert streamed(max_bytes=HEAD + 5_000, stream="on")
    assert not streamed(stream="on", head_bytes=10**8)
    with pytest.raises(ConfigError, match="stream cannot be 'maybe'"):
        DataConfig(stream="maybe")
    with pytest.raises(ConfigError, match="head_bytes is 0"):
        DataConfig(head_bytes=0)


def test_the_head_of_a_folder_is_a_sample_of_it_and_the_same_each_time(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(sentences(400)):
        (folder / f"{number:03d}.txt").write_text(text)
    config = DataConfig(source=str(folder), head_bytes=40_000, stream="on")
    first, again = (list(prepare_corpus(config, tmp_path / name).documents("train")) for name in ("a", "b"))
    assert first == again
    numbers = [int(text.split()[1]) for text in first]
    assert np.mean(numbers) == pytest.approx(200, rel=0.25)
    assert len(numbers) < 200


def test_the_size_of_what_is_not_there_is_estimated_and_then_counted(config, tmp_path):
    tokens = head_of(config, tmp_path / "cache")
    estimate, fingerprint = tokens.train_tokens, tokens.facts.fingerprint
    assert f"of about {estimate:,}" in tokens.state()
    assert "the head of about" in tokens.corpus.summary()
    write_rest(config, tmp_path / "cache", tokens)
    assert tokens.train_tokens == len(tokens.split("train")) + sum(map(len, tokens.shards()))
    assert estimate == pytest.approx(tokens.train_tokens, rel=0.2)
    assert head_of(config, tmp_path / "cache").facts.fingerprint == fingerprint


def write_in_process(config, cache, tokens):
    write_rest(config, cache, tokens)


def test_a_writer_killed_at_random_moments_loses_and_repeats_nothing(config, source, tmp_path):
    write_source(source, count=8_000)
    expected = head_of(config, tmp_path / "other")
    write_rest(config, tmp_path / "other", expected)
    tokens, chance, context = head_of(config, tmp_path / "cache"), random.Random(0), get_context("fork")
    seen = set()
    for _ in range(5):
        process = context.Process(target=write_in_process, args=(config, tmp_path / "cache", tokens))
        process.start()
        before = len(tokens.shards())
        wait_until(lambda before=before: tokens.complete or len(tokens.shards()) > before)
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.join()
        seen.add(len(tokens.shards()))
    assert len(seen) > 1
    write_rest(config, tmp_path / "cache", tokens)
    assert not list(tokens.rest.glob(".*"))
    assert tokens.totals == expected.totals
    for ours, theirs in zip(tokens.shards(), expected.shards(), strict=True):
        assert np.array_equal(ours, theirs)


def test_two_writers_at_once_write_everything_once(config, tmp_path):
    tokens, context = head_of(config, tmp_path / "cache"), get_context("fork")
    both = [context.Process(target=write_in_process, args=(config, tmp_path / "cache", tokens)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert max(Counter(training_documents(tokens)).values()) == 1
    assert tokens.complete


def test_the_rest_is_read_beside_and_its_process_ends_with_the_block(config, tmp_path):
    tokens, notes = head_of(config, tmp_path / "cache"), []
    with rest_being_read(config, tmp_path / "cache", tokens, notes.append):
        training_batches(tokens, 32, 0).take(0, 8)  # nothing has to be waited for
        assert not tokens.complete
        wait_until(lambda: notes)
    assert notes == [f"data      all text is read: {tokens.state()}"]
    assert tokens.complete
    with rest_being_read(config, tmp_path / "cache", tokens, notes.append):
        assert len(notes) == 1  # nothing to be done


def test_a_source_that_cannot_be_read_on_is_one_line_and_what_is_there_stays(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    good, bad = sorted(["1.jsonl", "2.jsonl"], key=lambda name: mark_of(name.encode()))  # the order in which they are read
    write_source(folder / good)
    (folder / bad).write_text("{ this is no JSON\n")
    config = DataConfig(source=str(folder), vocab_size=320, head_bytes=HEAD, stream="on")
    tokens, notes = head_of(config, tmp_path / "cache"), []
    with rest_being_read(config, tmp_path / "cache", tokens, notes.append):
        wait_until(lambda: notes)
    assert len(notes) == 1
    assert notes[0].startswith("warning   the rest of ")
    assert f"line 1 of {folder / bad} is not JSON" in notes[0]
    assert "\n" not in notes[0]
    assert tokens.shards()
    assert not tokens.complete
    assert len(training_batches(tokens, 32, 0).take(0, 500)) == 500


def test_a_disk_with_too_little_room_keeps_some_for_checkpoints(config, tmp_path, monkeypatch):
    tokens = head_of(config, tmp_path / "cache")
    monkeypatch.setattr(module, "RESERVE_BYTES", 10**18)
    with pytest.raises(DataError, match="MB are left to checkpoints"):
        write_rest(config, tmp_path / "cache", tokens)
    assert not tokens.complete


def test_a_source_that_has_changed_is_not_mixed_with_its_old_head(config, source, tmp_path):
    tokens = head_of(config, tmp_path / "cache")
    write_source(source, count=3_000)
    with pytest.raises(DataError, match="has changed since its head was read"):
        write_rest(config, tmp_path / "cache", tokens)


def command_that_reads(config, cache, tokens, pipe):
    with rest_being_read(config, cache, tokens, print):
        pipe.send([child.pid for child in active_children()])
        time.sleep(600)


def test_the_writer_dies_with_a_command_that_is_killed(config, source, tmp_path):
    write_source(source, count=30_000)
    tokens, context = head_of(config, tmp_path / "cache"), get_context("spawn")
    ours, theirs = context.Pipe()
    command = context.Process(target=command_that_reads, args=(config, tmp_path / "cache", tokens, theirs))
    command.start()
    (writer,) = ours.recv()
    wait_until(tokens.shards)
    os.kill(command.pid, signal.SIGKILL)
    command.join()

    wait_until(lambda: _started(writer) is None)
    assert not tokens.complete


# --- what is read when ---


def hide(tokens, kept):
    """Take all shards but the first few away; gives them back one by one."""
    hidden = [tokens.shard_file(number) for number in range(kept, len(tokens.shards()))]
    for path in hidden:
        path.rename(path.with_suffix(".hidden"))
    return iter([path.with_suffix(".hidden").rename(path) for path in [path]] for path in hidden)


@pytest.fixture
def streamed(config, tmp_path):
    tokens = head_of(config, tmp_path / "cache")
    write_rest(config, tmp_path / "cache", tokens)
    return tokens


def test_a_position_says_what_comes_next_however_it_was_reached(streamed):
    straight = StreamedBatches(streamed, 32, seed=1)
    total = sum(len(part) // 32 - 1 for part in [streamed.split("train"), *streamed.shards()])
    rows = np.concatenate([straight.take(p, 7) for p in range(0, 2 * total, 7)])
    for position in (1, total - 3, total // 2, 2 * total - 20):
        jump = StreamedBatches(streamed, 32, seed=1)
        assert np.array_equal(jump.take(position, 9), rows[position : position + 9])
    assert not np.array_equal(rows[:9], StreamedBatches(streamed, 32, seed=2).take(0, 9))
    parts = len(streamed.shards()) + 1
    assert straight.route[: 2 * parts] == (*range(parts), *range(parts))
    assert len(np.unique(rows[:total], axis=0)) == total


def test_what_is_there_is_read_again_until_the_next_shard_arrives(streamed):
    back = hide(streamed, 1)
    batches = training_batches(streamed, 32, seed=0)
    head, shard = (len(part) // 32 - 1 for part in (streamed.split("train"), streamed.shards()[0]))
    batches.take(0, 2 * head + shard)
    assert batches.route == (0, 1, 0)
    next(back)
    batches.take(2 * head + shard, shard + 1)
    assert batches.route == (0, 1, 0, 2, 1)


def test_a_resumed_run_follows_its_route_whatever_has_arrived_since(streamed):
    back = hide(streamed, 1)
    first = training_batches(streamed, 32, seed=0)
    head, shard = (len(part) // 32 - 1 for part in (streamed.split("train"), streamed.shards()[0]))
    position = 2 * head + shard - 5
    first.take(0, position)
    list(back)
    again = training_batches(streamed, 32, seed=0, route=first.route)
    assert np.array_equal(again.take(position, 200), first.take(position, 200))
    lost = training_batches(streamed, 32, seed=0, route=(0, 10**6, 0))
    assert len(lost.take(position, 10)) == 10


def test_a_slice_is_the_heads_where_that_is_enough_and_goes_on_in_the_shards_where_not(streamed):
    head = streamed.split("train")
    small = training_batches(streamed, 32, 0, unique_tokens=320)
    assert (small.sequences, small.route) == (10, ())
    wanted = len(head) + streamed.shard_tokens + 320
    large = training_batches(streamed, 32, 0, unique_tokens=wanted)
    large.take(0, 3 * wanted // 32)
    assert large.sequences == pytest.approx(wanted / 32, abs=4)
    assert set(large.route) == {0, 1, 2}
