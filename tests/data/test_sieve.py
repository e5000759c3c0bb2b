import importlib.util
import json
import random
import unicodedata

import numpy as np
import pytest

from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.overlap import overlap
from budgetlm.data.passages import passages
from budgetlm.data.sieve import Sieve, cleaned
from budgetlm.data.sources import check_sources
from budgetlm.errors import ConfigError, DataError
from tests.conftest import sentences


def prose(count, words=150, seed=0):
    """Documents that have nothing in common but their words."""
    chance = random.Random(seed)
    vocabulary = ["".join(chance.choices("abcdefghijklmnop", k=chance.randint(3, 9))) for _ in range(2000)]
    return [" ".join(chance.choices(vocabulary, k=words)) + "\n" for _ in range(count)]


def altered(text, share, seed=0):
    """The text with a share of its words replaced."""
    chance, words = random.Random(seed), text.split(" ")
    return " ".join("changed" if chance.random() < share else word for word in words)


def prepared(tmp_path, texts, **settings):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return prepare_corpus(DataConfig(source=str(path), **settings), tmp_path / "cache")


def documents(corpus):
    return [*corpus.documents("train"), *corpus.documents("validation")]


@pytest.mark.parametrize(
    "text", ["e\u0301t\u00e9", "a\r\nb\rc\n", "a\0b\x0c\x1b[31m", "\ufeffbom", "\x85\u2028", "e\0\u0301", "\tplain\n"]
)
def test_cleaning_twice_is_cleaning_once_and_leaves_nothing_to_clean(text):
    once = cleaned(text)
    assert cleaned(once) == once == unicodedata.normalize("NFC", once)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\t\n" for c in once)


def test_texts_that_differ_only_in_what_is_cleaned_are_duplicates_then(tmp_path):
    texts = [*prose(30), "caf\u00e9 au lait\nencore", "cafe\u0301 au lait\r\nencore"]
    assert prepared(tmp_path, texts).facts.duplicates == 0
    facts = prepared(tmp_path, texts, clean=True).facts
    assert (facts.duplicates, facts.changed) == (1, 1)
    assert "1 duplicates dropped, 1 cleaned" in facts.summary()


def test_short_documents_are_dropped_and_counted(tmp_path):
    corpus = prepared(tmp_path, [*prose(30), "  eight ch  ", "ten chars."], least_chars=10)
    assert corpus.facts.dropped == {"too short": 1}
    assert "ten chars." in documents(corpus)


def test_near_duplicates_are_dropped_and_others_stay(tmp_path):
    texts = prose(60)
    near = [altered(text, 0.01).upper().replace(" ", "  ", 20) for text in texts[:20]]
    far = [altered(text, 0.4) for text in texts[20:40]]
    corpus = prepared(tmp_path, texts + near + far, near_duplicates=0.7)
    assert corpus.facts.near_duplicates == 20
    assert sorted(documents(corpus)) == sorted(texts + far)
    assert prepared(tmp_path, texts + near + far).facts.near_duplicates == 0


def test_what_is_kept_is_kept_again_in_another_order(tmp_path):
    """The rest of a streamed source relies on it."""
    texts = [altered(text, share, seed) for seed, share in enumerate((0, 0.01, 0.02)) for text in prose(30)]
    config = DataConfig(near_duplicates=0.7, clean=True)
    kept = [text for sieve in [Sieve(config)] for text in texts if sieve.sort(text)[0]]
    assert 30 <= len(kept) < 90
    again = Sieve(config)
    assert all(again.sort(text)[0] for text in reversed(kept))


def test_near_duplicates_without_their_package_are_refused_before_anything_is_read(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasketch" else find(name))
    with pytest.raises(ConfigError, match=r"pip install 'budgetlm\[near\]'"):
        check_sources(DataConfig(near_duplicates=0.8))
    check_sources(DataConfig())


def test_passages_are_those_of_words_whatever_the_white_space_and_case():
    text = b"the quick brown fox jumps over the lazy dog and does it again"
    assert np.array_equal(passages(text, 16), passages(text.upper().replace(b" ", b"\n\t "), 16))
    assert len(passages(text, 16)) == sum(1 for i in range(len(text) - 15) if i == 0 or text[i - 1 : i] == b" ")
    assert set(passages(b"before it all, " + text, 16)) >= set(passages(text, 16))
    assert len(passages("文字文書処理機械学習言語模型".encode() * 3, 16)) > 10
    assert len(passages(b"short", 16)) == len(passages(b"", 16)) == 1


def test_overlap_is_the_share_of_a_documents_passages_that_training_has():
    train, fresh = prose(50), prose(1, seed=1)[0]
    half = fresh[: len(fresh) // 2] + train[3][: len(fresh) // 2]
    validation = [train[5], fresh, half, altered(train[7], 0.02)]
    shares = overlap([v.encode() for v in validation], [t.encode() for t in train])
    assert shares[0] == 1
    assert shares[1] == 0
    assert shares[2] == pytest.approx(0.45, abs=0.1)
    assert 0.5 < shares[3] < 1


def test_validation_that_was_copied_into_training_is_counted_said_and_dropped(tmp_path):
    texts = prose(200)
    plain = prepared(tmp_path, texts).facts
    assert plain.overlapping == 0
    copies = [text + "with an end of its own\n" for text in texts[:100]]
    facts = prepared(tmp_path, texts + copies, drop_overlap=False).facts
    assert facts.overlapping > 2
    assert facts.overlap_share == facts.overlapping / facts.documents["validation"]
    dropped = prepared(tmp_path, texts + copies)
    assert dropped.facts.documents["validation"] == facts.documents["validation"] - facts.overlapping
    assert dropped.facts.dropped == {"in training, too": facts.overlapping}
    assert dropped.facts.overlap_share == facts.overlap_share
    assert len(list(dropped.documents("validation"))) == dropped.facts.documents["validation"]


def test_nothing_left_to_validate_or_to_keep_is_refused(tmp_path):
    with pytest.raises(DataError, match="nothing would be left to validate"):
        prepared(tmp_path, [text for text in sentences(1) for text in (text, text + " ", text + "  ")])
    with pytest.raises(DataError, match="has 0 documents .* 30 too short"):
        prepared(tmp_path, prose(30), least_chars=10**6)
    assert not list((tmp_path / "cache").glob("corpora/*/corpus.json"))


@pytest.mark.parametrize("settings", [{"near_duplicates": 0.1}, {"near_duplicates": 1.5}, {"least_chars": -1}])
def test_impossible_settings_of_cleaning_are_refused(settings):
    with pytest.raises(ConfigError):
        DataConfig(**settings)
