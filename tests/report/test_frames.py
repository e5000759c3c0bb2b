from dataclasses import replace

import pandas as pd
import pytest

from budgetlm.forecast.fit import quantiles
from budgetlm.report import effects, frames
from budgetlm.report.judgement import MOST_FITTED, few_enough, judge
from budgetlm.report.page import make_frames
from tests.conftest import record
from tests.report.made import TARGET, facts


@pytest.fixture(scope="module")
def many():
    return facts(30)


@pytest.fixture(scope="module")
def judged(many):
    return judge(many.records, many.target_seconds)


@pytest.mark.parametrize("trials", [0, 1])
def test_every_frame_can_be_made_of_no_trial_and_of_one(trials):
    made = facts(trials)
    for name, frame in make_frames(made, judge(made.records, made.target_seconds)).items():
        assert isinstance(frame, pd.DataFrame), f"{name}: {frame}"


def test_every_frame_of_many_trials_has_rows_but_what_was_not_recorded(many, judged):
    made = make_frames(many, judged)
    assert [name for name, frame in made.items() if isinstance(frame, str) or frame.empty] == ["compression"]


def test_where_all_runs_are_on_one_rung_no_frame_forecasts():
    made = facts(0, records=[record(trial, 0, 10.0, bpb) for trial, bpb in enumerate([1.9, 1.7, 1.8])])
    judged = judge(made.records, made.target_seconds)
    found = make_frames(made, judged)
    assert found["trials"]["forecast"].isna().all()
    assert all(found[name].empty for name in ("paths", "law", "effects", "rate_by_batch", "depth_by_width", "worth"))
    assert judged.choice.trial == 1


def test_a_trial_has_one_row_with_all_that_it_cost(many, judged):
    table = frames.trials(many.records, judged)
    rungs = [r for r in many.records if r.kind == "rung"]
    assert table["seconds"].sum() == pytest.approx(sum(r.seconds for r in rungs))
    assert list(table["trial"]) == list(dict.fromkeys(r.trial for r in rungs))
    assert list(table[table["mark"] == "chosen"]["trial"]) == [judged.choice.trial]
    assert table["best"].sum() == pytest.approx(1.0)


def test_a_timeline_of_many_runs_is_counted_together_and_loses_no_second():
    runs = facts(1500, points=1).records
    table = frames.timeline(runs)
    rungs = [r for r in runs if r.kind == "rung"]
    assert len(table) <= frames.STRETCHES * 2 * 3
    assert table["seconds"].sum() == pytest.approx(sum(r.seconds for r in rungs))
    assert table["runs"].sum() == len(rungs)


def test_runs_of_which_nobody_kept_when_they_began_are_laid_end_to_end():
    table = frames.timeline([record(0, 0, 4.0, 1.5), record(1, 0, 6.0, 1.5, place=1), record(2, 0, 5.0, 1.5)])
    assert table[["place", "began", "ended"]].to_numpy().tolist() == [[0, 0, 4], [1, 0, 6], [0, 4, 9]]


def test_the_chosen_ones_fan_begins_at_its_last_rung_and_widens(many, judged):
    table = frames.paths(many.records, judged)
    own = table[table["trial"] == judged.choice.trial]
    assert own["seconds"].iloc[0] == max(
        r.planned_seconds for r in many.records if r.trial == judged.choice.trial and r.kind == "rung"
    )
    assert own["seconds"].iloc[-1] == TARGET
    assert own["mean"].iloc[-1] == pytest.approx(judged.choice.forecast.mean)
    assert (own["q05"] < own["q25"]).all()
    assert (own["q75"] < own["q95"]).all()
    assert (own["q95"] - own["q05"]).iloc[-1] > (own["q95"] - own["q05"]).iloc[0]


def test_below_the_quantiles_of_many_forecasts_lie_the_shares_that_were_asked_for(judged):
    some = list(judged.forecasts.values())[:5]
    for row, forecast in zip(quantiles(some, (0.1, 0.9)), some, strict=True):
        assert [forecast.probability_below(bound) for bound in row] == pytest.approx([0.1, 0.9], abs=1e-6)


def test_the_chosen_recipe_changes_nothing_at_its_own_value_and_is_surest_there(many, judged):
    base = effects.chosen_recipe(many.records, judged)
    table = effects.effects(many, judged)
    own = table[(table["parameter"] == "depth") & (table["value"] == base["depth"])].iloc[0]
    assert (own["percent"], own["low"], own["high"]) == pytest.approx((0, 0, 0), abs=1e-9)
    others = table[(table["parameter"] == "depth") & (table["value"] != base["depth"])]
    assert (others["high"] > others["low"]).all()


def test_a_map_knows_the_parameters_of_its_shapes(many, judged):
    table = effects.depth_by_width(many, judged)
    assert sorted(set(table["width"])) == list(range(32, 161, 16))
    wide = table[table["width"] == 160].sort_values("depth")
    assert wide["parameters"].is_monotonic_increasing


def test_more_hours_never_gain_less(many, judged):
    table = frames.worth(many, judged)
    assert table["search_percent"].is_monotonic_increasing
    assert table["final_percent"].is_monotonic_increasing


def test_a_history_that_the_search_did_not_keep_is_worked_out_again(many):
    old = replace(many, records=many.records[:24], moments=[])
    table = frames.history(old)
    assert 2 <= len(table) <= frames.REFITS
    assert (table["low"] < table["forecast"]).all()
    assert table["hours"].iloc[-1] == pytest.approx(sum(r.seconds for r in old.records) / 3600)


def test_a_final_that_was_interrupted_has_its_parts_end_to_end():
    name = {"kind": "final", "run": "final-x"}
    parts = [record(0, -1, 30.0, None, state="interrupted", cause="stopped", **name), record(0, -1, 100.0, 1.2, **name)]
    table = frames.final_parts(facts(0, records=parts))
    assert table[["began", "ended", "state"]].to_numpy().tolist() == [[0.0, 30.0, "interrupted"], [30.0, 100.0, "done"]]


def test_the_use_of_a_device_is_of_its_measured_ceiling():
    whole = record(0, -1, 100.0, 1.2, kind="final", run="final-x", flops=8e12, tokens=10**6)
    made = facts(0, records=[whole])  # 80 GFLOP/s in fp32, says its passport
    assert frames.final_parts(made)["use_of_a_token"].item() == pytest.approx(8e6 / 80e9)
    unknown = facts(0, records=[whole], plan={**made.plan, "passport": {}})
    assert frames.final_parts(unknown)["use_of_a_token"].isna().all()


def test_a_study_in_which_size_counts_shows_its_front_and_what_finals_came_to(many):
    world = {**many.plan["world"], "objectives": "loss,size"}
    records = [replace(r, predicted_model_bytes=1e5 * (40 - r.trial), artefact_bytes=2e5) for r in many.records]
    sized = facts(30, plan={**many.plan, "world": world}, records=records)
    judged = judge(records, TARGET, sized.objectives)
    table = frames.compression(sized, judged)
    trials = table[table["kind"] == "trial"]
    front = trials[trials["front"]].sort_values("megabytes")
    assert front["trial"].tolist() == [p.trial for p in judged.choice.front]  # what status and final --pick know
    assert front["bpb"].is_monotonic_decreasing
    assert len(front) > 1
    assert table[table["kind"] == "final"]["megabytes"].tolist() == [0.2]
    assert frames.compression(many, judged).empty


def test_where_the_loss_is_all_there_is_a_study_with_compressions_shows_the_front_of_loss_and_size(many):
    records = [
        replace(r, predicted_model_bytes=1e5 * (40 - r.trial), recipe={**r.recipe, "compression": "int8"})
        for r in many.records
    ]
    plain = facts(30, records=records)
    table = frames.compression(plain, judge(records, TARGET, "loss"))
    sized = judge(records, TARGET, "loss,size")
    assert set(table[table["front"]]["trial"]) == {p.trial for p in sized.choice.front}


def test_of_a_long_study_the_forecast_takes_those_that_climbed_highest_and_an_even_sample():
    runs = [r for r in facts(900, points=1, final=False).records if r.bpb is not None]
    kept = few_enough(runs)
    trials = {r.trial for r in kept}
    assert len(trials) == MOST_FITTED
    assert {r.trial for r in runs if r.rung == 2} <= trials
    assert min(trials) < 100
    assert max(trials) > 800
