import json
import shutil
from types import SimpleNamespace

import pytest

from budgetlm.budget.clock import ManualClock
from budgetlm.budget.database import file_address
from budgetlm.budget.ledger import open_ledger
from budgetlm.commands.final import tell_final
from budgetlm.errors import StudyError
from budgetlm.final import _Final, final
from budgetlm.forecast.choose import choose
from budgetlm.forecast.fit import fit, usable
from budgetlm.records import append_record, read_curve, read_records
from budgetlm.report.facts import collect
from budgetlm.search.plan import load_plan
from budgetlm.studies import finals_of, resolve, status_of
from budgetlm.train import loop
from budgetlm.watch import Watcher
from tests.conftest import record


def run(config, cache, clock, **options):
    return final("tiny", cache, clock, Watcher(), config=config, **options)


def test_a_final_trains_the_chosen_recipe_to_its_deadline_and_leaves_a_model(searched, cache, clock, tokens):
    from transformers import AutoModelForCausalLM

    before = clock.seconds
    result = run(searched, cache, clock)
    assert clock.seconds - before <= 3.2
    assert result.record.state == "done"
    assert result.record.seconds > 0.7 * 3.2
    rungs = [r.bpb for r in read_records(searched.folder) if r.kind == "rung" and r.bpb]
    # The text is soon learnt by heart, and then the best of many short runs may be ahead by luck.
    assert result.record.bpb < 1.02 * min(rungs) < 0.5 * max(rungs)
    assert result.record.bpb_full is not None
    assert AutoModelForCausalLM.from_pretrained(result.folder / "model").config.vocab_size == tokens.facts.vocab_size
    assert len(result.samples) == 3
    assert json.loads((result.folder / "forecast.json").read_text())["mean"] == pytest.approx(result.forecast.mean)
    assert status_of("tiny").final_bpb == result.record.bpb
    again = run(searched, cache, clock)
    assert again.already_done
    assert again.record == result.record
    assert len(finals_of(searched.folder)) == 1


def test_a_final_says_by_which_rule_it_has_its_shape_and_what_its_choice_stands_on(searched, cache, clock, capsys):
    notes, plan, records = [], load_plan(searched.folder), read_records(searched.folder)
    choice, runs = choose(records, plan.target_seconds), usable(records)
    result = final(
        "tiny",
        cache,
        clock,
        SimpleNamespace(**dict.fromkeys(("run", "point", "close"), ignore), note=notes.append),
        config=searched,
        hours=2.2 / 3600,
    )
    tell_final("tiny", result)
    printed = capsys.readouterr().out
    assert "s, carried to 2 s by the rule that carries it to the rungs" in printed
    assert f"why: trial {choice.trial}, {choice.why}" in printed
    assert f"evidence: {len(runs)} runs of {len({r.trial for r in runs})} trials on rungs of" in printed
    assert "evidence: runner-up: trial" in printed
    for about, words in result.reasons.lines():
        assert f"{about:9} {words}" in notes
    append_record(searched.folder, record(99, 1, 0.8, 0.1))  # what is learnt later does not change what was said
    again = final("tiny", cache, clock, Watcher(), config=searched, hours=2.2 / 3600, trial=choice.trial)
    assert again.already_done
    assert again.reasons == result.reasons


def ignore(*_):
    """Of what a watcher is told."""


def test_where_all_runs_are_on_one_rung_a_final_has_no_forecast_and_says_so(searched, cache, clock, capsys):
    records = [r for r in read_records(searched.folder) if r.rung == 0]
    (searched.folder / "runs.jsonl").unlink()
    for r in records:
        append_record(searched.folder, r)
    result = run(searched, cache, clock)
    assert result.record.trial == min((r for r in records if r.seed == 0), key=lambda r: r.bpb).trial
    assert result.forecast is None
    assert json.loads((result.folder / "forecast.json").read_text())["mean"] is None
    tell_final("tiny", result)
    assert "no forecast (ranks only: all runs are on one rung)" in capsys.readouterr().out
    assert not collect("tiny").forecasts_kept
    assert status_of("tiny").best_forecast_bpb is None


def test_a_final_killed_at_any_moment_goes_on_and_keeps_its_deadline(searched, cache, clock, monkeypatch):
    plain = loop.Stepper.step
    calls = {"n": 0, "die": {30, 60}}

    def dies(self, rows, lr):
        calls["n"] += 1
        if calls["n"] in calls["die"]:
            raise SystemExit("kill -9")
        return plain(self, rows, lr)

    monkeypatch.setattr(loop.Stepper, "step", dies)
    for _ in range(2):
        with pytest.raises(SystemExit):
            run(searched, cache, clock)
    result = run(searched, cache, clock)
    assert result.record.state == "done"
    ledger = open_ledger(file_address(searched.folder / "study.db"))
    assert ledger.balance(result.record.run).charged_seconds <= 3.2
    assert result.record.seconds <= 3.2
    curve = read_curve(searched.folder, result.record.run)
    assert [p.seconds for p in curve] == sorted(p.seconds for p in curve)


def test_an_interrupted_final_keeps_its_checkpoint_and_goes_on(searched, cache, clock, monkeypatch):
    from budgetlm import final as module

    class StopSoon(module.StopRequest):
        def __call__(self):
            return clock.seconds > began + 1.0

    began = clock.seconds
    with monkeypatch.context() as patch:
        patch.setattr(module, "StopRequest", StopSoon)
        part = run(searched, cache, clock)
    assert part.record.state == "interrupted"
    assert list(part.folder.glob("checkpoints/step-*"))
    whole = run(searched, cache, clock)
    assert whole.record.state == "done"
    assert whole.record.steps > part.record.steps
    assert clock.seconds - began <= 3.2
    for kept in (part.record, whole.record):  # all that it has taken so far, not since it was gone on with
        assert sum(kept.by_purpose.values()) == pytest.approx(kept.seconds)


def test_a_final_whose_model_cannot_be_measured_is_done_all_the_same(searched, cache, clock, monkeypatch):
    from budgetlm import final as module

    def fails(*_arguments, **_options):
        asked.append(True)
        raise StudyError("the process failed")

    asked = []
    monkeypatch.setattr(module, "tokens_read", lambda _context_length: -1e9)  # so that there is always time for it
    monkeypatch.setattr(module, "measure_apart", fails)
    result = run(searched, cache, clock)
    assert asked
    assert (result.record.state, result.record.resident_bytes) == ("done", 0)
    assert run(searched, cache, clock).already_done


def test_a_final_that_was_left_no_time_to_learn_its_own_speed_is_not_measured_either():
    late = record(0, -1, 10.0, 3.0, tokens_per_second=0.0)
    deployed, meter = SimpleNamespace(config=SimpleNamespace(context_length=32)), SimpleNamespace(clock=ManualClock())
    assert _Final._measured(None, late, deployed, 5.0, meter) is late


def test_other_trials_hours_and_seeds_are_finals_of_their_own(searched, cache, clock):
    first = run(searched, cache, clock, trial=0, seed=1)
    longer = run(searched, cache, clock, trial=0, hours=6.4 / 3600)
    assert first.folder != longer.folder
    assert longer.record.tokens > first.record.tokens
    records = [r for r in read_records(searched.folder) if r.kind == "rung"]
    for result, seconds in ((first, 3.2), (longer, 6.4)):
        assert result.forecast.mean == fit(records, seconds)[0].mean
    with pytest.raises(StudyError, match="no trial 999"):
        run(searched, cache, clock, trial=999)


def test_a_study_without_trials_has_nothing_to_train(tiny_study, cache, clock):
    config = tiny_study(5.0)
    config.folder.mkdir(parents=True)
    config.save(config.folder)
    with pytest.raises(StudyError, match="no finished trial to choose from"):
        run(config, cache, clock)
    with pytest.raises(StudyError, match="no study here has a finished trial"):
        resolve("best")
    with pytest.raises(StudyError, match="there is no study 'other' under studies/ \\(known: tiny\\)"):
        resolve("other")


def test_best_is_the_study_with_the_least_final_or_forecast(searched, tmp_path):
    shutil.copytree(searched.folder, searched.folder.parent / "other")
    append_record(searched.folder, record(0, -1, 3.2, 0.01, kind="final", run="final-a"))
    assert resolve("best") == "tiny"
    append_record(searched.folder.parent / "other", record(0, -1, 3.2, 0.005, kind="final", run="final-b"))
    assert resolve("best") == "other"
