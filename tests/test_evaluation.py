import json
import math

import pytest
from typer.testing import CliRunner

from budgetlm.cli import app
from budgetlm.data.config import DataConfig
from budgetlm.errors import DataError, StudyError
from budgetlm.evaluation import evaluate_text
from budgetlm.model.export import save_model
from budgetlm.model.transformer import build
from tests.conftest import sentences, tiny_model


@pytest.fixture
def model(tmp_path, tokens):
    folder = tmp_path / "model"
    folder.mkdir()
    network = build(tiny_model(vocab_size=tokens.facts.vocab_size), seed=1)
    save_model(folder, network, tokens.tokenizer_file, tokens.facts.end_of_text)
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


def test_a_folder_without_our_name_for_its_shape_is_read_through_transformers_to_the_same(model, texts, tmp_path):
    pytest.importorskip("transformers")
    ours = evaluate_text(model, DataConfig(source=str(texts)), tmp_path)
    config = json.loads((model / "config.json").read_text())
    del config["budgetlm_mlp_ratio"]
    (model / "config.json").write_text(json.dumps(config))
    theirs = evaluate_text(model, DataConfig(source=str(texts)), tmp_path)
    assert theirs.bpb == pytest.approx(ours.bpb, rel=1e-5)
    assert (theirs.documents, theirs.tokens) == (ours.documents, ours.tokens)


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
    assert set(json.loads(said.stdout)) == {"bpb", "low", "high", "documents", "bytes", "tokens"}
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
