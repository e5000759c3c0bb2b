import dataclasses
import shutil

import pytest
import torch

from budgetlm.budget.clock import Meter
from budgetlm.config import study_config
from budgetlm.errors import ConfigError
from budgetlm.final import final
from budgetlm.inherit import INIT, inherited
from budgetlm.model.export import load_model, save_model
from budgetlm.recipe.space import MOST_DEFAULT_LR
from budgetlm.records import read_records
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
    with pytest.raises(ConfigError, match="no model of budgetlm's"):
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
