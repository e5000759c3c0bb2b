import json
import random

import pytest
import torch
from typer.testing import CliRunner

from budgetlm.budget.clock import Clock, ManualClock
from budgetlm.cli import app
from budgetlm.data.config import DataConfig
from budgetlm.errors import ConfigError, DataError, StudyError
from budgetlm.finetune import RESULT, Settings, finetune, wilson
from budgetlm.model.export import load_model, save_model
from budgetlm.model.transformer import build
from budgetlm.studies import ledger_of
from tests.conftest import tiny_model
from tests.data.test_hub import EXAMPLES, LABELLED, labelled_hub

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
WORDS = ["tree", "river", "stone", "cloud", "engine", "paper", "letter", "garden"]
QUICK = {"epochs": 6.0, "rate": 1e-2, "device": "cpu"}


@pytest.fixture
def models(tmp_path, tokens):
    """Writes an untrained decoder or encoder as a final does."""

    def save(**changes):
        folder = tmp_path / ("encoder" if changes else "decoder")
        folder.mkdir()
        network = build(tiny_model(vocab_size=tokens.facts.vocab_size, depth=1, **changes), seed=1)
        save_model(folder, network, tokens.tokenizer_file, tokens.facts.end_of_text)
        return folder

    return save


def table(path, task, count=200):
    """Labels that follow from the text: which of two words begins it, whether a word is one of the first four, what comes next."""
    chance, rows = random.Random(0), []
    for number in range(count):
        words = [chance.choice(WORDS) for _ in range(5)]
        if task == "classify":
            rows.append({"text": " ".join(["tree", *words] if number % 2 else ["stone", *words]), "label": number % 2})
        elif task == "tag":
            rows.append({"text": words, "label": ["low" if WORDS.index(word) < 4 else "high" for word in words]})
        else:
            rows.append({"text": f"{number} the {words[0]}", "label": " sees the river"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def taught(model, out, source, clock=None, **changes):
    settings = Settings(**{**QUICK, **changes})
    return finetune(model, out, DataConfig(source=source), settings, out.parent, clock or Clock())


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_label_that_follows_from_the_text_is_learnt_and_the_folder_is_what_was_measured(models, tmp_path, kind):
    model = models(**({"mask_token": 319} if kind == "encoder" else {}))
    found = taught(model, tmp_path / "out", table(tmp_path / "rows.jsonl", "classify"))
    assert found.score > 0.9 > 0.65 > found.chance
    assert found.low < found.score <= found.high
    assert found.rows + found.held_out == 200
    assert json.loads((tmp_path / "out" / RESULT).read_text()) == json.loads(json.dumps(found.as_dict()))
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]
    say = transformers.pipeline("text-classification", model=str(tmp_path / "out"), device="cpu")
    assert [each["label"] for each in say(["tree river river paper", "stone river river paper"])] == ["1", "0"]


def test_words_are_tagged_each_at_its_own_place(models, tmp_path):
    found = taught(models(mask_token=319), tmp_path / "out", table(tmp_path / "rows.jsonl", "tag"), task="tag")
    assert found.measure == "accuracy of words"
    assert found.score > 0.9 > 0.7 > found.chance
    say = transformers.pipeline("token-classification", model=str(tmp_path / "out"), device="cpu")
    said = {word["word"].strip("Ġ"): word["entity"] for word in say("tree garden")}
    assert (said.get("tree"), said.get("garden")) == ("low", "high") or len(said) > 2  # words of several tokens


def test_a_text_is_gone_on_with_and_ours_reads_the_folder_again(models, tmp_path):
    source = table(tmp_path / "rows.jsonl", "continue", 120)
    found = taught(models(), tmp_path / "out", source, task="continue")
    begun = taught(tmp_path / "decoder", tmp_path / "begun", source, task="continue", rate=1e-9)
    assert found.score < 0.5 < begun.score
    network, tokenizer, _ = load_model(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([tokenizer.encode("the tree sees").ids])
    with torch.no_grad():
        assert (theirs(ids).logits - network(ids)).abs().max() < 1e-5


def test_seeds_differ_are_repeatable_and_fresh_weights_are_others(models, tmp_path):
    model, source = models(), table(tmp_path / "rows.jsonl", "classify", 100)
    quick = {"epochs": 1.0, "rate": 1e-3}
    two = taught(model, tmp_path / "a", source, seeds=2, **quick)
    one = taught(model, tmp_path / "b", source, **quick)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]  # the first seed's model, whatever comes after it
    assert one.got[0] == two.got[0]
    assert len(two.by_seed) == 2
    taught(model, tmp_path / "c", source, from_scratch=True, **quick)
    assert (tmp_path / "c" / "model.safetensors").read_bytes() != weights[0]


def test_it_ends_when_its_time_is_over_and_the_rows_of_another_file_measure_it(models, tmp_path, monkeypatch):
    clock = ManualClock()
    step = torch.optim.AdamW.step

    def timed(self, *arguments, **options):
        clock.move(1.0)
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", timed)
    source, other = (table(tmp_path / f"{name}.jsonl", "classify", 40) for name in ("rows", "other"))
    settings = Settings(**QUICK | {"epochs": 100.0, "seconds": 10.0, "batch": 4})
    found = finetune(models(), tmp_path / "out", DataConfig(source=source), settings, tmp_path, clock, validation=other)
    assert found.steps == 8  # four fifths of the time
    assert found.seconds == pytest.approx(8)
    assert (found.rows, found.held_out, found.repeated) == (40, 40, 40)
    assert "40 of the held-out rows have a text that was trained on" in found.summary(tmp_path)


def test_what_cannot_be_is_a_line_and_leaves_nothing(models, tmp_path, monkeypatch):
    source, model = table(tmp_path / "rows.jsonl", "classify"), models(mask_token=319)
    with pytest.raises(ConfigError, match="is there already"):
        taught(model, model, source)
    with pytest.raises(StudyError, match="does not hold a model"):
        taught(tmp_path, tmp_path / "out", source)
    with pytest.raises(StudyError, match="does not load .* as AutoModelForCausalLM, which `--task continue` takes"):
        taught(model, tmp_path / "out", source, task="continue")
    with pytest.raises(DataError, match="no column 'stars'"):
        taught(model, tmp_path / "out", source, label="stars")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "budgetlm"}))
    with pytest.raises(StudyError, match="whose mixer is no attention"):
        taught(model, tmp_path / "out", source)
    del config["budgetlm_mlp_ratio"]
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "own.Config"}, "model_type": "own"}))
    with pytest.raises(StudyError, match="transformers does not load"):
        taught(model, tmp_path / "out", source)
    (model / "config.json").write_text(json.dumps(config))
    torch.save({}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(StudyError, match="transformers does not load"):
        taught(model, tmp_path / "out", source)
    monkeypatch.setattr("budgetlm.finetune.find_spec", lambda name: None if name == "accelerate" else name)
    with pytest.raises(ConfigError, match=r"pip install 'budgetlm\[finetune\]'"):
        taught(model, tmp_path / "out", source)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_studys_final_is_taught_at_the_studys_expense(searched, models, tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGETLM_CACHE", str(tmp_path / "cache"))
    model = models()
    monkeypatch.setattr("budgetlm.studies.newest_final", lambda name: (model, None))
    source = table(tmp_path / "rows.jsonl", "classify", 100)
    done = CliRunner().invoke(
        app, ["finetune", "out", "--data", source, "--epochs", "0.5", "--hours", "0.1", "--device", "cpu", "--json"]
    )
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert found["account"] == "finetune-out"
    balance = ledger_of("tiny").balance("finetune-out")
    assert balance.budget_seconds == pytest.approx(360)
    assert balance.charged_seconds >= found["seconds"] > 0
    assert balance.by_purpose["train"] > 0
    assert (balance.leased_seconds, balance.stopped_because) == (0, "done")
    assert "finetune-out" in CliRunner().invoke(app, ["budget", "--study", "tiny"]).stdout
    told = json.loads(CliRunner().invoke(app, ["budget", "--study", "tiny", "--json"]).stdout)
    assert list(told["finetuned"]) == ["finetune-out"]
    assert "finetune-out" not in told["finals"]
    refused = CliRunner().invoke(app, ["finetune", "again", "--data", source, "--label", "stars"])
    assert isinstance(refused.exception, DataError)
    assert "finetune-again" not in ledger_of("tiny").accounts()


def test_the_interval_of_a_share_is_wilsons():
    z = 1.2815515655446004
    for share, count in ((0.5, 10), (0.9, 100), (1.0, 20), (0.0, 20)):
        low, high = wilson(share, count)
        for end in (low, high):  # it is where the share is z standard errors away
            assert (share - end) ** 2 == pytest.approx(z * z * end * (1 - end) / count, abs=1e-12)
        assert 0 <= low <= share <= high <= 1


def test_a_foreign_folder_is_taught_too(tmp_path, tokens):
    config = transformers.BertConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokens.tokenizer_file)).save_pretrained(tmp_path / "bert")
    found = taught(tmp_path / "bert", tmp_path / "out", table(tmp_path / "rows.jsonl", "classify"))
    assert found.score > 0.9


def test_a_data_set_of_the_hub_is_learnt_and_when_it_was_read_once_without_a_connection(models, tmp_path):
    with labelled_hub() as hub:
        done = hub.python(EXAMPLES, tmp_path)
        assert done.returncode == 0, done.stderr
    found = taught(models(), tmp_path / "out", "hf:someone/texts")
    assert found.score > 0.9 > 0.65 > found.chance
    assert found.rows + found.held_out == len(LABELLED)
