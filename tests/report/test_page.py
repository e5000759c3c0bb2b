import json
import re

import pandas as pd
import pytest

from budgetlm.forecast.fit import fit
from budgetlm.records import CurvePoint, append_point, append_record, curve_path
from budgetlm.report import figures
from budgetlm.report.page import StudyFacts, page, write_report
from tests.conftest import record
from tests.forecast.test_fit import ladder

EVIL = '<script>alert("x")</script>'


def facts(folder, **changes) -> StudyFacts:
    values = {
        "name": "tiny",
        "folder": folder,
        "target_seconds": 1000.0,
        "budget_seconds": 500.0,
        "stopped_because": "the budget is spent",
        "by_account": {"search": {"train": 300.0, "evaluate": 20.0, "other": 0.0}},
        "importance": {"peak_lr": 0.7, "depth": 0.3},
        "importance_trials": 9,
        "parameters": ["peak_lr", "depth"],
        "default": "the default",
        "passport": {"name": "a machine", "threads": 2},
        "plan": "the plan",
        "study_file": "[budget]",
        "forecast_kept": None,
        "samples": [],
        "chosen_recipe": "depth 2 x width 32",
    }
    return StudyFacts(**{**values, **changes})


def fill(folder, trials=6):
    for trial in range(trials):
        for made in ladder(trial, 0.05 * trial)[0]:
            append_record(folder, made)
            curve_path(folder, made.run).parent.mkdir(exist_ok=True)
            for step in range(5):
                point = CurvePoint(step=step, seconds=step + 1.0, tokens=step, loss=5 - step, lr=0.1, tokens_per_second=1.0)
                append_point(folder, made.run, point)


def figure_data(text):
    return [json.loads(m) for m in re.findall(r'<script type="application/json" id="figure\d+">(.*?)</script>', text)]


def test_the_page_is_one_file_that_needs_no_network(tmp_path):
    fill(tmp_path)
    text = page(facts(tmp_path))
    outside = re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", text, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)\s*=\s*["\'](?!data:)', outside)
    assert "http" not in re.sub(r"<pre>.*?</pre>", "", outside, flags=re.DOTALL).replace("http://www.w3.org", "")
    assert len(text) < 6e6
    assert len(figure_data(text)) >= 6
    assert "trial 0" in text
    assert "depth 2 x width 32" in text


def test_the_table_says_why_each_run_was_paid_for_and_what_it_took_over(tmp_path):
    append_record(tmp_path, record(1, 0, 5.0, 1.9))  # of old
    assert "paid for." not in page(facts(tmp_path))
    append_record(tmp_path, record(1, 1, 20.0, 1.5, why="climb", inherited_from="trial0001-rung0", inherited_seconds=3.0))
    append_record(tmp_path, record(1, 1, 20.0, 1.5, why="gate", run="trial0001-rung1-repeat1", seed=1))
    text = page(facts(tmp_path))
    assert "Why each was paid for. climb: its forecast may yet beat the best; gate: one of the last candidates" in text
    assert "began from the trunk of trial0001-rung0, which had paid for 3.0 s" in text
    assert '<td class="">gate</td>' in text


def test_where_all_runs_are_on_one_rung_the_page_shows_ranks_and_no_interval(tmp_path):
    for trial, bpb in enumerate([1.9, 1.7, 1.8]):
        append_record(tmp_path, record(trial, 0, 10.0, bpb))
    text = page(facts(tmp_path))
    assert "<b>1.700</b><span>bits per byte measured on its rung; ranks only: all runs are on one rung" in text
    assert "There are no forecasts: ranks only" in text
    assert "interval" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "This figure failed" not in text


@pytest.mark.parametrize("trials", [0, 1, 30])
def test_a_page_can_be_written_from_no_trials_one_and_many(tmp_path, trials):
    fill(tmp_path, trials)
    text = page(facts(tmp_path))
    assert "This figure failed" not in text
    assert ("No trial has finished" in text) == (trials == 0)


def test_strings_from_outside_show_as_text(tmp_path):
    fill(tmp_path, 2)
    append_record(tmp_path, record(7, 0, 5.0, None, error=EVIL, recipe={"schedule": EVIL}))
    append_record(tmp_path, record(8, 0, 5.0, 1.2, recipe={"schedule": EVIL, "depth": 1}))
    names = {"name": EVIL, "stopped_because": EVIL, "default": EVIL, "plan": EVIL, "study_file": EVIL, "chosen_recipe": EVIL}
    more = {"passport": {"name": EVIL, EVIL: 1}, "importance": {EVIL: 1.0}, "parameters": ["schedule", EVIL]}
    samples = {"samples": [{"prompt": EVIL, "continuation": EVIL}]}
    append_record(tmp_path, record(0, -1, 900.0, 0.9, kind="final", run="final"))
    text = page(facts(tmp_path, **names, **more, **samples))
    assert EVIL not in text
    assert "&lt;script&gt;alert" in text


def test_a_figure_that_fails_costs_nothing_but_itself(tmp_path, monkeypatch):
    fill(tmp_path)

    def broken(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(figures, "plot_ladder", broken)
    text = page(facts(tmp_path))
    assert "This figure failed" in text
    assert "ZeroDivisionError: ours" in text
    assert len(figure_data(text)) >= 5


def test_the_final_is_shown_beside_its_forecast(tmp_path):
    fill(tmp_path)
    append_record(tmp_path, record(0, -1, 990.0, 0.95, kind="final", run="final-trial0"))
    kept = {"mean": 1.0, "low": 0.9, "high": 1.1, "share": 0.8}
    assert "0.950" in (text := page(facts(tmp_path, forecast_kept=kept)))
    assert "inside its interval" in text
    assert "outside its interval" in page(facts(tmp_path, forecast_kept={**kept, "low": 0.96}))


def test_a_report_replaces_the_one_before_whole(tmp_path):
    fill(tmp_path, 1)
    path = tmp_path / "reports" / "tiny.html"
    write_report(facts(tmp_path), path)
    fill(tmp_path, 3)
    write_report(facts(tmp_path), path)
    assert "trial0002-rung0" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["tiny.html"]


def test_the_history_counts_what_failed_runs_cost(tmp_path):
    runs = [*ladder(0, 0.0)[0], record(1, 0, 360.0, None), *ladder(2, -0.3)[0]]
    table = figures.history(runs, 1000)
    assert table["device_hours"].iloc[-1] == pytest.approx(sum(r.seconds for r in runs) / 3600)
    assert table["trial"].iloc[-1] == 2
    assert (table["low"] < table["forecast"]).all()


def test_the_table_of_runs_has_a_row_a_run_and_escapes(tmp_path):
    runs = [*ladder(0, 0.0)[0], record(1, 0, 3.0, None, error=EVIL, recipe={"x": EVIL}, config={})]
    table = figures.runs_table(runs, fit(runs, 1000))
    assert isinstance(table, pd.DataFrame)
    assert list(table["run"]) == [r.run for r in runs]
    assert EVIL not in "".join(table["text"])


def test_budget_shares_of_an_account_sum_to_a_hundred():
    table = figures.budget_table({"search": {"train": 30.0, "other": 10.0, "compile": 0.0}, "final": {"train": 5.0}})
    figure = figures.plot_budget(table)
    totals = {}
    for bar in figure.data:
        for account, share in zip(bar.y, bar.x, strict=True):
            totals[account] = totals.get(account, 0) + share
    assert totals == pytest.approx({"search": 100.0, "final": 100.0})


def test_the_page_says_what_ended_runs_and_how_far_predictions_were_off(tmp_path):
    fill(tmp_path)
    assert "What ended runs" not in page(facts(tmp_path))
    lost = {"state": "interrupted", "bpb": None, "cause": "killed"}
    append_record(tmp_path, record(7, 0, 4.0, **lost))
    append_record(
        tmp_path, record(7, 0, 6.0, 2.0, predicted_tokens_per_second=110.0, predicted_peak_bytes=5e7, peak_bytes=10**8)
    )
    append_record(tmp_path, record(8, 0, 2.5, None, state="failed", cause="memory", error="out of memory"))
    text = page(facts(tmp_path))
    assert "killed: 1 (4.0 s); memory: 1 (2.5 s). 1 runs that were cut off have been gone on with" in text
    assert "missed speed by 10% in the median and 10% at worst (1 runs); memory by 50% in the median" in text
