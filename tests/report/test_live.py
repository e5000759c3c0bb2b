import http.client
import sqlite3

import pytest

from budgetlm.budget.database import file_address
from budgetlm.budget.ledger import SEARCH, open_ledger, read_ledger
from budgetlm.config import DATABASE
from budgetlm.errors import ConfigError
from budgetlm.records import append_record
from budgetlm.report.embedded import unpack
from budgetlm.report.live import HERE, Followed, make_server
from tests.conftest import record


def get(server, path, host=None, method="GET"):
    connection = http.client.HTTPConnection(HERE, server.server_address[1], timeout=60)
    connection.request(method, path, headers={"Host": host or f"{HERE}:{server.server_address[1]}"})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), answer.headers
    connection.close()
    return found


def test_the_page_is_served_on_this_machine_alone_and_may_ask_it_for_news(server):
    assert server.server_address[0] == "127.0.0.1"
    status, text, _ = get(server, "/")
    assert status == 200
    assert "data-live" in text
    assert "connect-src &#x27;self&#x27;" in text


def test_news_come_once_and_again_only_when_there_are_any(server, searched):
    status, text, headers = get(server, "/data")
    assert status == 200
    assert unpack(text)["facts"]["name"] == "tiny"
    assert get(server, f"/data?after={headers['ETag'].replace(chr(34), '%22')}")[0] == 204


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example"])
def test_a_page_from_elsewhere_cannot_read_it_through_a_name_of_its_own(server, host):
    assert get(server, "/data", host)[0] == 403


@pytest.mark.parametrize("path", ["/../study.toml", "/studies/tiny/study.toml", "/data/../x"])
def test_nothing_else_is_served(server, path):
    assert get(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_written(server, method):
    assert get(server, "/data", method=method)[0] == 501


def test_a_taken_port_is_a_sentence(server):
    with pytest.raises(ConfigError, match="cannot be used"):
        make_server("tiny", server.server_address[1])


def test_the_page_is_not_made_again_for_every_change(searched):
    seconds = [0.0]
    followed = Followed("tiny", lambda: seconds[0])
    first, _ = followed.data()
    append_record(searched.folder, record(900, 0, 1.0, 1.5))
    assert followed.data()[0] == first
    seconds[0] += 3600
    version, data = followed.data()
    assert version != first
    assert 900 in unpack(data)["frames"]["trials"]["columns"]["trial"]


def test_who_reads_the_ledger_neither_waits_for_a_writer_nor_keeps_one_waiting(searched):
    path = searched.folder / DATABASE
    writer = open_ledger(file_address(path))
    with sqlite3.connect(path, timeout=0.1, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")  # somebody is writing
        reader = read_ledger(file_address(path))
        before = reader.balance(SEARCH).charged_seconds
        other.execute("ROLLBACK")
        with reader._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql("SELECT count(*) FROM budgetlm_charges").fetchall()  # a reader that takes its time
            other.execute("BEGIN IMMEDIATE")
            other.execute("COMMIT")
            writer.stop(SEARCH, "written beside a reader")
    assert reader.balance(SEARCH).stopped_because == "written beside a reader"
    assert before > 0


def test_a_reader_cannot_write(searched):
    from budgetlm.errors import StudyError

    with pytest.raises(StudyError, match="readonly"):
        read_ledger(file_address(searched.folder / DATABASE)).stop(SEARCH, "never")
