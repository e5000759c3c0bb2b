import dataclasses
import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch

from budgetlm.budget.clock import Clock
from budgetlm.budget.ledger import HEARTBEAT_SECONDS
from budgetlm.compress.apply import Compression
from budgetlm.errors import BudgetExhausted, ConfigError, DataError, StudyError
from budgetlm.final import final
from budgetlm.forecast.choose import choose
from budgetlm.forecast.fit import Forecaster, fit
from budgetlm.forecast.scales import scales_of
from budgetlm.passport import identify
from budgetlm.records import REASONS, read_curve, read_records
from budgetlm.search import jobs, scheduler
from budgetlm.search import study as searching
from budgetlm.search.plan import load_plan
from budgetlm.search.scheduler import Scheduler
from budgetlm.search.site import Step
from budgetlm.search.study import search
from budgetlm.search.unfinished import unfinished_runs
from budgetlm.studies import ledger_of, status_of
from budgetlm.train import choices, loop
from budgetlm.train.config import OPTIMIZERS, run_config_from
from budgetlm.train.schedule import COOLDOWN_SHAPES, SHAPES
from budgetlm.train.trunk import trunk_of
from budgetlm.watch import Watcher
from tests.conftest import tiny_model, tiny_run
from tests.workers.inline import Inline


class Notes(Watcher):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def optuna_study(config) -> optuna.Study:
    return optuna.load_study(study_name=config.name, storage=f"sqlite:///{config.folder / 'study.db'}")


def test_a_search_spends_its_budget_and_never_more(searched):
    balance = ledger_of("tiny").balance()
    records = read_records(searched.folder)
    assert len(records) >= 8
    assert "the budget is spent" in balance.stopped_because
    assert 0.9 * 6.0 < balance.charged_seconds <= 6.0
    assert sum(r.seconds for r in records) == pytest.approx(balance.charged_seconds - _study_seconds(), rel=1e-3)


EVERYTHING = {
    "optimizer": list(OPTIMIZERS),
    "schedule": list(SHAPES),
    "cooldown_shape": list(COOLDOWN_SHAPES),
    "weight_decay_schedule": ["constant", "linear"],
    "cooldown": {"low": 0.1, "high": 0.8},
    "embedding_lr": {"low": 0.3, "high": 3.0, "log": True},
    "batch_ramp": {"low": 0.0, "high": 0.5},
    "momentum_warmup": {"low": 0.0, "high": 0.5},
    "ema": {"low": 0.0, "high": 0.3},
    "depth": 1,
    "width": 32,
    "batch_tokens": 256,
}


def test_a_space_of_all_optimizers_and_schedules_is_searched_without_a_failure(tiny_study, cache, clock, monkeypatch):
    monkeypatch.setattr("budgetlm.search.trials.NEAR", 0)  # all over the space from the beginning
    config = tiny_study(8.0, space=EVERYTHING)
    search(config, cache, clock, Notes())
    records = read_records(config.folder)
    assert {r.state for r in records} <= {"done", "diverged"}
    assert len({r.recipe["optimizer"] for r in records}) > 3
    assert len({r.recipe["schedule"] for r in records}) > 3
    assert any(r.config["ema"] > 0 for r in records)


def test_truncated_proxies_have_the_shape_of_their_recipe_on_every_rung_and_cannot_be_mixed_with_miniatures(
    tiny_study, cache, clock
):
    truncating = {"search": {"least_rung_seconds": 0.15, "proxy": "truncate"}}
    config = tiny_study(6.0, **truncating)
    search(config, cache, clock, Notes())
    records = read_records(config.folder)
    assert len({r.rung for r in records}) > 1
    for record in records:
        for name in ("depth", "width"):
            assert record.config["model"][name] == record.recipe[name]
        assert record.config["optimizer"]["peak_lr"] == record.recipe["peak_lr"]
    search(tiny_study(6.2, **truncating), cache, clock, Notes())
    with pytest.raises(StudyError, match="search.proxy was 'truncate', is 'miniature'"):
        search(tiny_study(6.2), cache, clock, Notes())


def test_every_record_says_why_it_was_paid_for_and_so_does_the_progress(tiny_study, cache, clock):
    class Titles(Notes):
        def run(self, title, planned_seconds):
            self.lines.append(title)

    config, titles = tiny_study(6.0), Titles()
    search(config, cache, clock, titles)
    records = read_records(config.folder)
    for r in records:
        assert r.why in REASONS
        assert any(line.startswith(f"trial {r.trial}, rung {r.rung} ({r.why}):") for line in titles.lines)
    assert {(r.why == "default") == (r.trial == 0) for r in records if "repeat" not in r.run} == {True}
    assert {r.why for r in records if "repeat" in r.run} <= {"noise", "gate"}
    assert {"new", "default", "climb"} <= {r.why for r in records}


def test_the_progress_says_what_is_unusual_about_a_run():
    configs = [
        tiny_run(steps=1, **changes)
        for changes in ({}, {"model": tiny_model(mixer="lstm")}, {"compression": Compression(option="int8")})
    ]
    runs = [SimpleNamespace(config=config, label=SimpleNamespace(why="climb")) for config in configs]
    plain, mixed, compressed = [scheduler._title(Step(3, None, 1), run) for run in runs]
    assert plain.startswith("trial 3, rung 1 (climb): depth 2 x width 32")
    assert plain.endswith("linear")
    assert "M), lstm, batch" in mixed
    assert compressed == plain + ", int8"


PLATEAUS = {
    "depth": 1,
    "width": {"low": 16, "high": 48, "step": 16},
    "batch_tokens": 128,
    "schedule": "wsd",
    "warmup": 0.02,
    "cooldown": {"low": 0.2, "high": 0.6},
    "short_sequences": 0.0,
}
TRUNCATED = {"search": {"least_rung_seconds": 0.15, "proxy": "truncate", "stop_early": False}}


def test_a_truncated_trial_with_a_plateau_climbs_from_its_trunk_which_is_charged_once(tiny_study, cache, clock):
    config = tiny_study(6.0, space=PLATEAUS, **TRUNCATED)
    search(config, cache, clock, Notes())
    records = read_records(config.folder)
    plan = json.loads((config.folder / "plan.json").read_text())
    heirs = [r for r in records if r.inherited_from]
    assert {r.run for r in heirs} >= {"trial0000-rung1"}
    for heir in heirs:
        assert heir.seconds + heir.inherited_seconds <= heir.planned_seconds == plan["rungs"][heir.rung]
        parent = next(r for r in records if r.run == heir.inherited_from)
        # Its own run of the rung below, or another trial's that differs in its cool-down alone and was longer on the plateau.
        assert parent.rung < heir.rung or parent.trial != heir.trial
        assert trunk_of(run_config_from(parent.config)) == trunk_of(run_config_from(heir.config))
        plateau, trained = 1 - parent.recipe["cooldown"], parent.by_purpose["train"] + parent.inherited_seconds
        # Of what the parent trained, to the last whole step; at most as much of its rung, which has an evaluation too.
        assert (plateau - 1 / parent.steps) * trained <= heir.inherited_seconds <= plateau * parent.planned_seconds
    # A trial under way has its trunk; one that the gate goes back to only if it is among the few whose trunks were kept.
    assert all(r.inherited_from for r in records if r.rung == 1 and r.why in ("default", "climb"))
    balance = ledger_of("tiny").balance()
    assert sum(r.seconds for r in records) == pytest.approx(balance.charged_seconds - _study_seconds(), rel=1e-3)


def test_the_trunks_of_closed_trials_go_but_for_the_few_best(tiny_study, cache, clock):
    config = tiny_study(6.0, space=PLATEAUS, **TRUNCATED)
    search(config, cache, clock, Notes())
    trunks = list(config.folder.glob("trunks/*"))
    assert len({r.trial for r in read_records(config.folder)}) > 5
    assert 0 < len(trunks) <= 3
    miniatures = tiny_study(5.0, name="other", space=PLATEAUS)
    search(miniatures, cache, clock, Notes())
    assert not (miniatures.folder / "trunks").exists()


def killed(command, moment, time, monkeypatch):
    """Run a command that dies when the scheduler comes to a moment for the so-manieth time."""
    plain, calls = getattr(Scheduler, moment), []

    def dies(self, *arguments):
        calls.append(arguments)
        if len(calls) == time:
            raise SystemExit("kill -9")
        return plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, moment, dies)
        with pytest.raises(SystemExit):
            command()


@pytest.mark.parametrize("moment", ["_end", "_decide", "_forget_trunks", "_occupy"])
def test_trunks_survive_a_death_at_any_instant_and_what_it_left_half_written_does_not(
    tiny_study, cache, clock, monkeypatch, moment
):
    config = tiny_study(6.0, space=PLATEAUS, **TRUNCATED)
    killed(lambda: search(config, cache, clock, Notes()), moment, 2, monkeypatch)
    for trunk in config.folder.glob("trunks/*/*"):
        (trunk / ".step-00000001.1.tmp").mkdir()  # as a death while writing leaves it
    search(config, cache, clock, Notes())
    records = read_records(config.folder)
    assert any(r.inherited_from for r in records)
    assert all(t.state == optuna.trial.TrialState.COMPLETE for t in optuna_study(config).trials)
    assert not list(config.folder.glob("trunks/*/*/.*"))
    charged = ledger_of("tiny").balance().charged_seconds
    assert charged <= 6.0
    assert sum(r.seconds for r in records) == pytest.approx(charged - _study_seconds(), rel=1e-3)


def test_the_same_command_again_does_and_charges_nothing_and_a_raised_budget_goes_on(searched, tiny_study, cache, clock):
    before, records = ledger_of("tiny").balance().charged_seconds, read_records(searched.folder)
    again = search(searched, cache, clock, Notes())
    assert again.new_runs == 0
    assert "the budget is spent" in again.stopped_because
    assert ledger_of("tiny").balance().charged_seconds == before

    more = search(tiny_study(8.0), cache, clock, Notes())
    assert more.new_runs > 0
    assert 6.0 < ledger_of("tiny").balance().charged_seconds <= 8.0
    after = read_records(searched.folder)
    assert after[: len(records)] == records
    assert len({r.run for r in after}) == len(after)


def test_a_raised_budget_that_adds_a_rung_sends_the_best_up_to_it_first(searched, tiny_study, cache, clock, monkeypatch):
    monkeypatch.setattr("budgetlm.search.ladder.TOP_SHARE", 0.4)
    before = read_records(searched.folder)
    best = choose(before, searched.budget.target_seconds).trial
    search(tiny_study(10.0), cache, clock, Notes())
    plan = json.loads((searched.folder / "plan.json").read_text())
    first = read_records(searched.folder)[len(before)]
    assert len(plan["rungs"]) == 3
    assert (first.trial, first.rung) == (best, 2)


def test_a_trial_that_broke_on_a_rung_is_not_sent_there_again(searched, tiny_study, cache, clock, monkeypatch):
    before = read_records(searched.folder)
    plain = loop.Stepper.step

    def breaks(self, rows, lr):
        loss = plain(self, rows, lr)
        return math.nan if self.config.seconds > 1.0 else loss

    monkeypatch.setattr(loop.Stepper, "step", breaks)
    monkeypatch.setattr("budgetlm.search.ladder.TOP_SHARE", 0.4)
    search(tiny_study(10.0), cache, clock, Notes())
    broken = [r.trial for r in read_records(searched.folder)[len(before) :] if r.state == "diverged" and r.rung == 2]
    assert broken
    assert len(set(broken)) == len(broken)


def _study_seconds():
    """What was charged outside of runs: calibration and bookkeeping."""
    with closing(sqlite3.connect("studies/tiny/study.db")) as database:
        return database.execute("select sum(seconds) from budgetlm_charges where run = 'study'").fetchone()[0] or 0.0


def test_trial_0_is_the_default_and_climbs_to_the_top_and_others_only_if_they_can_win(searched):
    plan = json.loads((searched.folder / "plan.json").read_text())
    records = read_records(searched.folder)
    first = [r for r in records if r.trial == 0]
    assert first[0].recipe == plan["default"]
    climbed = [r.rung for r in first if "repeat" not in r.run]
    assert climbed == list(range(len(plan["rungs"])))
    reached = {t: max(r.rung for r in records if r.trial == t) for t in {r.trial for r in records}}
    assert min(reached.values()) == 0
    for record in records:
        assert record.seconds <= plan["rungs"][record.rung] * 1.001
        assert read_curve(searched.folder, record.run)


def test_every_rung_says_how_far_from_its_recipe_it_is_in_parameters_and_in_tokens(searched):
    records = [r for r in read_records(searched.folder) if r.state == "done"]
    for record in records:
        assert 0 < record.compute_parameters <= record.target_compute_parameters
        assert 0 < record.tokens < record.target_tokens
    top = max(r.rung for r in records)
    assert scales_of(records, 3600 * searched.budget.target_hours).of_runs.shape == (len(records), 2)
    by_rung = [np.mean([np.log(r.target_tokens / r.tokens) for r in records if r.rung == k]) for k in range(top + 1)]
    assert by_rung == sorted(by_rung, reverse=True)


def test_optuna_is_told_every_trial_once_with_its_forecast(tiny_study, cache, clock, monkeypatch):
    plain, forecasts = Forecaster.fit, {}

    def remembered(self, records):
        forecasts[len(records)] = plain(self, records)
        return forecasts[len(records)]

    monkeypatch.setattr(Forecaster, "fit", remembered)
    config = tiny_study(6.0)
    search(config, cache, clock, Notes())
    trials, records = optuna_study(config).trials, read_records(config.folder)
    assert {t.number for t in trials} == {r.trial for r in records}
    assert all(t.state == optuna.trial.TrialState.COMPLETE for t in trials)
    assert all(math.isfinite(t.value) for t in trials)
    last = max(r.trial for r in records)
    then = 1 + max(place for place, r in enumerate(records) if r.trial == last and "repeat" not in r.run)
    assert trials[last].value == pytest.approx(forecasts[then][last].mean)
    # It began where the one before had ended; from nothing it comes to about the same, by its own measure.
    low, high = fit(records[:then], config.budget.target_seconds)[last].interval
    assert low < trials[last].value < high


def test_the_device_seconds_that_failures_took_are_charged_and_the_search_goes_on(tiny_study, cache, clock, monkeypatch):
    plain = loop.Stepper.step
    calls = {"n": 0}

    def breaks(self, rows, lr):
        calls["n"] += 1
        loss = plain(self, rows, lr)
        if 60 < calls["n"] < 75:
            return math.nan
        if calls["n"] == 120:
            raise MemoryError("no room")
        return loss

    monkeypatch.setattr(loop.Stepper, "step", breaks)
    config = tiny_study(6.0)
    search(config, cache, clock, Notes())
    records = read_records(config.folder)
    failed = [r for r in records if r.state != "done"]
    assert {"diverged", "failed"} == {r.state for r in failed}
    assert all(r.seconds > 0 for r in failed)
    assert any("out of memory: no room" in r.error for r in failed)
    assert records[-1].state == "done"
    charged = ledger_of("tiny").balance().charged_seconds
    assert charged <= 6.0
    assert sum(r.seconds for r in records) == pytest.approx(charged - _study_seconds(), rel=1e-3)


def test_a_bug_in_every_trial_stops_the_study_with_its_traceback(searched, tiny_study, cache, clock, monkeypatch):
    def broken(self, rows, lr):
        raise ZeroDivisionError("ours")

    original = loop.Stepper.step
    config = tiny_study(8.0)
    monkeypatch.setattr(loop.Stepper, "step", broken)
    with pytest.raises(StudyError, match=r"(?s)3 runs in a row.*ZeroDivisionError: ours") as error:
        search(config, cache, clock, Notes())
    assert "File" in str(error.value)
    monkeypatch.setattr(loop.Stepper, "step", original)
    assert search(config, cache, clock, Notes()).new_runs > 0


def test_an_interrupted_run_goes_on_where_it_was_and_its_trial_is_told_once(tiny_study, cache, clock, monkeypatch):
    config = tiny_study(6.0)
    calls = {"n": 0}

    class StopSoon(searching.StopRequest):
        def __call__(self):  # in the third run
            calls["n"] += len(read_records(config.folder)) == 2
            return calls["n"] > 12

    with monkeypatch.context() as patch:
        patch.setattr(searching, "StopRequest", StopSoon)
        result = search(config, cache, clock, Notes())
    assert "interrupted" in result.stopped_because
    cut = read_records(config.folder)[-1]
    assert (cut.state, cut.cause) == ("interrupted", "stopped")
    assert [r.label.run for r in unfinished_runs(config.folder)] == [cut.run]
    search(config, cache, clock, Notes())
    again = next(r for r in read_records(config.folder) if r.run == cut.run and r.state != "interrupted")
    assert again.state == "done"
    assert again.why == cut.why != ""
    assert again.steps > cut.steps > 0
    assert cut.seconds + again.seconds <= again.planned_seconds * 1.001  # nothing was done twice
    assert [p.step for p in read_curve(config.folder, cut.run)] == sorted(
        {p.step for p in read_curve(config.folder, cut.run)}
    )
    assert not unfinished_runs(config.folder)
    trials = optuna_study(config).trials
    assert all(t.state == optuna.trial.TrialState.COMPLETE for t in trials)
    assert len({r.recipe["peak_lr"] for r in read_records(config.folder) if r.trial == cut.trial}) == 1
    assert ledger_of("tiny").balance().charged_seconds <= 6.0


@pytest.mark.parametrize("moment", ["_conclude", "_decide", "_end", "_settle", "_occupy"])
def test_whatever_instant_a_search_dies_at_the_next_one_settles_every_trial_once(
    tiny_study, cache, clock, monkeypatch, moment
):
    config = tiny_study(6.0)
    killed(lambda: search(config, cache, clock, Notes()), moment, 3, monkeypatch)
    before = read_records(config.folder)
    search(config, cache, clock, Notes())
    trials = optuna_study(config).trials
    assert all(t.state == optuna.trial.TrialState.COMPLETE for t in trials)
    records = read_records(config.folder)
    assert records[: len(before)] == before
    done = [r.run for r in records if r.state == "done"]
    assert len(done) == len(set(done))
    assert {r.trial for r in records} == {t.number for t in trials}
    assert not unfinished_runs(config.folder)
    balance = ledger_of("tiny").balance()
    assert balance.charged_seconds <= 6.0
    assert balance.leased_seconds == 0
    assert sum(r.seconds for r in records) == pytest.approx(balance.charged_seconds - _study_seconds(), rel=1e-3)


def test_a_search_that_is_ended_often_costs_its_runs_none_of_their_restarts(tiny_study, cache, clock, monkeypatch):
    config = tiny_study(6.0, search={"least_rung_seconds": 0.15, "max_restarts": 0})
    plain, calls = Scheduler._end, []

    def dies(self, seat, ended):
        calls.append(ended)
        if len(calls) == 3:
            raise SystemExit("kill -9")
        return plain(self, seat, ended)

    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(Scheduler, "_end", dies)
            calls.clear()
            with pytest.raises(SystemExit):
                search(config, cache, clock, Notes())
    search(config, cache, clock, Notes())
    records = read_records(config.folder)
    assert {(r.state, r.cause) for r in records} == {("interrupted", "stopped"), ("done", "")}
    assert {r.run for r in records if r.state == "interrupted"} <= {r.run for r in records if r.state == "done"}


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_rung_whose_checkpoint_is_damaged_begins_again_and_is_told_once(tiny_study, cache, clock, monkeypatch, damage):
    config = tiny_study(6.0)
    calls = {"n": 0}

    class StopSoon(searching.StopRequest):
        def __call__(self):
            calls["n"] += len(read_records(config.folder)) == 2
            return calls["n"] > 12

    with monkeypatch.context() as patch:
        patch.setattr(searching, "StopRequest", StopSoon)
        search(config, cache, clock, Notes())
    cut = read_records(config.folder)[-1]
    [file] = config.folder.glob("unfinished/*/checkpoints/*/tensors.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    if damage == "delete":
        file.unlink()
    search(config, cache, clock, Notes())
    again = [r for r in read_records(config.folder) if r.run == cut.run]
    assert [r.state for r in again] == ["interrupted", "done"]
    assert again[1].seconds == pytest.approx(again[1].planned_seconds, rel=0.1)  # from the start
    assert all(t.state == optuna.trial.TrialState.COMPLETE for t in optuna_study(config).trials)


def test_recipes_that_would_not_fit_the_memory_cost_nothing_and_teach_the_sampler(tiny_study, cache, clock):
    space = {"depth": {"low": 1, "high": 24}, "width": {"low": 16, "high": 336, "step": 16}, "batch_tokens": 128}
    config = tiny_study(6.0, space=space, train={"eval_tokens": 256, "threads": 1, "memory_gb": 0.04})
    search(config, cache, clock, Notes())
    trials = optuna_study(config).trials
    refused = [t for t in trials if t.state == optuna.trial.TrialState.PRUNED]
    assert refused
    assert all(t.constraints["memory_gib"] > 0 for t in refused)
    records = read_records(config.folder)
    assert not {t.number for t in refused} & {r.trial for r in records}
    assert {r.state for r in records} == {"done"}
    assert not [t for t in trials if t.state == optuna.trial.TrialState.RUNNING]


def test_a_memory_that_nothing_fits_is_refused_with_the_numbers(tiny_study, cache, clock):
    config = tiny_study(6.0, train={"eval_tokens": 256, "threads": 1, "memory_gb": 1e-4})
    with pytest.raises(ConfigError, match=r"needs about .* MB to train, .* but a run may take 0.1 MB"):
        search(config, cache, clock, Notes())


def test_other_settings_data_or_machine_are_refused_by_name(searched, tiny_study, cache, clock, corpus_folder, monkeypatch):
    with pytest.raises(StudyError, match="model.context_length was 32, is 64"):
        search(tiny_study(8.0, model={"context_length": 64}), cache, clock, Notes())
    with pytest.raises(StudyError, match="less than the .* already spent"):
        search(tiny_study(3.0), cache, clock, Notes())
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "identify", lambda _: dataclasses.replace(identify("cpu"), name="another"))
        with pytest.raises(StudyError, match="another machine"):
            search(tiny_study(8.0), cache, clock, Notes())
    extra = corpus_folder / "new.txt"
    extra.write_text("something new\n")
    try:
        with pytest.raises(StudyError, match="the data of study 'tiny' has changed"):
            search(tiny_study(8.0), cache, clock, Notes())
    finally:
        extra.unlink()


def test_threads_that_are_left_to_choose_are_kept_by_the_plan_for_all_runs_and_the_final(
    tiny_study, cache, clock, monkeypatch
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    used = []
    monkeypatch.setattr(choices, "choose_threads", lambda *_: 1)
    monkeypatch.setattr(loop, "train", lambda *a, of=loop.train, **o: used.append(torch.get_num_threads()) or of(*a, **o))
    monkeypatch.setattr("budgetlm.final.train", loop.train)
    config = tiny_study(5.0, train={"eval_tokens": 256})
    search(config, cache, clock, Watcher())
    assert load_plan(config.folder).passport.threads == 1
    final(config.name, cache, clock, Watcher(), config=config)
    assert len(used) > 2
    assert set(used) == {1}
    assert {r.passport for r in read_records(config.folder)} == {load_plan(config.folder).passport.id}


def test_a_beginning_that_failed_does_not_stand_in_the_way_of_the_next(tiny_study, cache, clock):
    with pytest.raises(DataError, match="no file or folder"):
        search(tiny_study(6.0, data={"source": "missing.txt"}), cache, clock, Notes())
    assert search(tiny_study(4.9), cache, clock, Notes()).new_runs > 0


def test_a_budget_that_pays_for_nothing_is_refused_before_anything_is_written(tiny_study, cache, clock, home):
    with pytest.raises(BudgetExhausted, match="do not pay for a ladder"):
        search(tiny_study(0.2), cache, clock, Notes())
    assert not (home / "studies" / "tiny" / "study.db").exists()


def test_two_searches_on_one_study_do_not_mix(tiny_study, cache, clock):
    from filelock import FileLock

    config = tiny_study(6.0)
    config.folder.mkdir(parents=True)
    with FileLock(config.folder / "search.lock"), pytest.raises(StudyError, match="another search is running"):
        search(config, cache, clock, Notes())
    config.save(config.folder)
    with FileLock(config.folder / "search.lock"):
        assert status_of("tiny").state == "searching"


def test_data_that_the_final_would_repeat_often_is_warned_of(tiny_study, cache, clock):
    class Enough(Notes):
        def note(self, text):
            if "would read its training data" in text and "2305.16264" in text:
                raise StudyError("that is enough")

    with pytest.raises(StudyError, match="that is enough"):
        search(tiny_study(budget={"hours": 9 / 3600, "target_hours": 0.1}), cache, clock, Enough())


def test_kill_minus_9_loses_at_most_a_second_of_the_account_and_no_trial(tiny_study, cache, home):
    """A real process on a real clock, killed in the middle, and continued."""
    settings = {"least_rung_seconds": 0.25, "stop_early": False}
    config = tiny_study(30.0, budget={"hours": 30 / 3600, "target_hours": 4 / 3600}, search=settings)
    config.save(home)
    command = [sys.executable, "-m", "budgetlm", "search", "--file", "study.toml"]
    environment = {**_environment(), "BUDGETLM_CACHE": str(cache)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=home) as process:
        try:
            before = _wait_for(lambda: len(read_records(config.folder)) >= 1 and len(read_records(config.folder)))
        finally:
            process.kill()
    charged = ledger_of("tiny").balance().charged_seconds
    recorded = sum(r.seconds for r in read_records(config.folder))
    assert charged >= recorded - 1.5
    less = charged + 3.0
    done = subprocess.run([*command, "--hours", str(less / 3600)], env=environment, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr
    balance = ledger_of("tiny").balance()
    assert balance.charged_seconds <= balance.budget_seconds + HEARTBEAT_SECONDS
    assert len(read_records(config.folder)) > before
    assert not [t for t in optuna_study(config).trials if t.state == optuna.trial.TrialState.RUNNING]


def _environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def _wait_for(condition, seconds=90.0):
    clock = Clock()
    end = clock.now() + seconds
    while clock.now() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def test_a_run_whose_worker_alone_was_asked_to_stop_goes_on(tiny_study, cache, fast_clock, monkeypatch):
    """As when a node of a cluster is taken away: the search itself goes on."""

    class Preempted(Inline):
        runs = 0

        def start(self, place, job, most_seconds):
            Preempted.runs += isinstance(job, jobs.RungJob)
            self._asked = Preempted.runs == 3
            super().start(place, job, most_seconds)

    monkeypatch.setattr(searching, "processes", lambda _config, clock, should_stop: Preempted(clock, should_stop))
    config = tiny_study()
    search(config, cache, fast_clock, Watcher())
    records = read_records(config.folder)
    stopped = next(r for r in records if r.state == "interrupted")
    assert [r.state for r in records if r.run == stopped.run] == ["interrupted", "done"]
    assert len(records) > 4
