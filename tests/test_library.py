import re
from pathlib import Path

import pytest

import budgetlm
from budgetlm import library
from budgetlm.budget.clock import ManualClock
from budgetlm.errors import ConfigError, StudyError
from budgetlm.search.jobs import RungJob
from budgetlm.studies import ledger_of
from budgetlm.workers.job import Ended
from budgetlm.workers.own import OwnJob, Threaded
from tests.conftest import tiny_run

DOCS = Path(__file__).parent.parent / "docs" / "library.md"


class LookedAt(ManualClock):
    """Moves a little whenever it is looked at, and by nothing else."""

    def now(self):
        self.move(1e-2)
        return super().now()


@pytest.fixture
def own_clock(monkeypatch, cache, home):
    monkeypatch.setenv("BUDGETLM_CACHE", str(cache))
    monkeypatch.setattr(library, "Clock", LookedAt)


def own_search(train, seconds=12.0, **options):
    space = {"width": {"low": 16, "high": 48, "step": 16}, "depth": 1, "batch_tokens": 128}
    settings = {"search": {"least_rung_seconds": 0.25, "stop_early": False, "proxy": "truncate"}}
    options = {"hours": seconds / 3600, "target_hours": 4 / 3600, "space": space, "settings": settings} | options
    return budgetlm.search(study="own", train=train, quiet=True, **options)


def wait(run, clock):
    end = clock.now() + run.seconds
    while clock.now() < end:
        pass


def better_wider(run, clock):
    wait(run, clock)
    return 0.5 + run.seconds**-0.2 * (2 - run.model.width / 64)


def test_the_example_of_the_docs_runs_and_chooses(own_clock, capsys):
    exec(re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1], {})
    said = capsys.readouterr().out
    assert "least forecast" in said
    assert "recipe.peak_lr" in said


def test_a_function_of_ones_own_is_searched_within_its_budget_and_the_better_recipe_wins(own_clock):
    study = own_search(better_wider, 50.0)
    records, choice = study.records(), study.choice()
    assert " loss after 4 s (80 % interval" in choice.why
    assert records[[f"recipe.{name}" for name in library.UNASKED]].nunique().eq(1).all()  # it does not look at them
    assert records.state.eq("done").all()
    assert records.seconds.sum() <= 50.0
    assert records.rung.max() > 0
    widths = records.groupby("trial")["recipe.width"].first()
    assert widths[choice.trial] == widths.max() > widths.min()
    assert study.final_run().model.width == widths.max()
    assert set(study.forecasts().trial) == set(records.trial)
    assert len(study.optuna().trials) == records.trial.nunique()


def test_the_final_is_trained_by_the_same_function_held_to_its_forecast_and_charged_also_for_what_failed(own_clock):
    study, seen = own_search(better_wider, 6.0), []

    def broken(run, clock):
        wait(run, clock)
        raise ValueError("too much for me")

    def endless(run, clock):
        while True:
            clock.now()

    def trained(run, clock):
        seen.append(run)
        return better_wider(run, clock)

    with pytest.raises(ConfigError, match="decides itself what it begins from"):
        budgetlm.final("own", train=trained, init="anywhere", quiet=True)
    with pytest.raises(ValueError, match="too much for me"):
        budgetlm.final("own", train=broken, quiet=True)
    (account,) = [name for name in ledger_of("own").accounts() if name.startswith("final-")]
    first = ledger_of("own").balance(account)
    assert first.charged_seconds >= 4.0
    assert (first.leased_seconds, first.stopped_because) == (0, "broken off")
    assert budgetlm.final("own", train=endless, quiet=True).record.state == "interrupted"
    before = ledger_of("own").balance(account).charged_seconds

    result = budgetlm.final("own", train=trained, quiet=True)
    (run,) = seen
    assert run.seconds == result.record.planned_seconds == 4.0
    assert run.model.width == study.final_run().model.width
    assert (result.record.state, result.record.unit, result.record.kind) == ("done", "loss", "final")
    assert result.record.bpb == pytest.approx(0.5 + 4.0**-0.2 * (2 - run.model.width / 64))
    assert (result.folder / "forecast.json").exists()
    balance = ledger_of("own").balance(account)
    assert balance.charged_seconds - before == pytest.approx(result.record.seconds, rel=0.05)
    assert (balance.leased_seconds, balance.stopped_because) == (0, "the deadline is reached")
    assert budgetlm.final("own", train=trained, quiet=True).already_done
    assert len(seen) == 1
    assert study.records().query("kind == 'final' and state == 'done'").bpb.item() == result.record.bpb
    assert budgetlm.report("own").exists()


def test_what_a_function_breaks_by_is_kept_and_what_it_returns_is_looked_at(own_clock):
    calls = []

    def broken(run, clock):
        calls.append(run)
        wait(run, clock)
        if len(calls) == 3:
            raise ValueError("too much for me")
        return float("nan") if len(calls) == 5 else better_wider(run, clock)

    records = own_search(broken).records()
    assert set(records.state) == {"done", "failed", "diverged"}
    assert records[records.state == "failed"].error.str.contains("too much for me").all()
    assert records[records.state == "diverged"].error.str.contains("a loss is a positive number").all()
    assert records.seconds.gt(0).all()


def test_a_function_hears_of_the_end_from_its_clock(tmp_path):
    clock = LookedAt()

    def endless(_run, clock):
        while True:
            clock.now()

    workers = Threaded(clock, lambda job: OwnJob(endless, job.label, job.config))
    workers.start(0, RungJob(library_label(), tiny_run(seconds=1.0, steps=0), None, tmp_path), 1.0)
    workers.stop()
    events = []
    while not (events and isinstance(events[-1][1], Ended)):
        events += workers.wait(10.0)
    assert events[-1][1].outcome.state == "interrupted"


def library_label():
    from budgetlm.train.config import Label

    return Label(run="one", kind="rung", trial=0, rung=0, recipe={}, target_seconds=1.0)


def test_search_final_and_report_are_functions_and_studies_those_of_the_commands(
    corpus_folder, cache, fast_clock, home, monkeypatch
):
    monkeypatch.setenv("BUDGETLM_CACHE", str(cache))
    monkeypatch.setattr(library, "Clock", lambda: fast_clock)
    settings = {
        "data": {"vocab_size": 320},
        "model": {"context_length": 32},
        "train": {"eval_tokens": 256, "threads": 1},
        "search": {"least_rung_seconds": 0.15},
    }
    space = {"depth": 1, "width": {"low": 16, "high": 32, "step": 16}, "batch_tokens": 128}
    study = budgetlm.search(
        5.0 / 3600, 3.2 / 3600, study="lib", data=str(corpus_folder), space=space, settings=settings, quiet=True
    )
    assert budgetlm.load_study("lib") == study
    reached = budgetlm.final("lib", quiet=True).record
    assert study.records().query("kind == 'final'").bpb.item() == reached.bpb
    assert "Train this" in budgetlm.report("lib").read_text()
    with pytest.raises(StudyError, match="no study"):
        budgetlm.load_study("nobody")


def test_a_name_that_there_is_not_is_said():
    with pytest.raises(AttributeError, match="search, final, report, load_study"):
        budgetlm.searches  # noqa: B018
