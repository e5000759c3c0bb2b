"""What a worker looks at before it lends a hand: above all whose budget it would spend."""

from dataclasses import replace

import pytest

from budgetlm.budget.clock import ManualClock
from budgetlm.budget.database import file_address
from budgetlm.budget.ledger import SEARCH, open_ledger
from budgetlm.errors import ConfigError, StudyError
from budgetlm.search import join as joining
from budgetlm.search.join import join
from budgetlm.watch import Watcher
from budgetlm.workers.board import Board


@pytest.fixture
def on_a_server(searched, tmp_path, monkeypatch):
    """A study whose file says that its database is a server's, which other machines reach by another address."""
    monkeypatch.setattr("budgetlm.budget.database.check_storage", lambda _storage: None)
    monkeypatch.setattr(joining, "check_storage", lambda _storage: None)
    monkeypatch.setattr(joining, "start_server", lambda *_: None)
    replace(searched, search=replace(searched.search, storage=file_address(tmp_path / "not here.db"))).save(searched.folder)
    return searched


def lend(cache, storage):
    clock = ManualClock()
    return join("tiny", cache, clock, Watcher(), storage=storage, sleep=clock.move)


def test_a_worker_reaches_the_database_by_its_own_address(on_a_server, cache, tmp_path):
    storage = file_address(tmp_path / "here.db")
    ledger = open_ledger(storage, "tiny")
    ledger.set_budget(SEARCH, 1.0)
    ledger.stop(SEARCH, "the budget is spent")
    before = (on_a_server.folder / "study.toml").read_text()
    assert lend(cache, storage).because == "the search is spent"
    assert Board(storage, "tiny").hands() == []
    assert not (tmp_path / "not here.db").exists()
    assert (on_a_server.folder / "study.toml").read_text() == before


@pytest.mark.parametrize("scope", ["", "another"])
def test_a_database_that_does_not_know_the_study_is_refused_lest_its_budget_be_spent_twice(
    on_a_server, cache, tmp_path, scope
):
    storage = file_address(tmp_path / "other.db")
    open_ledger(storage, scope).set_budget(SEARCH, 1.0)
    with pytest.raises(StudyError, match=r"other\.db knows no study 'tiny'. Give the address .* that was sqlite.*not here"):
        lend(cache, storage)


def test_a_study_with_a_database_of_its_own_is_joined_without_an_address(searched, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "check_storage", lambda _storage: None)
    with pytest.raises(StudyError, match=r"is the file .*study\.db, and no server's. Leave `--storage` out"):
        lend(cache, file_address(tmp_path / "other.db"))


def test_what_is_no_address_is_refused_at_once(cache):
    with pytest.raises(ConfigError, match="no address of a database"):
        lend(cache, "my database")
