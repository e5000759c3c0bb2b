import gzip
import json
import multiprocessing
import re

import pandas as pd
import pytest

from budgetlm.data.corpus import DataConfig, prepare_corpus
from budgetlm.errors import ConfigError, DataError
from tests.conftest import sentences


def write_jsonl(path, texts, column="text", opener=open):
    with opener(path, "wt") as file:
        file.writelines(json.dumps({column: text, "id": i}) + "\n" for i, text in enumerate(texts))
    return path


def prepared(path, cache, **settings):
    return prepare_corpus(DataConfig(source=str(path), **settings), cache)


def test_the_same_text_as_jsonl_parquet_and_gzip_gives_the_same_documents(tmp_path):
    texts = sentences(60)
    paths = [write_jsonl(tmp_path / "a.jsonl", texts), write_jsonl(tmp_path / "b.jsonl.gz", texts, opener=gzip.open)]
    pd.DataFrame({"text": texts}).to_parquet(tmp_path / "c.parquet")
    corpora = [prepared(p, tmp_path / "cache") for p in [*paths, tmp_path / "c.parquet"]]
    splits = [(list(c.documents("train")), list(c.documents("validation"))) for c in corpora]
    assert splits[0] == splits[1] == splits[2]
    assert sorted(splits[0][0] + splits[0][1]) == sorted(texts)


def test_a_document_keeps_its_split_when_the_corpus_grows(tmp_path):
    few = prepared(write_jsonl(tmp_path / "few.jsonl", sentences(100)), tmp_path / "cache")
    many = prepared(write_jsonl(tmp_path / "many.jsonl", sentences(100) + sentences(200, seed=1)), tmp_path / "cache")
    assert set(few.documents("validation")) <= set(many.documents("validation"))
    assert set(few.documents("train")) <= set(many.documents("train"))


def test_exact_duplicates_are_dropped_and_never_straddle_the_splits(tmp_path):
    texts = sentences(80)
    corpus = prepared(write_jsonl(tmp_path / "twice.jsonl", texts + texts + ["", "  \n"]), tmp_path / "cache")
    train, validation = list(corpus.documents("train")), list(corpus.documents("validation"))
    assert len(train) + len(validation) == 80
    assert not set(train) & set(validation)
    assert (corpus.facts.duplicates, corpus.facts.empty) == (80, 2)
    assert corpus.facts.bytes["train"] == sum(len(t.encode()) for t in train)


def test_invalid_utf8_is_replaced_counted_and_reported(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(sentences(20)):
        (folder / f"{number}.txt").write_text(text)
    (folder / "bad.txt").write_bytes(b"good \xff\xfe bad\n")
    (folder / "legit.txt").write_text("a replacement character that was meant: \ufffd\n")
    corpus = prepared(folder, tmp_path / "cache")
    assert corpus.facts.invalid == 1
    assert "1 documents had invalid UTF-8" in corpus.facts.summary()
    assert any("good \ufffd" in text for text in [*corpus.documents("train"), *corpus.documents("validation")])


def test_a_few_documents_still_leave_one_to_validate(tmp_path):
    corpus = prepared(write_jsonl(tmp_path / "few.jsonl", ["first document", "second document"]), tmp_path / "cache")
    assert corpus.facts.documents == {"train": 1, "validation": 1}


def test_a_long_text_file_is_cut_at_line_ends_without_losing_a_byte(tmp_path):
    text = "".join(f"line {i} of a long book, ünïcode included\n" for i in range(40_000))
    (tmp_path / "book.txt").write_text(text)
    corpus = prepared(tmp_path / "book.txt", tmp_path / "cache")
    documents = [*corpus.documents("train"), *corpus.documents("validation")]
    assert corpus.facts.documents["validation"] >= 1
    assert sum(map(len, documents)) == len(text)
    assert all(d.startswith("line") and d.endswith("\n") for d in documents)
    assert corpus.facts.invalid == 0


def test_reading_stops_at_max_bytes_and_says_so(tmp_path):
    corpus = prepared(write_jsonl(tmp_path / "a.jsonl", sentences(100)), tmp_path / "cache", max_bytes=10_000)
    assert corpus.facts.cut
    assert 10_000 <= sum(corpus.facts.bytes.values()) < 12_000


def test_preparing_twice_reads_once_and_changed_text_is_read_again(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", sentences(30))
    read = []
    first = prepare_corpus(DataConfig(source=str(path)), tmp_path / "cache", read.append)
    amount = sum(read)
    again = prepare_corpus(DataConfig(source=str(path)), tmp_path / "cache", read.append)
    assert first == again
    assert sum(read) == amount > 0
    write_jsonl(path, sentences(31))
    assert prepare_corpus(DataConfig(source=str(path)), tmp_path / "cache").facts.fingerprint != first.facts.fingerprint


def _prepare_in_a_process(path, cache, results):
    results.put(prepare_corpus(DataConfig(source=str(path)), cache).facts.documents)


def test_two_processes_preparing_at_once_agree(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", sentences(300))
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    processes = [spawn.Process(target=_prepare_in_a_process, args=(path, tmp_path / "cache", results)) for _ in range(2)]
    [p.start() for p in processes]
    answers = [results.get(timeout=120) for _ in processes]
    [p.join() for p in processes]
    assert answers[0] == answers[1]
    assert len(list((tmp_path / "cache" / "corpora").glob("*/corpus.json"))) == 1


def test_the_embedded_corpus_is_the_standard_library_without_its_tests(tmp_path):
    corpus = prepare_corpus(DataConfig(source="stdlib", max_bytes=2_000_000), tmp_path)
    texts = list(corpus.documents("train"))
    assert any("import" in text for text in texts)
    assert corpus.facts.bytes["train"] > 1_000_000
    assert not any("class RegrTest" in text for text in texts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "missing.txt", "no file or folder"),
        (lambda p: p, "no file that can be read"),
        (lambda p: write_jsonl(p / "a.jsonl", ["x", "y"], column="body"), "no column 'text'. Its columns are: body, id"),
        (lambda p: write_jsonl(p / "a.jsonl", []), "could not read|documents with text"),
        (lambda p: write_jsonl(p / "a.jsonl", ["same", "same"]), "1 documents with text .* 1 duplicates"),
        (lambda p: write_jsonl(p / "a.jsonl", [1, 2]), "holds int, not text"),
        (lambda p: (p / "a.parquet", (p / "a.parquet").write_text("not parquet"))[0], "could not read"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused_with_the_reason(tmp_path, make, message):
    source = make(tmp_path)
    with pytest.raises(DataError, match=message):
        prepare_corpus(DataConfig(source=str(source)), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("corpora/*/corpus.json"))


def test_an_unreachable_hub_data_set_is_refused_with_what_to_check(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=re.compile("could not read hf:nobody/nothing.*your connection", re.DOTALL)):
        prepare_corpus(DataConfig(source="hf:nobody/nothing"), tmp_path)
    with pytest.raises(DataError, match="does not name a Hub data set"):
        prepare_corpus(DataConfig(source="hf:../../etc"), tmp_path)


@pytest.mark.parametrize("settings", [{"validation_fraction": 0.0}, {"vocab_size": 100}, {"max_bytes": -1}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        DataConfig(**settings)
