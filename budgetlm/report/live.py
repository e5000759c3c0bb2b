"""A page that follows its study: served on this machine alone, to be read alone. Nothing that it does can keep a search waiting.

The server is the standard library's. It answers GET for two addresses, the page and its data, and only where the browser says that it
asked for this machine, so that no page from elsewhere can read it through a name of its own (DNS rebinding). Files and database
are only read, each for an instant (`studies.ledger_of`).
"""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from budgetlm.config import STUDIES
from budgetlm.errors import BudgetlmError, ConfigError
from budgetlm.records import CURVES, RUNS
from budgetlm.report.embedded import pack
from budgetlm.report.facts import collect
from budgetlm.report.page import page, page_data
from budgetlm.studies import IMPORTANCE

HERE = "127.0.0.1"
LEAST_SECONDS, COST_SHARE = 2.0, 10.0
"""A page is made anew at most so often, and at most every so many times the time that it took: it must not take the search's processor."""


class Followed:
    """A study that is looked at again and again: its page and data are made anew only when something has changed.

    Args:
        name: of the study.
        now: a monotonic clock.
    """

    def __init__(self, name: str, now: Callable[[], float] = time.monotonic) -> None:
        self.name, self._now, self._lock = name, now, threading.Lock()
        self._version, self._data, self._not_before = "", "", 0.0

    def data(self) -> tuple[str, str]:
        """A version, and the page's data as it carries them."""
        with self._lock:
            began, version = self._now(), self._changed()
            if version != self._version and (not self._version or began >= self._not_before):
                self._data = pack(page_data(collect(self.name)))
                self._version = version
                self._not_before = self._now() + max(LEAST_SECONDS, COST_SHARE * (self._now() - began))
            return self._version, self._data

    def page(self) -> str:
        """The page itself."""
        return page(collect(self.name), live=True)

    def _changed(self) -> str:
        """A fingerprint of what the page is made from: sizes of files that only grow, and their number."""
        folder = STUDIES / self.name
        watched = [folder / RUNS, folder / IMPORTANCE, *sorted((folder / CURVES).glob("*.jsonl"))]
        sizes = [path.stat().st_size for path in watched if path.exists()]
        return f'"{len(sizes)}-{sum(sizes)}"'


def make_server(study: str, port: int) -> ThreadingHTTPServer:
    """A server of one study's page; `serve_forever` makes it work.

    Args:
        port: 0 for any that is free.

    Raises:
        ConfigError: the port is taken.
    """
    followed = Followed(study)

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "budgetlm", ""

        def do_GET(self) -> None:
            if self.headers.get("Host", "").rsplit(":", 1)[0] not in (HERE, "localhost"):
                self._answer(403, "text/plain", "this page is for this machine alone\n")
                return
            asked = urlsplit(self.path)
            try:
                if asked.path == "/":
                    self._answer(200, "text/html", followed.page())
                elif asked.path == "/data":
                    version, data = followed.data()
                    known = parse_qs(asked.query).get("after") == [version]
                    self._answer(204 if known else 200, "text/plain", "" if known else data, version)
                else:
                    self._answer(404, "text/plain", "there is nothing here\n")
            except BudgetlmError as error:
                self._answer(503, "text/plain", f"{error}\n")

        def _answer(self, status: int, kind: str, text: str, version: str = "") -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            if version:
                self.send_header("ETag", version)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: the terminal is for people."""

    try:
        return ThreadingHTTPServer((HERE, port), Handler)
    except OSError as error:
        raise ConfigError(
            f"port {port} of {HERE} cannot be used: {error.strerror}. Name another one with `--port`."
        ) from error
