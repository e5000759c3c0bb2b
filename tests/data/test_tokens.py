import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from budgetlm.data.corpus import DataConfig, prepare_corpus
from budgetlm.data.tokens import END_OF_TEXT, prepare_tokens
from budgetlm.errors import DataError


@pytest.fixture
def corpus(corpus_folder, cache):
    return prepare_corpus(DataConfig(source=str(corpus_folder)), cache)


def test_tokens_decode_to_the_documents_and_bytes_are_exact(tokens, corpus):
    tokenizer = Tokenizer.from_file(str(tokens.tokenizer_file))
    for split in ("train", "validation"):
        ids = tokens.split(split)
        documents = np.split(ids, np.flatnonzero(ids == tokens.facts.end_of_text) + 1)[:-1]
        assert [tokenizer.decode(d[:-1].tolist()) for d in documents] == list(corpus.documents(split))
        assert tokens.bytes_V[ids].sum() == corpus.facts.bytes[split]


def test_the_end_of_text_inside_a_document_is_text_like_any_other(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"document {number} writes {END_OF_TEXT} and goes on, ünïcode too\n")
    config = DataConfig(source=str(folder))
    corpus = prepare_corpus(config, tmp_path)
    tokens = prepare_tokens(config, corpus, 300, tmp_path)
    train = tokens.split("train")
    assert (train == tokens.facts.end_of_text).sum() == corpus.facts.documents["train"]
    assert tokens.bytes_V[train].sum() == corpus.facts.bytes["train"]


def test_merges_are_learnt_from_the_training_split_alone(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number}.txt").write_text(f"plain text number {number} " * 5)
    config = DataConfig(source=str(folder))
    corpus = prepare_corpus(config, tmp_path)
    # Whatever validates gets a word that nothing else has, many times over.
    validation = corpus.folder / "validation.txt"
    text = validation.read_text().replace("plain", "zzzzz")
    validation.write_text(text)
    tokens = prepare_tokens(config, corpus, 400, tmp_path)
    assert not any("zz" in word for word in Tokenizer.from_file(str(tokens.tokenizer_file)).get_vocab())


def test_a_given_byte_level_tokenizer_is_used_as_it_is(tokens, corpus, tmp_path):
    config = DataConfig(source="unused", tokenizer=str(tokens.tokenizer_file))
    again = prepare_tokens(config, corpus, 0, tmp_path)
    assert np.array_equal(again.split("train"), tokens.split("train"))


def save(tokenizer, path):
    tokenizer.save(str(path))
    return str(path)


def test_tokenizers_that_would_make_bits_per_byte_wrong_are_refused(corpus, tokens, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    lower = Tokenizer.from_file(str(tokens.tokenizer_file))
    lower.normalizer = normalizers.Replace("counts", "")
    nameless = Tokenizer(models.BPE({c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    nameless.decoder = decoders.ByteLevel()
    for path, message in [
        (str(tmp_path / "broken.json"), "could not read the tokenizer"),
        (save(words, tmp_path / "words.json"), "not byte-level"),
        (save(lower, tmp_path / "lower.json"), "changes the text"),
        (save(nameless, tmp_path / "nameless.json"), "none of the end-of-text tokens"),
    ]:
        with pytest.raises(DataError, match=message):
            prepare_tokens(DataConfig(tokenizer=path), corpus, 0, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("tokens/*/tokens.json"))
