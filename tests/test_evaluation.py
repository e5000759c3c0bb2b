import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from budgetlm.cli import app
from budgetlm.data.config import DataConfig
from budgetlm.data.masks import EVALUATION_RATE, EVALUATION_SEED, hide
from budgetlm.errors import DataError, StudyError
from budgetlm.evaluation import evaluate_text
from budgetlm.model.export import load_model, save_model
from budgetlm.model.transformer import build
from budgetlm.train.evaluate import evaluate
from tests.conftest import sentences, tiny_model
from tests.model.test_encoder import masked_tokens  # noqa: F401  # a fixture
from tests.model.test_transformer import trained_looking


@pytest.fixture
def model(tmp_path, tokens):
    folder = tmp_path / "model"
    folder.mkdir()
    network = build(tiny_model(vocab_size=tokens.facts.vocab_size), seed=1)
    save_model(folder, network, tokens.tokenizer_file, tokens.facts.end_of_text)
    return folder


@pytest.fixture
def encoder(tmp_path, masked_tokens):  # noqa: F811
    folder = tmp_path / "encoder"
    folder.mkdir()
    network = trained_looking(tiny_model(mask_token=masked_tokens.facts.mask))
    save_model(folder, network, masked_tokens.tokenizer_file, masked_tokens.facts.end_of_text)
    return folder


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*sentences(6, seed=9), " ", "short"]))
    return path


def test_a_model_that_knows_nothing_takes_about_as_many_bits_as_guessing_would(model, texts, tmp_path, tokens):
    found = evaluate_text(model, DataConfig(source=str(texts)), tmp_path)
    assert found.documents == 7  # the empty one is none
    assert found.bytes == sum(len(text.encode()) for text in [*sentences(6, seed=9), "short"])
    assert found.bpb == pytest.approx(found.tokens * math.log2(tokens.facts.vocab_size) / found.bytes, rel=0.1)
    assert found.low < found.bpb < found.high


@pytest.mark.parametrize("kind", ["model", "encoder"])
def test_a_folder_without_our_name_for_its_shape_is_read_through_transformers_to_the_same(request, texts, tmp_path, kind):
    pytest.importorskip("transformers")
    model = request.getfixturevalue(kind)
    ours = evaluate_text(model, DataConfig(source=str(texts)), tmp_path)
    config = json.loads((model / "config.json").read_text())
    del config["budgetlm_mlp_ratio"]
    (model / "config.json").write_text(json.dumps(config))
    theirs = evaluate_text(model, DataConfig(source=str(texts)), tmp_path)
    assert theirs.bpb == pytest.approx(ours.bpb, rel=1e-5)
    assert (theirs.documents, theirs.tokens, theirs.hidden) == (ours.documents, ours.tokens, ours.hidden)


def test_an_encoder_is_measured_as_its_training_measures_it(encoder, masked_tokens, tmp_path):  # noqa: F811
    """One text as long as the validation sample's windows together, so that the same tokens are hidden."""
    end, context = masked_tokens.facts.end_of_text, 32
    network, tokenizer, _ = load_model(encoder)
    text = "".join(sentences(20, seed=9))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    whole = (len(ids) + 2) // context * context - 2  # so that windows are all full
    text = tokenizer.decode(ids[:whole])
    (tmp_path / "one.txt").write_text(text)
    found = evaluate_text(encoder, DataConfig(source=str(tmp_path / "one.txt")), tmp_path)
    rows = np.array([end, *ids[:whole], end]).reshape(-1, context)
    windows = hide(np.pad(rows, ((0, 0), (0, 1))), EVALUATION_RATE, EVALUATION_SEED)
    windows[:, -1] = end
    wanted = evaluate(network, windows, masked_tokens.bytes_V, micro_batch=8)
    assert found.bpb == pytest.approx(wanted, rel=1e-6)
    assert found.hidden == pytest.approx(EVALUATION_RATE * found.tokens, rel=0.1)
    assert (found.low, found.high) == (None, None)
    assert "of the pseudo-log-likelihood, by" in found.summary("it")


def test_an_encoders_interval_is_over_documents_and_a_mark_in_a_text_is_text(encoder, texts, tmp_path):
    found = evaluate_text(encoder, DataConfig(source=str(texts)), tmp_path)
    assert found.low < found.bpb < found.high
    assert found.documents == 7
    marked = "the [MASK] sees the <|endoftext|> river " * 4
    (tmp_path / "mark.txt").write_text(marked)
    said = evaluate_text(encoder, DataConfig(source=str(tmp_path / "mark.txt")), tmp_path)
    assert said.tokens > len(load_model(encoder)[1].encode(marked, add_special_tokens=False).ids)
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(DataError, match="was hidden, it is so short"):
        for number in range(20):
            (tmp_path / "short.txt").write_text(chr(97 + number))
            evaluate_text(encoder, DataConfig(source=str(tmp_path / "short.txt")), tmp_path)


def test_a_foreign_folder_may_neither_run_code_nor_be_a_pickle(model, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config = json.loads((model / "config.json").read_text())
    del config["budgetlm_mlp_ratio"]
    (model / "config.json").write_text(json.dumps(config))
    torch.save({}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(StudyError, match="does not hold a causal language model"):
        evaluate_text(model, DataConfig(source="stdlib"), tmp_path)


def test_it_stops_at_the_end_of_a_document_and_of_one_there_is_no_interval(model, texts, tmp_path):
    first = sentences(1, seed=9)[0]
    found = evaluate_text(model, DataConfig(source=str(texts)), tmp_path, most_bytes=10)
    assert (found.documents, found.bytes, found.low) == (1, len(first.encode()), None)


def test_no_text_and_no_model_are_lines(model, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match="nothing to evaluate on"):
        evaluate_text(model, DataConfig(source=str(tmp_path / "empty.txt")), tmp_path)
    with pytest.raises(StudyError, match="does not hold a model"):
        evaluate_text(tmp_path, DataConfig(source="stdlib"), tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no such thing"}')
    with pytest.raises(StudyError, match="does not hold a causal language model"):
        evaluate_text(tmp_path, DataConfig(source="stdlib"), tmp_path)


def test_the_command_says_it_in_json_too(model, texts, monkeypatch, tmp_path):
    monkeypatch.setenv("BUDGETLM_CACHE", str(tmp_path / "cache"))
    said = CliRunner().invoke(app, ["eval", "--data", str(texts), "--model", str(model), "--json"])
    assert set(json.loads(said.stdout)) == {"bpb", "low", "high", "documents", "bytes", "tokens", "hidden"}
    assert "bits per byte" in CliRunner().invoke(app, ["eval", "--data", str(texts), "--model", str(model)]).stdout


def test_a_prompt_may_come_from_stdin(model):
    prompt = "the tree sees\nthe river"
    options = ["--model", str(model), "--tokens", "5", "--top-p", "0.5"]
    piped = CliRunner().invoke(app, ["generate", "-", *options], input=prompt)
    assert piped.stdout.startswith(prompt)
    assert piped.stdout == CliRunner().invoke(app, ["generate", prompt, *options]).stdout
    assert CliRunner().invoke(app, ["generate", "x", "--model", str(model), "--top-p", "1.5"]).exit_code == 2


def test_the_column_and_a_template_of_columns_say_which_text(model, tmp_path):
    rows = [{"title": "a tree", "body": text} for text in sentences(3, seed=9)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["eval", "--data", str(path), "--model", str(model), "--json"]
    column = json.loads(CliRunner().invoke(app, [*options, "--column", "body"]).stdout)
    assert column["bytes"] == sum(len(row["body"]) for row in rows)
    both = json.loads(CliRunner().invoke(app, [*options, "--text", "{title}: {body}"]).stdout)
    assert both["bytes"] == column["bytes"] + 3 * len("a tree: ")
    assert "no column 'text'" in str(CliRunner().invoke(app, options).exception)
