import json

import numpy as np
import pytest

from budgetlm.commands.options import sections
from budgetlm.config import study_config
from budgetlm.data.batches import TURNS, MixedBatches, training_batches, turns, validation_sample
from budgetlm.data.config import DataConfig, Share
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.tokens import prepare_tokens
from budgetlm.errors import ConfigError, DataError
from tests.conftest import sentences

LENGTH = 16
PARTS = [
    np.arange(0, 10_000, dtype=np.uint16),
    np.arange(20_000, 21_600, dtype=np.uint16),
    np.arange(30_000, 38_000, dtype=np.uint16),
]
WEIGHTS = [0.6, 0.3, 0.1]


def mixed(unique=1.0, seed=0):
    return MixedBatches(PARTS, WEIGHTS, LENGTH, seed, unique)


def source_of(rows):
    return np.searchsorted([20_000, 30_000], rows[:, 0], side="right")


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def two(tmp_path):
    """A large and a small source, some of whose documents are the same."""
    numbers = [f"{n} and {n + 1} make {2 * n + 1}\n" * 8 for n in range(80)]
    large = write(tmp_path / "large.jsonl", sentences(300))
    return large, write(tmp_path / "small.jsonl", numbers + sentences(20))


def prepared(source, cache, **settings):
    config = DataConfig(source=source, **settings)
    return prepare_tokens(config, prepare_corpus(config, cache), 320, cache)


# --- what is asked for ---


def test_a_source_alone_stays_as_it_is_and_several_share_what_is_read():
    assert DataConfig(source="hf:a/b").shares == [Share("hf:a/b", 0.0)]
    assert DataConfig(source="http://host:8000/a.txt").shares == [Share("http://host:8000/a.txt", 0.0)]
    wanted = [Share("hf:a/b", 0.75), Share("http://host:80/a.txt", 0.25)]
    assert DataConfig(source="hf:a/b:3 + http://host:80/a.txt:1").shares == wanted
    assert [share.weight for share in DataConfig(source="a + b").shares] == [0, 0]


def test_the_option_may_be_repeated():
    table = sections(1.0, None, ["a:0.7", "b:0.3"], None, None, None, None, {})
    assert study_config({"data": table["data"]}).data.shares == [Share("a", 0.7), Share("b", 0.3)]
    assert sections(1.0, None, None, None, None, None, None, {})["data"] == {"source": None}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a:0 + b:1", "weight of a is 0, but must be above 0"),
        ("a:-0.5 + b:1", "weight of a is -0.5"),
        (":0.7 + b:0.3", "names no source"),
        ("a:0.7 + ", "names no source"),
        ("a:0.7 + b", "b has no weight"),
        ("a:0.7 + a:0.3", "names a source twice"),
    ],
)
def test_weights_that_mean_nothing_are_refused(source, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(source=source)


def test_several_sources_are_not_streamed_and_say_why():
    with pytest.raises(ConfigError, match="at a pace of its own, and their weights could not be kept"):
        DataConfig(source="a:1 + b:1", stream="on")


# --- what is read ---


def test_every_stretch_has_the_shares_that_were_asked_for():
    read = source_of(mixed().take(0, 3 * TURNS))
    for begin in (0, 7, 500, 2 * TURNS - 3):
        for length in (10, 30, 100, 1000):
            counts = np.bincount(read[begin : begin + length], minlength=3)
            assert np.abs(counts - length * np.array(WEIGHTS)).max() < 3
    assert np.bincount(turns([0.999, 0.001])).tolist() == [TURNS - 1, 1]
    with pytest.raises(DataError, match="would never be read"):
        turns([1 - 1e-5, 1e-5])


def test_the_same_position_gives_the_same_batch_however_it_was_reached():
    straight = mixed(seed=3)
    all_rows = np.concatenate([straight.take(p, 7) for p in range(0, 3 * TURNS, 7)])
    jump = mixed(seed=3)
    for position in (1000, 5, 2 * TURNS + 11, TURNS - 4):
        assert np.array_equal(jump.take(position, 9), all_rows[position : position + 9])
    assert not np.array_equal(mixed(seed=4).take(0, 9), all_rows[:9])


def test_sources_are_not_mixed_within_a_sequence_and_a_pass_reads_each_window_once():
    rows = mixed().take(0, 2000)
    assert np.array_equal(np.diff(rows, axis=1), np.ones((2000, LENGTH)))
    of_small = rows[source_of(rows) == 1]
    windows = len(PARTS[1]) // LENGTH - 1
    assert len(np.unique(of_small[:windows], axis=0)) == windows


def test_sequences_are_those_until_the_first_source_comes_again():
    assert mixed().sequences == pytest.approx((len(PARTS[1]) // LENGTH - 1) / 0.3, rel=0.01)


def test_a_slice_takes_the_same_part_of_every_source_so_that_epochs_are_kept():
    rows = mixed(unique=0.1).take(0, 4000)
    for number, part in enumerate(PARTS):
        inputs = rows[source_of(rows) == number][:, :-1]
        assert len(np.unique(inputs)) == pytest.approx(0.1 * len(part), abs=LENGTH)


# --- on disk ---


def test_sources_are_kept_apart_and_what_is_in_both_is_read_once(two, tmp_path):
    large, small = two
    tokens = prepared(f"{large}:0.5 + {small}:0.5", tmp_path / "cache")
    facts = tokens.corpus
    assert facts.duplicates == 20
    assert [sum(part["documents"].values()) for part in facts.parts] == [300, 80]
    assert facts.documents["train"] == sum(part["documents"]["train"] for part in facts.parts)
    assert "0.5 from " in facts.summary()
    for split in ("train", "validation"):
        whole, parts = tokens.split(split), tokens.parts(split)
        assert np.array_equal(np.concatenate(parts), whole)
        for part, fact in zip(parts, facts.parts, strict=True):
            assert tokens.bytes_V[part].sum() == fact["bytes"][split]
            assert np.count_nonzero(part == tokens.facts.end_of_text) == fact["documents"][split]


def test_without_weights_sources_are_read_equally_often(two, tmp_path):
    large, small = two
    tokens = prepared(f"{large} + {small}", tmp_path / "cache")
    passes = [weight / part["train"] for weight, part in zip(tokens.facts.weights, tokens.facts.parts, strict=True)]
    assert passes[0] == pytest.approx(passes[1])
    assert sum(tokens.facts.weights) == pytest.approx(1)


def test_other_weights_are_other_data(two, tmp_path):
    large, small = two
    prints = {prepared(f"{large}:{w} + {small}:1", tmp_path / "cache").facts.fingerprint for w in (1, 2)}
    assert len(prints) == 2


def test_training_tokens_are_those_that_can_be_read_before_any_comes_again(two, tmp_path):
    large, small = two
    tokens = prepared(f"{large}:0.1 + {small}:0.9", tmp_path / "cache")
    assert tokens.train_tokens == pytest.approx(len(tokens.parts("train")[1]) / 0.9, abs=1)
    slice = training_batches(tokens, LENGTH, 0, unique_tokens=tokens.train_tokens // 4)
    assert slice.sequences == pytest.approx(training_batches(tokens, LENGTH, 0).sequences / 4, rel=0.15)


def test_validation_has_the_weights_too_and_uniform_guessing_costs_the_same_by_both_ways(two, tmp_path):
    large, small = two
    tokens = prepared(f"{large}:0.25 + {small}:0.75", tmp_path / "cache")
    windows = validation_sample(tokens, LENGTH, 40 * LENGTH)
    large_windows = validation_sample(prepared(str(large), tmp_path / "cache"), LENGTH, 40 * LENGTH)
    assert windows.shape[0] == min(40, large_windows.shape[0] + 40)
    ends = len(tokens.parts("validation")[0])
    starts = [np.flatnonzero(tokens.split("validation")[: ends + 1][:-LENGTH] == row[0])[:1] for row in windows[:10]]
    assert all(len(start) for start in starts)
    exact = validation_sample(tokens, LENGTH, 10**9)
    guess = np.log2(tokens.facts.vocab_size) * exact[:, 1:].size / tokens.bytes_V[exact[:, 1:]].sum()
    assert guess == pytest.approx(tokens.facts.uniform_bpb, rel=0.03)


def test_a_source_that_is_too_small_is_named(two, tmp_path):
    large, _ = two
    lonely = write(tmp_path / "lonely.jsonl", ["just one"])
    with pytest.raises(DataError, match=r"lonely.jsonl has 1 documents"):
        prepared(f"{large}:0.5 + {lonely}:0.5", tmp_path / "cache")
    with pytest.raises(DataError, match="A weight is for one of several sources"):
        prepared(f"{large}:0.5", tmp_path / "cache")
