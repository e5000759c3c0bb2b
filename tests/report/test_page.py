import dataclasses
import json
import re

import pandas as pd
import pytest

from budgetlm.errors import ConfigError
from budgetlm.report import frames, words
from budgetlm.report.embedded import facts_from, read_page, unpack
from budgetlm.report.judgement import judge
from budgetlm.report.page import PANDAS, SCRIPTS, SECTIONS, page
from budgetlm.report.write import facts_of_page, write_csv, write_json, write_page
from tests.conftest import record
from tests.report.made import EVIL, evil_facts, facts


@pytest.fixture(scope="module")
def made():
    return facts()


@pytest.fixture(scope="module")
def text(made):
    return page(made)


def data_of(text):
    return unpack(re.search(r'id="study">([^<]+)', text)[1])


def seen(text):
    """What stands in the page beside scripts and styles."""
    return re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)


def test_the_page_is_one_file_that_needs_no_network_and_forbids_it(text):
    assert not re.findall(r'(?:src|href)\s*=\s*["\'](?!data:|#)', seen(text))
    assert "default-src &#x27;none&#x27;" in text
    assert "connect-src &#x27;none&#x27;" in text
    assert len(text) < 1e6
    assert not re.findall(r"\son\w+\s*=", seen(text))
    assert "style=" not in seen(text)


def test_the_order_of_reading_is_the_order_of_the_page(text):
    places = [text.index(f'<section id="{key}"') for key in SECTIONS]
    assert places == sorted(places)
    assert [len(re.findall(f"<{tag}[ >]", seen(text))) for tag in ("h1", "main", "nav")] == [1, 1, 1]
    for figure in {name for _, _, figures in SECTIONS.values() for name, _ in figures}:
        assert f'id="figure-{figure}"' in text


def test_the_verdict_can_be_read_without_a_script(text):
    for said in (
        "bits per byte forecast after 16.7 min",
        "reached by the final",
        "inside its interval",
        "Train this:",
        "Why:",
        "How sure:",
    ):
        assert said in seen(text)


@pytest.mark.parametrize("trials", [0, 1])
def test_a_page_can_be_written_from_no_trial_and_from_one(trials):
    made = page(facts(trials))
    assert ("no trial has finished" in made) == (trials == 0)
    assert not [f for f in data_of(made)["frames"].values() if "error" in f]


def test_strings_from_outside_show_as_text():
    made = page(evil_facts())
    assert EVIL not in made
    assert "&lt;script&gt;alert" in made


def test_a_frame_that_fails_costs_nothing_but_itself(made, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(frames, "timeline", broken)
    found = data_of(page(made))["frames"]
    assert "ZeroDivisionError: ours" in found.pop("timeline")["error"]
    assert not [frame for frame in found.values() if "error" in frame]


def test_a_page_makes_itself_again_to_the_byte(home, made):
    path = write_page(made)
    before = path.read_bytes()
    assert write_page(facts_of_page(path)).read_bytes() == before


def test_a_page_is_not_written_where_a_name_in_it_says(home, made):
    path = home / "evil.html"
    values = data_of(page(made))["facts"]
    path.write_text(page(facts_from({**values, "name": "../../outside"})))
    with pytest.raises(ConfigError, match="cannot name a study"):
        facts_of_page(path)


def test_pandas_reads_the_records_as_the_page_says(home, made):
    (home / "page.html").write_text(page(made))
    found = {}
    exec(PANDAS, found)
    assert isinstance(found["runs"], pd.DataFrame)
    assert list(found["runs"]["run"]) == [r.run for r in made.records]
    assert found["runs"]["bpb"].min() == pytest.approx(min(r.bpb for r in made.records if r.bpb))


def test_the_numbers_behind_the_figures_are_files_too(tmp_path, made):
    names = {path.stem for path in write_csv(made, tmp_path / "numbers")}
    assert {"runs", "trials", "paths", "effects", "importances", "timeline"} <= names
    assert len(pd.read_csv(tmp_path / "numbers" / "trials.csv")) == 12
    rows = json.loads(write_json(made, tmp_path / "numbers.json").read_text())
    assert set(rows) == names
    assert len(rows["runs"]) == len(made.records)


def test_every_script_of_the_page_is_there_and_none_could_end_its_tag(text):
    for name in SCRIPTS:
        assert name.endswith(".js")
    assert text.count("</script>") == 2


def test_the_words_say_what_ended_runs_and_what_it_cost():
    lost = record(7, 0, 4.0, None, run="a", state="interrupted", cause="killed")
    again, failed = record(7, 0, 6.0, 2.0, run="a"), record(8, 0, 2.5, None, cause="memory", error="out of memory")
    said = words.spending(facts(0, records=[lost, again, failed], accounts=facts(1).accounts))
    assert "killed: 1 (4.0 s); memory: 1 (2.5 s). 1 runs that were cut off have been gone on with" in said


def test_money_is_said_where_its_price_is_known(made):
    judged = judge(made.records, made.target_seconds)
    assert "money" not in words.cards(made, judged)[-1].label
    priced = facts(price_per_hour=3.0)
    seconds = sum(priced.accounts["search"].by_purpose.values())
    assert f"{3 * seconds / 3600:,.2f} in money" in words.cards(priced, judged)[-1].label


def test_energy_is_said_where_devices_count_it(made):
    judged = judge(made.records, made.target_seconds)
    assert "kWh" not in words.cards(made, judged)[-1].label
    assert "no device here says it" in words.spending(made)
    runs = [dataclasses.replace(r, energy_joules=100 * r.seconds) for r in made.records]
    counted = dataclasses.replace(made, records=runs)
    said = words.cards(counted, judged)[-1].label
    assert said.endswith(f"; {sum(r.seconds for r in runs) * 100 / 3.6e6:.3g} kWh taken by runs")
    assert "no device here" not in words.spending(counted)
    partly = dataclasses.replace(made, records=[runs[0], *made.records[1:]])
    share = runs[0].seconds / sum(r.seconds for r in runs)
    assert f"in the {share:.0%} of their time that was counted" in words.cards(partly, judged)[-1].label


def test_the_final_is_judged_by_the_forecast_made_before_it(made):
    judged = judge(made.records, made.target_seconds)
    run = "final-trial0000-1000s-seed0"
    chosen = judged.choice.trial
    missed = facts(forecasts_kept={run: {"mean": 1.1, "low": 1.0, "high": 1.2}})
    said = [card.label for card in words.cards(missed, judged)] if chosen == 0 else ["outside its interval"]
    assert any("outside its interval" in label for label in said)


def test_predictions_are_compared_with_what_was_measured():
    frame = frames.oracle(
        [record(0, 0, 6.0, 2.0, predicted_tokens_per_second=110.0, predicted_peak_bytes=5e7, peak_bytes=10**8)]
    )
    assert "speed by 10% in the median and 10% at worst (1 runs); memory by 50% in the median" in words.oracle(frame)


def test_a_page_of_a_real_study_is_written_and_read_again(searched):
    from budgetlm.report.write import report

    path = report("tiny")
    facts_again = read_page(path)
    assert {r.run for r in facts_again.records} == set(facts_again.curves)
    assert all(r.began_seconds is not None for r in facts_again.records)
    assert facts_again.moments
    assert any(p.gradient_norm for p in next(iter(facts_again.curves.values())))
