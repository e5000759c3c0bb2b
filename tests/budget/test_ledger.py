import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from budgetlm.budget.database import file_address
from budgetlm.budget.holder import Holder, this_process
from budgetlm.budget.ledger import HEARTBEAT_SECONDS, SEARCH, open_ledger
from budgetlm.errors import BudgetExhausted, LeaseLost, StudyError


@pytest.fixture
def ledger(tmp_path):
    ledger = open_ledger(file_address(tmp_path / "study.db"))
    ledger.set_budget(SEARCH, 100.0)
    return ledger


def never(_seconds):
    raise AssertionError("there was nothing to wait for")


def test_charges_add_up_by_run_and_purpose_and_survive_reopening(ledger, tmp_path):
    lease = ledger.lease(SEARCH, 50.0)
    lease.charge("a", {"train": 2.0, "evaluate": 0.5})
    lease.charge("a", {"train": 3.0})
    lease.charge("b", {"evaluate": 1.0})
    ledger.set_budget("final", 60.0)
    ledger.lease("final", 60.0).charge("f", {"train": 50.0})  # another account
    reopened = open_ledger(file_address(tmp_path / "study.db"))
    balance = reopened.balance(SEARCH)
    assert balance.charged_seconds == 6.5
    assert {p: s for p, s in balance.by_purpose.items() if s} == {"train": 5.0, "evaluate": 1.5}
    assert reopened.by_run() == {"a": {"train": 5.0, "evaluate": 0.5}, "b": {"evaluate": 1.0}}
    assert reopened.charged_to(SEARCH, "a") == 5.5


def test_what_is_leased_is_set_aside_falls_as_it_is_used_and_the_rest_comes_back(ledger):
    lease = ledger.lease(SEARCH, 40.0)
    assert ledger.balance().remaining_seconds == 60.0
    lease.charge("a", {"train": 10.0})
    balance = ledger.balance()
    assert (balance.charged_seconds, balance.leased_seconds, balance.remaining_seconds) == (10.0, 30.0, 60.0)
    lease.settle()
    assert ledger.balance().remaining_seconds == 90.0


def test_nobody_leases_what_somebody_else_has_leased(ledger):
    first = ledger.lease(SEARCH, 70.0)
    with pytest.raises(BudgetExhausted, match=r"40.0 device-seconds are wanted, and 30.0 are left"):
        ledger.lease(SEARCH, 40.0)
    second = ledger.lease(SEARCH, 30.0)
    assert not second.hold(31.0)
    assert first.hold(50.0)
    assert second.hold(50.0)
    assert ledger.balance().remaining_seconds == 0.0


def test_leases_taken_at_the_same_moment_never_pass_the_budget(ledger, tmp_path):
    taken, refused = [], []

    def work():
        own = open_ledger(file_address(tmp_path / "study.db"))
        for _ in range(10):
            try:
                taken.append(own.lease(SEARCH, 4.0))
            except BudgetExhausted:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert (len(taken), len(refused)) == (25, 15)
    assert ledger.balance().leased_seconds == 100.0


def test_devices_multiply(ledger):
    lease = ledger.lease(SEARCH, 80.0, devices=4)
    lease.charge("a", {"train": 10.0})
    assert ledger.balance().charged_seconds == 40.0
    assert ledger.balance().leased_seconds == 40.0


def test_time_explained_later_moves_between_purposes_and_changes_no_sum(ledger):
    lease = ledger.lease(SEARCH, 50.0)
    lease.charge("a", {"other": 5.0})
    lease.charge("a", {"other": -4.0, "train": 4.0})
    assert ledger.by_run() == {"a": {"other": 1.0, "train": 4.0}}
    assert ledger.balance().leased_seconds == 45.0


def _process_that_leases(folder, seconds, ending):
    code = f"""
import os, signal
from budgetlm.budget.database import file_address
from budgetlm.budget.ledger import *
ledger = open_ledger(file_address(__import__("pathlib").Path({str(folder)!r}) / "study.db"))
lease = ledger.lease(SEARCH, {seconds}, run="dies")
lease.charge("dies", {{"train": 5.0}})
print(os.getpid(), flush=True)
{ending}
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_the_lease_of_a_killed_process_is_charged_one_interval_more_and_released_by_whoever_comes_next(ledger, tmp_path):
    with _process_that_leases(tmp_path, 60.0, "os.kill(os.getpid(), signal.SIGKILL)") as process:
        process.wait()
    assert ledger.balance().remaining_seconds == 40.0
    [(lease, seconds)] = ledger.release_the_dead(never)
    assert (lease.run, seconds) == ("dies", HEARTBEAT_SECONDS)
    assert ledger.by_run() == {"dies": {"train": 5.0, "lost": HEARTBEAT_SECONDS}}
    assert ledger.balance().remaining_seconds == 100.0 - 5.0 - HEARTBEAT_SECONDS
    assert ledger.release_the_dead(never) == []
    assert ledger.release(lease) == 0.0


def test_the_lease_of_a_living_process_is_left_alone_even_when_it_is_stopped(ledger, tmp_path):
    with _process_that_leases(tmp_path, 60.0, "signal.pause()") as process:
        try:
            pid = int(process.stdout.readline())
            os.kill(pid, signal.SIGSTOP)
            assert ledger.release_the_dead(never) == []
            assert ledger.balance().leased_seconds == 55.0
        finally:
            process.kill()


def test_no_more_than_the_lease_is_charged_for_the_dead(ledger, tmp_path):
    with _process_that_leases(tmp_path, 5.25, "os.kill(os.getpid(), signal.SIGKILL)") as process:
        process.wait()
    [(_, seconds)] = ledger.release_the_dead(never)
    assert seconds == pytest.approx(0.25)


def test_a_holder_that_cannot_be_seen_is_dead_when_it_gives_no_heartbeat_while_it_is_watched(ledger, monkeypatch):
    elsewhere = dataclasses.replace(this_process(), machine="another boot")
    with monkeypatch.context() as patch:
        patch.setattr("budgetlm.budget.ledger.this_process", lambda: elsewhere)
        beating, silent = ledger.lease(SEARCH, 10.0), ledger.lease(SEARCH, 20.0)
    waited = []

    def wait(seconds):
        waited.append(seconds)
        beating.charge("a", {"train": 1.0})

    assert [lease.left_seconds for lease, _ in ledger.release_the_dead(wait)] == [20.0]
    assert waited == [10 * HEARTBEAT_SECONDS]
    beating.charge("a", {"train": 1.0})
    with pytest.raises(LeaseLost, match="took this one for dead"):
        silent.charge("b", {"train": 1.0})


def test_a_pid_used_again_is_not_the_holder():
    own = this_process()
    assert own.alive() is True
    assert dataclasses.replace(own, started=own.started + 1).alive() is False
    assert Holder("another boot", own.pid, own.started).alive() is None


def test_a_budget_may_rise_but_not_fall_below_what_is_spent(ledger):
    lease = ledger.lease(SEARCH, 40.0)
    lease.charge("a", {"train": 40.0})
    lease.settle()
    ledger.set_budget(SEARCH, 200.0)
    assert ledger.balance().remaining_seconds == 160.0
    with pytest.raises(StudyError, match="less than the .* already spent"):
        ledger.set_budget(SEARCH, 39.0)
    assert ledger.balance().budget_seconds == 200.0


def test_the_database_is_in_write_ahead_mode(ledger, tmp_path):
    assert sqlite3.connect(tmp_path / "study.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_unknown_account_and_a_file_that_is_no_database_are_said_so(ledger, tmp_path):
    with pytest.raises(StudyError, match="no account 'nobody'. Known: search"):
        ledger.balance("nobody")
    with pytest.raises(StudyError, match="no account 'nobody'"):
        ledger.lease("nobody", 1.0)
    (tmp_path / "broken.db").write_text("this is not a database" * 100)
    with pytest.raises(StudyError, match="cannot be used as a study's database"):
        open_ledger(file_address(tmp_path / "broken.db"))


def test_why_it_stopped_is_kept_until_a_new_budget_opens_it(ledger):
    ledger.stop(SEARCH, "the budget is spent")
    ledger.set_budget(SEARCH, 100.0)
    assert ledger.balance().stopped_because == "the budget is spent"
    ledger.set_budget(SEARCH, 200.0)
    assert ledger.balance().stopped_because == ""


def test_nothing_in_the_ledger_is_a_date(ledger, tmp_path):
    ledger.lease(SEARCH, 10.0).charge("a", {"train": 1.0})
    with sqlite3.connect(tmp_path / "study.db") as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where name like 'budgetlm%'")]
        numbers = [v for t in tables for row in database.execute(f"select * from {t}") for v in row if isinstance(v, float)]
    assert numbers
    assert max(numbers) < 1e6  # seconds since 1970 would be above 1e9
