import dataclasses
from pathlib import Path

import pytest

from budgetlm.config import STUDY_FILE, read_study_file, study_config
from budgetlm.errors import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[budgets]\nhours = 1", "Did you mean `budget`"),
        ("[budget]\nhour = 1", r"\[budget\] has no `hour`. Did you mean `hours`"),
        ("[budget]\nhours = 'one'", "must be of type float"),
        ("[budget]\nhours = -1", "a number of hours"),
        ("[budget]\nhours = true", "must be of type float"),
        ("[budget]\ntarget_hours = 0", "the final needs some time"),
        ("budget = 3", r"`budget` is a section: write `\[budget\]`"),
        ("name = '../up'", "cannot name a study"),
        ("[train]\ndevice = 'tpu'", "Use auto, cpu, cuda"),
        ("[train]\nthreads = -1", "must not be negative"),
        ("[model]\ncontext_length = 2", "use 8 to"),
        ("[search]\nleast_rung_seconds = 0", "must be above 0"),
        ("[search]\nproxy = 'mini'", "cannot be 'mini'. Use miniature or truncate"),
        ("[space]\nwidht = 3", "Did you mean `width`"),
        ("[data]\nvocab_size = 12", "from 257"),
        ("[budget", "not valid TOML"),
    ],
)
def test_a_study_file_that_nothing_understands_is_refused_with_its_name_and_the_remedy(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_study_file(path)
    assert "bad.toml" in str(error.value)


def test_a_missing_file_points_to_the_demo(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no study file .*demo\.toml"):
        read_study_file(tmp_path / "none.toml")


def test_the_file_kept_with_the_results_is_the_configuration_defaults_filled_in(tmp_path):
    table = {"name": "x", "budget": {"hours": 2}, "space": {"depth": {"low": 1, "high": 3}, "optimizer": ["adamw"]}}
    config = study_config(table)
    config.save(tmp_path)
    assert read_study_file(tmp_path / STUDY_FILE) == config
    text = (tmp_path / STUDY_FILE).read_text()
    for section in (config.budget, config.data, config.model, config.train, config.search):
        assert all(f.name in text for f in dataclasses.fields(section))


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda p: p.name)
def test_the_study_files_we_ship_are_valid(path):
    assert read_study_file(path).budget.hours > 0


def test_several_sources_are_a_list_or_joined():
    listed, joined = (study_config({"data": {"source": s}}) for s in (["a:0.7", "b:0.3"], "a:0.7 + b:0.3"))
    assert listed == joined
    assert [share.source for share in listed.data.shares] == ["a", "b"]
    with pytest.raises(ConfigError, match="must be of type str"):
        study_config({"data": {"column": ["a", "b"]}})
