import json
import math
import sys

import numpy as np
import pytest

from budgetlm.cli import main
from budgetlm.errors import StudyError
from budgetlm.recipe.space import Choices, Range
from budgetlm.records import RunRecord, read_records
from budgetlm.search.engines.modelled import fit_landscape, random_recipes
from budgetlm.search.plan import load_plan
from budgetlm.search.replay_study import replay_study
from budgetlm.watch import Watcher

SPACE = {"peak_lr": Range(low=1e-4, high=1e-2, log=True), "schedule": Choices(("linear", "wsd"))}


def run(trial, rung, seconds, recipe, bpb):
    return RunRecord(
        run=f"trial{trial}-rung{rung}", kind="rung", trial=trial, rung=rung, state="done", recipe=recipe, config={}, seed=0,
        target_seconds=1000.0, planned_seconds=seconds, seconds=seconds, by_purpose={}, steps=1, tokens=1, parameters=1,
        compute_parameters=1, flops=1.0, tokens_per_second=1.0, bpb=bpb,
    )  # fmt: skip


def planted(count):
    """Runs whose best rate is 1e-3 and whose best schedule is `wsd`."""
    records = []
    for trial in range(count):
        recipe = {"peak_lr": 10 ** (-4 + 2 * trial / (count - 1)), "schedule": ("linear", "wsd")[trial % 2]}
        off = 0.1 * (math.log10(recipe["peak_lr"]) + 3) ** 2 + 0.05 * (recipe["schedule"] == "linear")
        for rung, seconds in enumerate((10.0, 40.0)):
            bpb = 0.6 + math.exp(off - 0.2 * math.log(seconds / 1000))
            records.append(run(trial, rung, seconds, recipe, bpb))
    return records


def test_a_landscape_is_like_the_runs_that_it_was_fitted_to():
    drawn = fit_landscape(planted(24), SPACE, 1000.0, "x").draw(0)
    best = drawn.bpb({"peak_lr": 1e-3, "schedule": "wsd"})
    assert best == pytest.approx(1.6, abs=0.15)
    for worse in (
        {"peak_lr": 1e-4, "schedule": "wsd"},
        {"peak_lr": 1e-2, "schedule": "wsd"},
        {"peak_lr": 1e-3, "schedule": "linear"},
    ):
        assert drawn.bpb(worse) > best
        assert drawn.bpb(worse, math.log(10 / 1000)) > drawn.bpb(worse) + 0.5


def test_a_landscape_is_the_same_every_time_and_its_noise_is_the_run_s_own():
    landscape = fit_landscape(planted(8), SPACE, 1000.0, "x")
    recipe = random_recipes(SPACE, 1, seed=0)[0]
    one, other = landscape.draw(1), landscape.draw(2)
    assert one.bpb(recipe, run="a") == landscape.draw(1).bpb(recipe, run="a")
    assert len({one.bpb(recipe), one.bpb(recipe, run="a"), one.bpb(recipe, run="b"), other.bpb(recipe)}) == 4


def test_too_few_runs_model_nothing():
    with pytest.raises(StudyError, match="3 finished runs on 2 rungs"):
        fit_landscape(planted(2)[:3], SPACE, 1000.0, "x")


def test_a_study_is_replayed_by_its_own_scheduler(searched, cache):
    again = [replay_study(searched, cache, Watcher(), seeds=1, sampler="random") for _ in range(2)]
    assert again[0] == again[1]
    rungs = load_plan(searched.folder).rungs
    for search in again[0].searches:
        assert sum(n * s for n, s in zip(search.runs_by_rung, rungs, strict=True)) <= searched.budget.seconds
        assert search.trials == search.runs_by_rung[0]
        assert [m.share for m in search.moments][-1] == 1.0
        assert min(m.regret for m in search.moments) >= 0
    assert again[0].fitted_runs == len([r for r in read_records(searched.folder) if r.state == "done"])


def test_the_command_replays_a_study(searched, cache, monkeypatch, capsys):
    monkeypatch.chdir(searched.folder.parents[1])
    monkeypatch.setenv("BUDGETLM_CACHE", str(cache))
    command = ["budgetlm", "replay", "--study", searched.name, "--seeds", "1", "--sampler", "qmc", "--budget", "6"]
    for options in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", [*command, *options])
        with pytest.raises(SystemExit):
            main()
        said = capsys.readouterr().out
        assert "regret" in said
        assert not options or json.loads(said)["sampler"] == "qmc"


def test_what_is_a_recipes_own_far_below_the_target_is_not_taken_for_what_it_comes_to_there():
    chance = np.random.default_rng(0)
    steady, turning = (
        [
            run(trial, rung, seconds, recipe, 0.6 + math.exp(-(0.2 + own * turns) * math.log(seconds / 1000) + own))
            for trial, own in enumerate(0.05 * chance.standard_normal(24))
            for recipe in [{"peak_lr": 10 ** (-4 + trial / 12), "schedule": "wsd"}]
            for rung, seconds in enumerate((1.0, 10.0, 100.0))
        ]
        for turns in (0.0, 1.0)
    )
    slopes = [fit_landscape(records, SPACE, 1000.0, "x").own_slope for records in (steady, turning)]
    assert slopes[0] < slopes[1]
