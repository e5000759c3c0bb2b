import sqlite3
import threading

import pytest

from budgetlm.budget.ledger import SEARCH, Ledger, open_database
from budgetlm.errors import StudyError


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(open_database(tmp_path / "study.db"))
    ledger.set_budget(SEARCH, 100.0)
    return ledger


def test_charges_add_up_by_purpose_and_survive_reopening(ledger, tmp_path):
    ledger.charge(SEARCH, "a", "train", 2.0)
    ledger.charge(SEARCH, "a", "train", 3.0)
    ledger.charge(SEARCH, "b", "evaluate", 1.0)
    ledger.charge("final", "f", "train", 50.0)  # another account
    balance = Ledger(open_database(tmp_path / "study.db")).balance(SEARCH)
    assert balance.charged_seconds == 6.0
    assert balance.remaining_seconds == 94.0
    assert balance.by_purpose == {"calibrate": 0, "compile": 0, "train": 5.0, "evaluate": 1.0, "other": 0}


def test_a_budget_may_rise_but_not_fall_below_what_is_spent(ledger):
    ledger.charge(SEARCH, "a", "train", 40.0)
    ledger.set_budget(SEARCH, 200.0)
    assert ledger.balance().remaining_seconds == 160.0
    with pytest.raises(StudyError, match="less than the .* already spent"):
        ledger.set_budget(SEARCH, 39.0)
    assert ledger.balance().budget_seconds == 200.0


def test_charges_from_several_threads_are_all_counted(ledger):
    def work():
        for _ in range(20):
            ledger.charge(SEARCH, "shared", "train", 0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert ledger.balance().charged_seconds == pytest.approx(40.0)


def test_the_database_is_in_write_ahead_mode(ledger, tmp_path):
    assert sqlite3.connect(tmp_path / "study.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_unknown_account_and_a_file_that_is_no_database_are_said_so(ledger, tmp_path):
    with pytest.raises(StudyError, match="no account 'nobody'. Known: search"):
        ledger.balance("nobody")
    (tmp_path / "broken.db").write_text("this is not a database" * 100)
    with pytest.raises(StudyError, match="cannot be used as a study's database"):
        open_database(tmp_path / "broken.db")


def test_why_it_stopped_is_kept_until_a_new_budget_opens_it(ledger):
    ledger.stop(SEARCH, "the budget is spent")
    ledger.set_budget(SEARCH, 100.0)
    assert ledger.balance().stopped_because == "the budget is spent"
    ledger.set_budget(SEARCH, 200.0)
    assert ledger.balance().stopped_because == ""
