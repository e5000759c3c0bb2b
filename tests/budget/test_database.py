import threading

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from budgetlm.budget import database
from budgetlm.budget.database import check_storage, outlast
from budgetlm.budget.ledger import SEARCH, open_ledger
from budgetlm.config import study_config
from budgetlm.errors import BudgetExhausted, ConfigError, StudyError
from budgetlm.workers.board import Board
from tests.postgres import found, server

AWAY = OperationalError("", {}, Exception("the server closed the connection"))


class Elsewhere:
    """An engine on a server, as far as `outlast` looks at it."""

    class dialect:  # noqa: N801
        name = "postgresql"


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("postgresql+psycopg://me:secret@host/db", "password"),
        ("mysql://me@host/db", "postgresql"),
        ("my database", "no address"),
    ],
)
def test_an_address_that_cannot_be_is_refused_and_never_repeats_a_password(storage, message):
    with pytest.raises(ConfigError, match=message) as refused:
        study_config({"search": {"storage": storage}})
    assert "secret" not in str(refused.value)


def test_what_a_server_interrupts_is_done_again_and_told_so(monkeypatch):
    monkeypatch.setattr(database, "RETRY_SECONDS", 0.0)
    asked = []

    def work(again):
        asked.append(again)
        if len(asked) < 3:
            raise AWAY
        return "done"

    assert outlast(Elsewhere(), work) == "done"
    assert asked == [False, True, True]


def test_a_server_that_stays_away_and_a_file_that_fails_are_errors(monkeypatch):
    monkeypatch.setattr(database, "RETRY_SECONDS", 0.0)

    def fail(_again):
        raise AWAY

    with pytest.raises(OperationalError):
        outlast(Elsewhere(), fail, seconds=0.0)
    with pytest.raises(OperationalError):
        outlast(create_engine("sqlite://"), fail, seconds=1e9)


@pytest.fixture
def opened():
    """Opens ledgers and boards, and closes them afterwards."""
    those = []

    def opener(what, *arguments):
        those.append(what(*arguments))
        return those[-1]

    yield opener
    for one in those:
        one.close()


@pytest.fixture(scope="module")
def postgres():
    pytest.importorskip("psycopg")
    if not found():
        pytest.skip("there is no PostgreSQL here")
    with server() as it:
        check_storage(it.storage)
        yield it


def test_studies_in_one_database_do_not_see_each_other(postgres, opened):
    one, other = (opened(open_ledger, postgres.storage, name) for name in ("one", "other"))
    for ledger, seconds in ((one, 10.0), (other, 20.0)):
        ledger.set_budget(SEARCH, seconds)
    one.lease(SEARCH, 4.0).charge("r", {"train": 3.0})
    assert (one.balance().remaining_seconds, other.balance().remaining_seconds) == (6.0, 20.0)
    assert other.open_leases() == []
    assert other.accounts() == [SEARCH]


def test_many_at_once_never_lease_more_than_there_is(postgres, opened):
    ledger = opened(open_ledger, postgres.storage, "crowd")
    ledger.set_budget(SEARCH, 20.0)
    taken, refused = [], []

    def take():
        mine = opened(open_ledger, postgres.storage, "crowd")
        for _ in range(5):
            try:
                lease = mine.lease(SEARCH, 2.0)
            except BudgetExhausted:
                refused.append(1)
                continue
            lease.charge("r", {"train": 1.5})
            taken.append(lease)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) + len(refused) == 30
    assert len(taken) == 10
    assert ledger.balance().charged_seconds == pytest.approx(15.0)


def test_a_server_that_is_restarted_loses_nothing_and_counts_nothing_twice(postgres, opened):
    ledger, board = opened(open_ledger, postgres.storage, "outage"), opened(Board, postgres.storage, "outage")
    ledger.set_budget(SEARCH, 100.0)
    lease, hand = ledger.lease(SEARCH, 50.0), board.join()
    lease.charge("r", {"train": 1.0})
    postgres.stop()
    back = threading.Timer(0.1, postgres.start)
    back.start()
    lease.charge("r", {"train": 2.0})
    assert board.say(hand, 0, [{"spent": {}}], 0)
    back.join()
    assert ledger.balance().charged_seconds == pytest.approx(3.0)
    assert ledger.open_leases()[0].left_seconds == pytest.approx(47.0)
    assert len(board.words()) == 1


def test_a_server_that_is_not_there_is_a_clear_error(monkeypatch):
    pytest.importorskip("psycopg")
    monkeypatch.setattr(database, "FIRST_SECONDS", 0.0)
    with pytest.raises(StudyError, match="cannot be used"):
        open_ledger("postgresql+psycopg://me@127.0.0.1:1/db")
