"""A Hugging Face Hub on this machine, with one data set, as far as `datasets` asks for it."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.serving import serving

REPOSITORY = "someone/texts"
BEGINNING = """
import json, sys, time
time.sleep = lambda seconds: None  # between attempts
import datasets
datasets.config.STREAMING_READ_MAX_RETRIES = 3
from budgetlm.data import hub
from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from pathlib import Path

hub.PART_CHARS = 20_000
cache = Path(sys.argv[1])


def texts(**settings):
    return hub.hub_texts("hf:someone/texts", DataConfig(source="hf:someone/texts", **settings), cache)
"""


def lines(count: int, first: int = 0) -> bytes:
    return b"".join(
        json.dumps({"text": f"row {first + i} {'word ' * 20}", "number": i}).encode() + b"\n" for i in range(count)
    )


@dataclass
class Hub:
    """Its files, and what was asked of it."""

    files: dict[str, bytes] = field(default_factory=lambda: {f"data/train-{k}.jsonl": lines(250, 250 * k) for k in range(6)})
    commit: str = "a" * 40
    drops: dict[str, list[int]] = field(default_factory=dict)
    """After how many bytes the next connections for a file break, first to last."""
    asked: list[str] = field(default_factory=list)
    """Files whose content was asked for."""
    url: str = ""

    def python(self, code: str, cache: Path) -> subprocess.CompletedProcess:
        """Run code after the beginning above, in a process that knows no other Hub."""
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache / "hf"),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        environment.pop("HF_HUB_OFFLINE", None)
        return subprocess.run(
            [sys.executable, "-c", BEGINNING + code, str(cache)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def facts(self) -> bytes:
        siblings = [{"rfilename": path} for path in self.files]
        return json.dumps(
            {"id": REPOSITORY, "sha": self.commit, "private": False, "tags": [], "siblings": siblings}
        ).encode()

    def tree(self, folder: str) -> bytes:
        inside = {path.removeprefix(folder): content for path, content in self.files.items() if path.startswith(folder)}
        files = [
            {"type": "file", "path": folder + p, "size": len(c), "oid": "b" * 40} for p, c in inside.items() if "/" not in p
        ]
        folders = {folder + p.split("/")[0] for p in inside if "/" in p}
        return json.dumps(files + [{"type": "directory", "path": p, "oid": "c" * 40} for p in sorted(folders)]).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        api = f"/api/datasets/{REPOSITORY}"
        if path.startswith(f"{api}/tree/"):
            folder = path.removeprefix(f"{api}/tree/").partition("/")[2]
            self._answer(200, hub.tree(folder and folder.rstrip("/") + "/"))
        elif path == api or path.startswith(f"{api}/revision/"):
            self._answer(200, hub.facts())
        elif "/resolve/" in path and (name := path.split("/resolve/")[1].partition("/")[2]) in hub.files:
            self._file(hub, name)
        else:
            self._answer(404, b"", X_Error_Code="EntryNotFound")

    def _file(self, hub, name):
        content, span = hub.files[name], self.headers.get("Range")
        first, last = span.removeprefix("bytes=").split("-") if span else ("0", "")
        part = content[int(first) : int(last or len(content)) + 1]
        headers = {"ETag": f'"{hub.commit}"', "X_Repo_Commit": hub.commit}
        if span:
            headers["Content_Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        drop = None
        if self.command == "GET":
            hub.asked.append(name)
            drop = hub.drops[name].pop(0) if hub.drops.get(name) else None
        self._answer(206 if span else 200, part, drop, **headers)

    def _answer(self, code, body, drop=None, **headers):
        self.send_response(code)
        for key, value in {**headers, "Content_Length": str(len(body))}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if drop is None else body[:drop])
        self.close_connection = self.close_connection or drop is not None

    def log_message(self, *arguments):
        pass


@contextmanager
def local_hub(**settings):
    hub = Hub(**settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads, server.hub = True, hub
    hub.url = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield hub
