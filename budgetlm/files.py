"""Writing so that a reader never meets half a file, and names that may become paths.

A result is written to a temporary name beside its place, flushed to the disk, and renamed: after a crash or on a full
disk the old content is still there, or nothing, never a part.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from budgetlm.errors import ConfigError, StudyError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def checked_name(name: str, what: str = "study") -> str:
    """`name` itself, if it is safe as the name of a folder.

    Raises:
        ConfigError: it is empty, too long, or has a character that could lead out of its folder.
    """
    if not NAME.fullmatch(name) or ".." in name:
        raise ConfigError(
            f"{name!r} cannot name a {what}: use 1 to 64 letters, digits, `-`, `_` or `.`, beginning with a letter or digit."
        )
    return name


def check_new(path: Path) -> None:
    """See that nothing lies where a result is to be written; an empty folder is nothing.

    Raises:
        ConfigError: something does.
    """
    if (path.is_dir() and any(path.iterdir())) or path.is_file():
        raise ConfigError(f"{path} is there already. Name a new place, or remove it.")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a message that names the file and the room left."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise StudyError(
                f"could not write {path}: {error.strerror} ({_free_mb(path)} MB free). Nothing there was damaged. "
                "Free some space or allow writing, then repeat the command: it goes on where it stopped."
            ) from error
        raise


def _free_mb(path: Path) -> int:
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free // 2**20


def fsync_folder(folder: Path) -> None:
    """Make renames within `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes | Callable[[Path], None]) -> None:
    """Write `path` whole or not at all. `content` is the content, or a function that writes it to the path it is given."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if callable(content):
                content(temporary)
            else:
                temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `path` only once the block has ended without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as handle:
                        os.fsync(handle.fileno())
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
            fsync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_atomic(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        StudyError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise StudyError(f"{path} is missing.") from None
    except ValueError as error:
        raise StudyError(f"{path} is damaged ({error}). Delete it to have it made again.") from error


def append_line(path: Path, value: Any, *, durable: bool = False) -> None:
    """Add `value` as one line of JSON to the end of a file, on a line of its own also after one that a crash cut short.

    Args:
        durable: whether to wait until it is on the disk, and not only safe from the end of this process.
    """
    with disk_errors(path), path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(value).encode() + b"\n")
        if durable:
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[Any]:
    """The values of a JSON-lines file; a last line cut short by a crash is left out."""
    return read_lines_from(path, 0)[0]


def read_lines_from(path: Path, offset: int) -> tuple[list[Any], int]:
    """The values of a JSON-lines file from a byte on, and the byte to go on from.

    A last line without its end is left for the next time, when whoever writes it may be done. Lines that are no JSON, which
    a crash left behind, are passed over.
    """
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        whole, end, _ = file.read().rpartition(b"\n")
    values = []
    for line in whole.splitlines():
        with suppress(ValueError):
            values.append(_parsed(line))
    return values, offset + len(whole) + len(end)


def read_whole_lines(path: Path) -> list[Any]:
    """As `read_lines`, twice as fast where all lines are sound."""
    if not path.exists():
        return []
    text = path.read_bytes().rpartition(b"\n")[0]
    try:
        values: list[Any] = _parsed(b"[" + text.replace(b"\n", b",") + b"]")
    except ValueError:
        return read_lines(path)
    return values


def _parsed(text: bytes) -> Any:
    """A JSON value, three times as fast as by the standard library; by that, where it has `NaN` or the like, as a loss that diverged."""
    try:
        return orjson.loads(text)
    except ValueError:
        return json.loads(text)


def digest(value: Any) -> str:
    """A short fingerprint of anything that JSON can hold; equal values have equal fingerprints."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
