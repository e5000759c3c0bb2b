import dataclasses
import json
import shutil

import pytest
import torch

from budgetlm.budget.clock import Meter
from budgetlm.budget.ledger import open_ledger
from budgetlm.config import study_config
from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.tokens import prepare_tokens
from budgetlm.errors import ConfigError
from budgetlm.final import OTHER_START, final
from budgetlm.inherit import INIT, inherited
from budgetlm.model.export import load_model, save_model
from budgetlm.model.size import body_parameters
from budgetlm.recipe.oracle import model_of
from budgetlm.recipe.recipe import recipe_from
from budgetlm.recipe.scale import reshaped
from budgetlm.recipe.space import MOST_DEFAULT_LR
from budgetlm.records import read_records
from budgetlm.report.facts import collect
from budgetlm.report.write import report
from budgetlm.search import study
from budgetlm.search.plan import load_plan
from budgetlm.train.config import Label
from budgetlm.train.loop import train
from budgetlm.watch import Watcher
from tests.conftest import study_of, tiny_model, tiny_run

LABEL = Label(run="r", kind="rung", trial=0, rung=0, recipe={}, target_seconds=1.0)


@pytest.fixture
def model(tmp_path, tokens):
    """A trained model's folder."""
    folder = tmp_path / "trained"
    folder.mkdir()
    shape = tiny_model(vocab_size=tokens.facts.vocab_size, norm_embedding=False, tie_embeddings=True)
    trained = train(tiny_run(model=shape, steps=40), LABEL, tokens, Meter(study.Clock()))
    save_model(folder, trained.network, tokens.tokenizer_file, tokens.facts.end_of_text)
    return folder


def begun_from(folder, corpus_folder, **changes):
    config = study_of(corpus_folder, 6.0, space={"batch_tokens": 128}, **changes)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, init=str(folder)))


def test_a_run_begins_where_the_weights_are(model, tokens):
    shape = load_model(model)[0].config
    once = tiny_run(model=shape, steps=1)
    tiny = dataclasses.replace(once.optimizer, peak_lr=1e-9)
    given = train(dataclasses.replace(once, optimizer=tiny, init=str(model)), LABEL, tokens, Meter(study.Clock()))
    fresh = train(dataclasses.replace(once, optimizer=tiny), LABEL, tokens, Meter(study.Clock()))
    assert given.record.bpb < fresh.record.bpb - 0.5
    torch.testing.assert_close(given.network.state_dict(), load_model(model)[0].state_dict(), atol=1e-6, rtol=1e-4)


def test_weights_of_another_shape_are_refused(model, tokens):
    with pytest.raises(ConfigError, match="do not fit"):
        train(tiny_run(model=tiny_model(width=48), steps=1, init=str(model)), LABEL, tokens, Meter(study.Clock()))


def test_shape_vocabulary_and_proxies_follow_from_the_weights(model, corpus_folder, home):
    config = inherited(begun_from(model, corpus_folder))
    assert config.space["depth"] == 2
    assert config.space["width"] == 32
    assert config.space["norm_embedding"] is False
    assert config.search.proxy == "truncate"
    assert config.data.tokenizer == str(model / "tokenizer.json")
    assert inherited(config) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"width": 64}}, "space.width is 64"),
        ({"model": {"context_length": 64}}, "made for 32"),
        ({"model": {"objective": "mlm"}}, "is a decoder"),
        ({"data": {"source": "stdlib", "tokenizer": "other.json"}}, "their own"),
    ],
)
def test_what_contradicts_the_weights_is_refused(model, changes, message):
    table = {"model": {}, **changes}
    table["model"] = {"init": str(model), **table["model"]}
    with pytest.raises(ConfigError, match=message):
        inherited(study_config(table))


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no weights"):
        inherited(study_config({"model": {"init": str(tmp_path)}}))
    shape = tmp_path / "foreign"
    shape.mkdir()
    (shape / "model.safetensors").write_bytes(b"")
    (shape / "config.json").write_text('{"model_type": "gpt2"}')
    (shape / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="could not read the tokenizer"):
        inherited(study_config({"model": {"init": str(shape)}}))


def test_a_search_and_its_final_begin_from_a_copy_of_the_weights(model, corpus_folder, cache, home, clock):
    config = inherited(begun_from(model, corpus_folder))
    study.search(config, cache, clock, Watcher())
    records = [r for r in read_records(config.folder) if r.state == "done"]
    assert {r.config["init"] for r in records} == {str(config.folder / INIT)}
    assert {(r.config["model"]["depth"], r.config["model"]["width"]) for r in records} == {(2, 32)}
    shutil.rmtree(model)
    result = final(config.name, cache, clock, Watcher(), config=config, hours=2 * 3.2 / 3600)
    assert result.record.config["model"]["width"] == 32  # longer, and no larger


def test_the_default_rate_is_that_of_a_fresh_start_of_the_same_shape(model, corpus_folder, cache, home, fast_clock):
    config = inherited(begun_from(model, corpus_folder))
    study.search(config, cache, fast_clock, Watcher())
    default = load_plan(config.folder).default
    assert (default.depth, default.width, default.norm_embedding) == (2, 32, False)
    assert default.peak_lr == MOST_DEFAULT_LR  # as of all models so small


def test_a_final_alone_begins_from_given_weights_in_their_shape_with_the_rate_carried_to_it(
    model, searched, cache, fast_clock, tokens
):
    name, plain = searched.name, final(searched.name, cache, fast_clock, Watcher(), config=searched)
    result = final(name, cache, fast_clock, Watcher(), config=searched, init=model)
    run, recipe = result.record.config, result.record.recipe
    assert result.record.state == "done"
    assert run["init"] == str(result.folder / INIT)
    assert (run["model"]["depth"], run["model"]["width"], run["model"]["norm_embedding"]) == (2, 32, False)
    assert recipe["schedule"] == plain.record.recipe["schedule"]
    plan, chosen = load_plan(searched.folder), recipe_from(plain.record.recipe)
    wanted = reshaped(chosen, load_model(model)[0].config, plan.target_seconds, plan.world)
    assert recipe_from(recipe) == wanted
    less = body_parameters(load_model(model)[0].config) < body_parameters(model_of(chosen, plan.world))
    assert (wanted.peak_lr > chosen.peak_lr) == less
    assert (result.forecast, result.no_forecast) == (None, OTHER_START)
    shutil.rmtree(result.folder / "checkpoints", ignore_errors=True)
    again = final(name, cache, fast_clock, Watcher(), config=searched, init=model)
    assert again.already_done
    assert again.folder == result.folder != plain.folder
    assert not collect(name).forecasts_kept.get(result.record.run)
    assert result.record.run in report(name).read_text()


def test_a_final_goes_on_from_another_final(searched, cache, fast_clock):
    first = final(searched.name, cache, fast_clock, Watcher(), config=searched)
    more = final(searched.name, cache, fast_clock, Watcher(), config=searched, init=first.folder / "model", hours=2.2 / 3600)
    assert more.record.config["model"]["width"] == first.record.config["model"]["width"]
    assert more.record.recipe["peak_lr"] == pytest.approx(first.record.recipe["peak_lr"], rel=0.1)
    assert more.record.bpb < 1.1 * first.record.bpb  # in less time, and far above it with fresh weights


def test_what_a_final_cannot_begin_from_is_refused_before_it_is_charged(
    model, searched, cache, fast_clock, corpus_folder, tmp_path
):
    def begin(folder, **changes):
        settings = dataclasses.replace(searched.model, **changes)
        final(searched.name, cache, fast_clock, Watcher(), config=dataclasses.replace(searched, model=settings), init=folder)

    with pytest.raises(ConfigError, match="is a decoder, but model.objective is mlm"):
        begin(model, objective="mlm")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    with pytest.raises(ConfigError, match="context_length is 32, but the model of init .* was made for 16"):
        begin(model)
    (model / "config.json").write_text(json.dumps(config))
    data = DataConfig(source=str(corpus_folder), vocab_size=300)
    other = prepare_tokens(data, prepare_corpus(data, cache), 300, cache)
    shutil.copyfile(other.tokenizer_file, model / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"made for another vocabulary \(300 tokens\) than the study's \(320\)"):
        begin(model)
    assert not open_ledger(searched.database).accounts()[1:]
    assert not list(searched.folder.glob(f"finals/*/{INIT}"))
