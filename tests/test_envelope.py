import dataclasses

import pytest

from budgetlm.budget.ledger import SEARCH
from budgetlm.config import BudgetConfig
from budgetlm.envelope import SEARCH_SHARE, enveloped, run_all, whole
from budgetlm.errors import BudgetExhausted, StudyError
from budgetlm.records import read_records
from budgetlm.studies import ledger_of
from budgetlm.watch import Watcher

SECONDS = 20.0
HOURS = SECONDS / 3600


def run(config, cache, fast_clock):
    return run_all(enveloped(config, HOURS), HOURS, cache, fast_clock, Watcher)


def test_search_final_and_report_share_one_budget_and_a_repeat_charges_nothing(tiny_study, cache, fast_clock, home):
    config = tiny_study(0.0)
    spent = run(config, cache, fast_clock)
    ledger = ledger_of("tiny")
    charged = [ledger.balance(account).charged_seconds for account in ledger.accounts()]
    assert len(charged) == 2
    assert sum(charged) <= SECONDS
    assert ledger.balance(SEARCH).charged_seconds <= SEARCH_SHARE * SECONDS
    assert spent.final.record.state == "done"
    assert spent.final.record.planned_seconds == pytest.approx(SECONDS - ledger.balance(SEARCH).charged_seconds)
    assert (home / spent.report).exists()
    before = read_records(config.folder)
    again = run(config, cache, fast_clock)
    assert again.final.already_done
    assert read_records(config.folder) == before
    assert sum(ledger.balance(account).charged_seconds for account in ledger.accounts()) == sum(charged)


def test_what_the_search_does_not_earn_goes_to_the_final(tiny_study, cache, fast_clock, monkeypatch):
    eager = tiny_study(0.0)
    careful = dataclasses.replace(eager, name="careful", search=dataclasses.replace(eager.search, stop_early=True))
    monkeypatch.setattr("budgetlm.search.climb.LEAST_TRIALS", 2)
    monkeypatch.setattr("budgetlm.search.climb.gain_of_a_trial", lambda *_: 0.0)
    monkeypatch.setattr("budgetlm.search.climb.LEAST_DOUBT", 2.0)
    all_of_it, less = run(eager, cache, fast_clock), run(careful, cache, fast_clock)
    assert less.search_seconds < all_of_it.search_seconds
    assert less.final_seconds > all_of_it.final_seconds
    assert "the rest of the budget is saved" in less.stopped_because


def test_a_study_of_the_loss_alone_has_nothing_smallest_and_says_so_before_the_search(tiny_study, cache, fast_clock):
    config = enveloped(tiny_study(0.0), HOURS)
    with pytest.raises(StudyError, match="about the loss alone"):
        run_all(config, HOURS, cache, fast_clock, Watcher, which="smallest")
    assert not config.folder.exists()


def test_an_envelope_that_is_too_small_says_how_much_would_do(tiny_study):
    config = tiny_study(0.0)
    with pytest.raises(BudgetExhausted, match=r"Give `--hours 0\.\d+` or more") as refused:
        enveloped(config, 0.1 / 3600)
    enough = float(str(refused.value).split("--hours ")[1].split("`")[0])
    assert enveloped(config, enough).budget.hours > 0


def test_a_file_has_an_envelope_of_its_search_and_its_final_together(tiny_study):
    assert whole(BudgetConfig(hours=0.02, target_hours=0.1)) == 0.12
    assert whole(BudgetConfig(target_hours=5.0)) == 0, "it says nothing of what a search may spend"


@pytest.mark.parametrize("hours", [24, 0.5, 0.1, 1 / 3, 0.7, 29.9, 1234.567])
def test_an_envelope_that_goes_on_without_its_hours_is_the_same_study(tiny_study, hours):
    begun = enveloped(tiny_study(0.0), float(f"{hours:.12g}"))
    assert enveloped(begun, whole(begun.budget)) == begun
