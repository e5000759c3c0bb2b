import gzip
import json
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.fetch import ATTEMPTS, DOWNLOADS, fetch
from budgetlm.errors import DataError
from tests.conftest import sentences
from tests.serving import serving

CONTENT = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in sentences(2000)).encode(), 1)


class Server(ThreadingHTTPServer):
    """A web server that cuts connections after so many bytes, or answers with an error, as its script says; then it behaves."""

    daemon_threads = True

    def __init__(self, script=(), content=CONTENT, ranges=True, etag='"one"'):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.content, self.ranges, self.etag = list(script), content, ranges, etag
        self.asked = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/texts/a.jsonl.gz?version=1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range", "whole"))
        does = server.script.pop(0) if server.script else None
        if isinstance(does, str):
            self.send_error(int(does))
            return
        if callable(does):
            does = does(server)
        begin = 0
        if server.ranges and "Range" in self.headers and self.headers["If-Range"] == server.etag:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(server.content) - begin))
        self.send_header("Last-Modified" if "GMT" in server.etag else "ETag", server.etag)
        self.end_headers()
        self.wfile.write(server.content[begin:] if does is None else server.content[begin : begin + does])
        self.close_connection = True

    def log_message(self, *arguments):
        pass


def served(*script, **settings):
    return serving(Server(script, **settings))


def test_a_cut_connection_is_gone_on_with_where_it_stopped(tmp_path):
    waits, arrived = [], []
    with served(10_000, "503", 0, 5_000) as server:
        path = fetch(server.url, tmp_path, arrived.append, waits.append)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["whole", "bytes=10000-", "bytes=10000-", "bytes=10000-", "bytes=15000-"]
    assert waits == [1, 2, 4, 1]
    assert sum(arrived) == len(CONTENT)
    assert path.name == "a.jsonl.gz"


def test_what_is_there_is_not_asked_for_again(tmp_path):
    with served() as server:
        assert fetch(server.url, tmp_path) == fetch(server.url, tmp_path)
    assert server.asked == ["whole"]


def test_a_source_on_a_server_is_read_like_a_file(tmp_path):
    with served() as server:
        config = DataConfig(source=server.url, drop_overlap=False)
        there = prepare_corpus(config, tmp_path)
    assert sum(there.facts.documents.values()) == 2000
    assert there.facts.source == server.url
    assert prepare_corpus(config, tmp_path) == there  # the server is gone


def test_a_file_that_changes_meanwhile_is_begun_anew(tmp_path):
    new = gzip.compress(CONTENT)

    def change(server):
        server.content, server.etag = new, '"two"'

    with served(10_000, change) as server:
        assert fetch(server.url, tmp_path, sleep=lambda _: None).read_bytes() == new
    assert server.asked == ["whole", "bytes=10000-"]


@pytest.mark.parametrize(
    "settings",
    [{"ranges": False}, {"etag": 'W/"weak"'}, {"etag": formatdate(0, usegmt=True)}],
    ids=["no ranges", "weak", "dated"],
)
def test_a_server_of_another_kind_gives_the_same_file(tmp_path, settings):
    with served(10_000, 20_000, **settings) as server:
        assert fetch(server.url, tmp_path, sleep=lambda _: None).read_bytes() == CONTENT
    assert server.asked[-1] == (
        "bytes=30000-" if "GMT" in settings.get("etag", "") else "whole" if "etag" in settings else "bytes=20000-"
    )


def test_a_server_that_never_answers_is_given_up_and_what_arrived_is_kept_for_the_next_command(tmp_path):
    waits = []
    with served(10_000, *["500"] * ATTEMPTS) as server:
        with pytest.raises(
            DataError, match=f"in {ATTEMPTS} attempts: 500 .*0.0 MB have arrived and are kept: repeat the command"
        ):
            fetch(server.url, tmp_path, sleep=waits.append)
        assert waits == [1, 2, 4, 8, 16]
        assert not [path for path in (tmp_path / DOWNLOADS).rglob("*.gz") if not path.name.startswith(".")]
        assert fetch(server.url, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=10000-"


def test_addresses_that_cannot_be_fetched_are_refused_at_once(tmp_path):
    waits = []
    with served("404") as server, pytest.raises(DataError, match="the server refuses .*: 404"):
        fetch(server.url, tmp_path, sleep=waits.append)
    for url in ("https://host", "https:///a.txt", "http://host/folder/"):
        with pytest.raises(DataError, match="names no file"):
            fetch(url, tmp_path, sleep=waits.append)
    assert waits == []
    with pytest.raises(DataError, match=f"could not fetch .* in {ATTEMPTS} attempts: .*refused"):
        fetch(server.url, tmp_path, sleep=waits.append)


def test_a_name_that_would_lead_out_of_the_cache_does_not(tmp_path):
    with served() as server:
        path = fetch(f"http://127.0.0.1:{server.server_port}/..%2f..%2f.hidden.jsonl.gz", tmp_path / "cache")
    assert path.is_relative_to(tmp_path / "cache" / DOWNLOADS)
    assert path.resolve() == path
    assert path.name == "_.._.hidden.jsonl.gz"
