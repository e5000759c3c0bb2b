"""An encoder from the option to the folder that others load: search, final, report, receipts, generate."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from budgetlm.budget.clock import Meter
from budgetlm.cli import app
from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.tokens import prepare_tokens
from budgetlm.errors import ConfigError, StudyError
from budgetlm.final import final
from budgetlm.records import read_records
from budgetlm.report.write import report
from budgetlm.search.study import search
from budgetlm.studies import ledger_of, newest_final, resolve
from budgetlm.train.config import run_config_from
from budgetlm.train.loop import Checkpoints, Label, train
from budgetlm.watch import Watcher
from tests.conftest import small_study, tiny_model, tiny_run
from tests.model.test_encoder import masked_tokens  # noqa: F401  # a fixture

LABEL = Label(run="x", kind="rung", trial=0, rung=0, recipe={}, target_seconds=9.0)


def test_an_encoder_is_searched_trained_reported_and_fills_gaps_elsewhere(tiny_study, cache, clock, home):
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

    config = tiny_study(4.5, model={"context_length": 32, "objective": "mlm"})
    assert search(config, cache, clock, Watcher()).choice
    records = read_records(config.folder)
    rates = {r.recipe["mask_rate"] for r in records}
    assert len(rates) > 1  # searched, in its range
    assert all(0.1 <= rate <= 0.5 for rate in rates)
    models = [run_config_from(r.config).model for r in records]
    assert all(m.mask_token == 319 and m.mask_rate == r.recipe["mask_rate"] for m, r in zip(models, records, strict=True))
    with pytest.raises(StudyError, match=r"model.objective was 'mlm', is 'clm'"):
        search(
            dataclasses.replace(config, model=dataclasses.replace(config.model, objective="clm")), cache, clock, Watcher()
        )

    result = final("tiny", cache, clock, Watcher(), config=config)
    assert result.record.state == "done"
    assert result.record.bpb < max(r.bpb for r in records if r.bpb)
    assert result.record.artefact_bytes == (result.folder / "model" / "model.safetensors").stat().st_size
    assert "[MASK]" in result.samples[0]["prompt"]
    assert "[MASK]" not in result.samples[0]["continuation"]
    folder = result.folder / "model"
    theirs, told = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values())
    guesses = pipeline("fill-mask", model=theirs, tokenizer=AutoTokenizer.from_pretrained(folder))(
        "the tree sees[MASK] river"
    )
    assert len(guesses) == 5

    assert "Train this" in report("tiny").read_text()
    assert resolve("best") == "tiny"
    told = CliRunner().invoke(app, ["receipts", "--json"])
    assert json.loads(told.stdout)
    filled = CliRunner().invoke(app, ["generate", "the tree sees [MASK] river", "--study", "tiny"])
    assert filled.stdout.startswith("the tree sees")
    assert "[MASK]" not in filled.stdout
    refused = CliRunner().invoke(app, ["generate", "the tree", "--study", "tiny"])
    assert "put [MASK] into the prompt" in str(refused.exception)


def test_a_resumed_encoder_is_that_of_a_run_without_a_break(masked_tokens, clock, tmp_path):  # noqa: F811
    config = tiny_run(model=tiny_model(mask_token=319, mask_rate=0.25), steps=12)
    whole = train(config, LABEL, masked_tokens, Meter(clock)).record
    kept = Checkpoints(folder=tmp_path, every_steps=100)
    calls = iter(range(100))
    first = train(config, LABEL, masked_tokens, Meter(clock), checkpoints=kept, should_stop=lambda: next(calls) >= 5).record
    assert (first.state, first.steps) == ("interrupted", 5)
    assert train(config, LABEL, masked_tokens, Meter(clock), checkpoints=kept).record.bpb == whole.bpb


def test_an_encoder_learns_from_its_hidden_tokens(masked_tokens, clock):  # noqa: F811
    run = tiny_run(model=tiny_model(mask_token=319), steps=60)
    learnt = train(run, LABEL, masked_tokens, Meter(clock)).record.bpb
    assert learnt < 0.75 * masked_tokens.facts.uniform_bpb


def test_a_given_vocabulary_without_a_mask_gets_one(corpus_folder, cache, tokens, tmp_path):
    config = DataConfig(source=str(corpus_folder), tokenizer=str(tokens.tokenizer_file))
    given = prepare_tokens(config, prepare_corpus(config, cache), 0, tmp_path, masks=True)
    assert (given.facts.vocab_size, given.facts.mask) == (321, 320)
    again = DataConfig(source=str(corpus_folder), tokenizer=str(given.tokenizer_file))
    assert prepare_tokens(again, prepare_corpus(again, cache), 0, tmp_path, masks=True).facts.mask == 320


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"space": {"compression": "int8"}, "model": {"objective": "mlm", "context_length": 32}},
            "space.compression is for decoders",
        ),
        (
            {"space": {"kv_groups": 2}, "model": {"objective": "mlm", "context_length": 32}},
            "space.kv_groups is not for objective mlm",
        ),
        ({"space": {"mask_rate": 0.2}}, "space.mask_rate is not for objective clm"),
        ({"space": {"mixer": ["lstm"], "compression": "int8"}}, "not for mixer 'lstm'"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_trial(tiny_study, cache, clock, changes, message):
    with pytest.raises(ConfigError, match=message):
        search(tiny_study(6.0, **changes), cache, clock, Watcher())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"objective": "mml"}, "objective cannot be 'mml'"),
        ({"objective": "mlm", "document_attention": True}, "document_attention is for decoders"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tiny_study, model, message):
    with pytest.raises(ConfigError, match=message):
        tiny_study(6.0, model=model)


def test_run_asks_for_an_encoder_with_one_command_and_ends_with_a_report_and_a_model(
    corpus_folder, cache, home, fast_clock, monkeypatch
):
    from transformers import AutoModelForMaskedLM

    monkeypatch.setenv("BUDGETLM_CACHE", str(cache))
    monkeypatch.setattr("budgetlm.budget.clock.Clock", lambda: fast_clock)
    monkeypatch.setattr("budgetlm.search.ahead.load_ahead", lambda *_: None)
    monkeypatch.setattr("budgetlm.commands.search.begin_again", lambda _: None)  # it would replace the process that tests
    (home / "toy.toml").write_text(
        small_study(corpus_folder, width=16).replace("least_rung_seconds = 0.25", "least_rung_seconds = 0.13")
    )
    words = ["run", "--file", "toy.toml", "--hours", "0.0034", "--objective", "mlm"]
    said = CliRunner().invoke(app, words, catch_exceptions=False)
    assert said.exit_code == 0
    assert "report: reports/toy.html" in said.stdout
    assert "Train this" in (home / "reports" / "toy.html").read_text()
    records = read_records(home / "studies" / "toy")
    assert {record.kind for record in records} == {"rung", "final"}
    assert all(record.config["model"]["mask_token"] == 319 for record in records)
    spent = [ledger_of("toy").balance(account).charged_seconds for account in ledger_of("toy").accounts()]
    assert sum(spent) <= 0.0034 * 3600
    folder, final_record = newest_final("toy")
    assert not any(AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)[1].values())
    told = CliRunner().invoke(app, ["eval", "--data", str(corpus_folder), "--study", "toy", "--max-mb", "0.01", "--json"])
    assert json.loads(told.stdout)["bpb"] == pytest.approx(final_record.bpb, rel=0.15)
