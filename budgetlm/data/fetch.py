"""A file on a web server -> the cache, whole or not at all, going on after a broken connection where it stopped.

What has arrived lies in a `.part` file, beside it the server's ETag (or date of change): it is gone on with by an HTTP range request that the server answers only
for the same content (`If-Range`, RFC 9110), and begun anew where that has changed. What is there whole is not asked for again.
"""

import errno
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from budgetlm.errors import DataError
from budgetlm.files import digest, disk_errors, fsync_folder, read_json, write_json

ATTEMPTS = 6
"""Connections in a row that may fail; one that brings something counts anew. The waits between them are 1, 2, 4, 8 and 16 s."""
TIMEOUT_SECONDS = 60.0
CHUNK_BYTES = 2**20
NAME_CHARS = 100
"""Of a file's name that are kept, its last: they say what it is."""
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP errors that may be over soon."""
DOWNLOADS = "downloads"

Tick = Callable[[int], None]


def fetch(url: str, cache: Path, tick: Tick | None = None, sleep: Callable[[float], None] = time.sleep) -> Path:
    """The file of an address, from the cache or fetched into it. Two processes may ask for it at once.

    Args:
        tick: called with the bytes that have just arrived.
        sleep: waits before another attempt.

    Raises:
        DataError: the address names no file, the server refuses, or it cannot be reached time after time; what has arrived is kept.
    """
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    if not name or not urlsplit(url).hostname:
        raise DataError(f"{url!r} names no file. Write it as `https://host/path/file.jsonl.gz`.")
    folder = cache / DOWNLOADS / digest(url)
    whole = folder / re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-NAME_CHARS:].lstrip(".-")
    if not whole.exists():
        with disk_errors(whole):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not whole.exists():
                    _fetch(url, whole, tick or (lambda _: None), sleep)
    return whole


def _fetch(url: str, whole: Path, tick: Tick, sleep: Callable[[float], None]) -> None:
    part = whole.with_name(f".{whole.name}.part")
    failures = 0
    while True:
        before = _size(part)
        try:
            size = _receive(url, part, tick)
            if size is not None and _size(part) != size:
                raise http.client.IncompleteRead(b"", size - _size(part))
            break
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # what is there is not of the file that there is now
                part.unlink(missing_ok=True)
            elif error.code not in PASSING:
                raise DataError(f"the server refuses {url}: {error.code} {error.reason}. Check the address.") from error
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in OF_THE_DISK:
                raise
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if _size(part) > before else failures + 1
        if failures >= ATTEMPTS:
            raise DataError(
                f"could not fetch {url} in {ATTEMPTS} attempts: {reason}. {_size(part) / 1e6:,.1f} MB have arrived and are kept: repeat the "
                "command to go on."
            )
        sleep(2.0 ** (failures - 1))
    part.replace(whole)
    fsync_folder(whole.parent)


def _receive(url: str, part: Path, tick: Tick) -> int | None:
    """Append what one connection brings. Returns the size of the whole file, if the server says it."""
    facts, there = part.with_suffix(".json"), _size(part)
    same = str(read_json(facts)["same"]) if there and facts.exists() else ""
    if not same:  # nothing would tell whether the rest is of the same file
        part.unlink(missing_ok=True)
        there = 0
    headers = {"User-Agent": "budgetlm", "Accept-Encoding": "identity"}
    headers |= {"Range": f"bytes={there}-", "If-Range": same} if there else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # `http(s)` was asked for
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {there}-")
        there = there if goes_on else 0
        tag = response.headers.get("ETag", "")
        same = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
        write_json(facts, {"url": url, "same": same})
        length = response.headers.get("Content-Length")
        with part.open("ab" if goes_on else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                tick(len(chunk))
    return there + int(length) if length and length.isdigit() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
