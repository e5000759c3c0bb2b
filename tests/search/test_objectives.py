"""Studies of more than the loss, and under a limit of size: searched, killed, gone on with, picked from."""

import dataclasses
import json
import sys

import optuna
import pytest

from budgetlm.cli import main
from budgetlm.envelope import run_all
from budgetlm.errors import ConfigError, StudyError
from budgetlm.final import final
from budgetlm.records import read_records
from budgetlm.search.plan import load_plan
from budgetlm.search.replay_study import replay_study
from budgetlm.search.sampler import EXCERPT, excerpt
from budgetlm.search.study import search
from budgetlm.studies import choice_of, ledger_of, status_of
from budgetlm.watch import Watcher
from tests.search.test_study import Notes, killed, optuna_study

SEARCH = {"least_rung_seconds": 0.15, "stop_early": False}
SPACE = {
    "depth": {"low": 1, "high": 3},
    "width": {"low": 16, "high": 64, "step": 16},
    "batch_tokens": 128,
    "norm_embedding": [True, False],
    "compression": "none",
}


def of_size(tiny_study, seconds=6.0, **changes):
    return tiny_study(seconds, space=SPACE, search={**SEARCH, "objectives": "loss,size", **changes})


def limited(tiny_study, megabytes, seconds=6.0, **changes):
    return tiny_study(seconds, space={**SPACE, **changes}, search={**SEARCH, "max_model_mb": megabytes})


@pytest.fixture(scope="module")
def front_study(corpus_folder, cache, tmp_path_factory):
    """A study of loss and size, killed twice on its way, once."""
    from tests.conftest import install_clock, study_of

    folder = tmp_path_factory.mktemp("front")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        clock = install_clock(patch, every=6)
        config = of_size(lambda seconds, **changes: study_of(corpus_folder, seconds, **changes))
        for moment, time in (("_conclude", 2), ("_end", 3)):
            killed(lambda: search(config, cache, clock, Notes()), moment, time, patch)
        result = search(config, cache, clock, Notes())
    return folder, config, result


def test_a_killed_and_continued_study_of_size_tells_every_trial_once_with_both_values(front_study, monkeypatch):
    folder, config, result = front_study
    monkeypatch.chdir(folder)
    study, records = optuna_study(config), read_records(config.folder)
    assert len(study.directions) == 2
    assert all(t.state == optuna.trial.TrialState.COMPLETE for t in study.trials)
    assert {t.number for t in study.trials} == {r.trial for r in records}
    sizes = {r.trial: r.predicted_model_bytes for r in records if r.state == "done"}
    for trial in study.trials:
        assert trial.values[1] == sizes[trial.number] > 0
    done = [r.run for r in records if r.state == "done"]
    assert len(done) == len(set(done))
    balance = ledger_of(config.name).balance()
    assert balance.charged_seconds <= 6.0
    assert balance.leased_seconds == 0
    assert result.choice.front


def test_its_front_is_of_finalists_and_status_and_budget_say_it(front_study, cache, monkeypatch, capsys):
    folder, config, _ = front_study
    monkeypatch.chdir(folder)
    records, points = read_records(config.folder), choice_of(config.folder).front
    top = max(r.rung for r in records)
    for point in points:
        assert any(r.trial == point.trial and r.rung == top and r.state == "done" for r in records)
    assert [p.megabytes for p in points] == sorted(p.megabytes for p in points)
    assert [p.bpb for p in points] == sorted((p.bpb for p in points), reverse=True)
    assert points[-1].trial == choice_of(config.folder).trial
    status = status_of(config.name)
    assert (status.objectives, status.front) == ("loss,size", points)
    said = {}
    for command in (["status"], ["budget", "--study", "tiny"]):
        for options in ([], ["--json"]):
            monkeypatch.setattr(sys, "argv", ["budgetlm", *command, *options])
            with pytest.raises(SystemExit):
                main()
            said[command[0], bool(options)] = capsys.readouterr().out
    plain = dataclasses.asdict(points[0])
    assert json.loads(said["status", True])[0]["front"][0] == json.loads(said["budget", True])["front"][0] == plain
    for command in ("status", "budget"):
        assert said[command, False].count("front: trial") == len(points)


def test_a_final_is_picked_from_the_front_and_says_its_real_size(front_study, cache, clock, monkeypatch):
    folder, config, _ = front_study
    monkeypatch.chdir(folder)
    points = choice_of(config.folder).front
    small = final(config.name, cache, clock, Watcher(), config=config, which="smallest")
    assert small.record.trial == points[0].trial
    assert small.record.why == "picked"
    weights = small.folder / "model" / "model.safetensors"
    assert small.record.artefact_bytes == weights.stat().st_size == round(1e6 * points[0].megabytes)
    assert small.size == f"{points[0].megabytes:,.3f} MB of weights on the disk"
    with pytest.raises(StudyError, match="no pick 'tiny'"):
        final(config.name, cache, clock, Watcher(), config=config, which="tiny")


def test_a_pick_gets_the_final_of_an_envelope_and_another_one_no_second(front_study, cache, clock, monkeypatch):
    folder, config, _ = front_study
    monkeypatch.chdir(folder)
    hours = (ledger_of(config.name).balance().charged_seconds + 5.2) / 3600  # a final has to be so long

    def run_with(which):
        return run_all(config, hours, cache, clock, Notes, which=which)

    spent = run_with("smallest")
    assert (spent.final.record.trial, spent.final.record.why) == (choice_of(config.folder).front[0].trial, "picked")
    other = next(r.trial for r in read_records(config.folder) if r.trial != spent.final.record.trial)
    with pytest.raises(StudyError, match=f"`budgetlm final --study {config.name} --trial {other}`"):
        run_with(str(other))
    with pytest.raises(StudyError, match="no pick 'tiny'"):
        run_with("tiny")


def test_other_objectives_or_another_limit_are_refused_for_a_study_that_has_begun(
    front_study, cache, clock, monkeypatch, corpus_folder
):
    from tests.conftest import study_of

    folder, _, _ = front_study
    monkeypatch.chdir(folder)

    def study(seconds, **changes):
        return study_of(corpus_folder, seconds, **changes)

    with pytest.raises(StudyError, match="search.objectives was 'loss,size', is 'loss'"):
        search(study(6.0, space=SPACE, search=SEARCH), cache, clock, Notes())
    with pytest.raises(StudyError, match=r"search.max_model_mb was 0.0, is 2.0"):
        search(of_size(study, max_model_mb=2.0), cache, clock, Notes())


def test_a_study_of_size_is_not_replayed_and_says_why(front_study, cache, monkeypatch):
    folder, config, _ = front_study
    monkeypatch.chdir(folder)
    with pytest.raises(StudyError, match="is about loss and size, but a replay says how much loss"):
        replay_study(config, cache, Watcher(), seeds=1)


def test_under_a_limit_nothing_is_trained_that_would_weigh_more(tiny_study, cache, clock):
    config = limited(tiny_study, 0.15, 5.0)
    search(config, cache, clock, Notes())
    records, trials = read_records(config.folder), optuna_study(config).trials
    assert all(0 < r.predicted_model_bytes <= 0.15e6 for r in records)
    assert max(r.predicted_model_bytes for r in records) > 0.075e6
    refused = [t for t in trials if t.state == optuna.trial.TrialState.PRUNED]
    assert all(t.constraints["size_mb"] > 0 >= t.constraints["memory_gib"] for t in refused)
    assert not {t.number for t in refused} & {r.trial for r in records}
    assert len(refused) <= len(trials) / 2
    plan = load_plan(config.folder)
    assert (plan.world.max_model_bytes, records[0].recipe) == (150_000, dataclasses.asdict(plan.default))
    result = final(config.name, cache, clock, Watcher(), config=config)
    assert 0 < result.record.artefact_bytes <= 150_000
    assert result.size.endswith("the limit of 0.15 MB is kept")


def test_a_limit_that_nothing_keeps_is_refused_before_anything_is_written(tiny_study, cache, clock, home):
    with pytest.raises(
        ConfigError, match=r"max_model_mb` is 0.01, but the smallest model that the space allows weighs 0.\d+ MB"
    ):
        search(limited(tiny_study, 0.01), cache, clock, Notes())
    assert not (home / "studies" / "tiny").exists()


@pytest.mark.parametrize("wrong", [{"objectives": "size"}, {"objectives": "loss,speed"}, {"max_model_mb": -1.0}])
def test_impossible_wishes_are_refused_with_what_is_possible(tiny_study, wrong):
    with pytest.raises(ConfigError, match=r"search\.(objectives|max_model_mb)"):
        tiny_study(6.0, search={**SEARCH, **wrong})


def test_latency_is_weighed_by_what_the_throughput_model_foretells(tiny_study, cache, clock):
    config = tiny_study(5.0, space=SPACE, search={**SEARCH, "objectives": "loss,latency"})
    search(config, cache, clock, Notes())
    latency = {r.trial: r.predicted_token_ms for r in read_records(config.folder)}
    assert all(t.values[1] == latency[t.number] > 0 for t in optuna_study(config).trials)
    assert len(set(latency.values())) > 1


def test_the_excerpt_of_a_long_history_of_two_objectives_keeps_its_front():
    study = optuna.create_study(directions=["minimize", "minimize"])
    domain = optuna.distributions.FloatDistribution(0.0, 1.0)
    for n in range(EXCERPT + 200):
        x = (n * 0.618034) % 1
        values = [x + 0.5 * (n % 20 > 0), 1 - x + 0.5 * (n % 20 > 0)]  # one of twenty is on the front
        study.add_trial(optuna.trial.create_trial(params={"x": x}, distributions={"x": domain}, values=values))
    kept = {t.number for t in excerpt(study.get_trials(deepcopy=False))}
    assert EXCERPT / 2 < len(kept) <= EXCERPT
    assert {t.number for t in study.best_trials} <= kept
