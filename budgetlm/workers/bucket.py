"""A bucket: an address of fsspec's (`s3://…`, `gs://…`, `file:///…`) to which folders of files are sent whole, and fetched whole by other machines.

Buckets have no rename. So every folder that is sent, a parcel, has a place of its own that nobody writes to again, and its manifest, with the size and
the digest of each file, is written last: a parcel without one, or whose files are not what it says, is as good as none, whatever cut it off.

    ADDRESS/STUDY/KEY/00000123-9f3c1a20/{tensors.safetensors, state.json, whole.json}
"""

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from budgetlm.errors import BucketAway, BudgetlmError, ConfigError
from budgetlm.files import checked_name, new_folder

MANIFEST = "whole.json"
KEEP = 2
"""Whole parcels of a key that are kept: the newest, and one before it in case that cannot be read."""
ATTEMPTS = 3
"""At anything that a network can spoil. The waits between them are 1 and 2 s: who comes again soon need not insist."""
CHUNK_BYTES = 2**23
NOT_SHARED = ("http", "https", "memory", "data")
"""Kinds of addresses that fsspec knows and several machines cannot write to."""
FINAL = (PermissionError, FileNotFoundError, NotImplementedError)
"""What another attempt would meet again."""

T = TypeVar("T")


def check_shared(address: str) -> None:
    """Refuse an address that is no bucket of ours, or that says more than a study's file should know.

    Args:
        address: e.g. `s3://bucket/folder`; empty for none.

    Raises:
        ConfigError: what is wrong with it.
    """
    if not address:
        return
    example = "E.g. s3://my-bucket/budgetlm, or file:///mnt/shared"
    kind, _, rest = address.partition("://")
    if not rest or "::" in address or kind in NOT_SHARED or (kind in ("file", "local") and not rest.startswith("/")):
        raise ConfigError(
            f"search.shared is {address!r}, which is no address that several machines can write to. {example}."
        )
    if urlsplit(address).password is not None:
        raise ConfigError(
            "search.shared holds a password, and a study's file would keep it for all to read. Leave it out, and put it where the "
            "library of that bucket looks for it on every machine (for S3, AWS_SECRET_ACCESS_KEY or ~/.aws/credentials)."
        )
    import fsspec

    try:
        fsspec.get_filesystem_class(kind)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"search.shared is {address!r}, but {str(error).rstrip('.')}. {example}.") from None


@dataclass(frozen=True)
class _Parcel:
    number: int
    place: str
    whole: bool


class _TornError(Exception):
    """A parcel is not what its manifest says."""


class Bucket:
    """One study's part of a bucket.

    Args:
        address: as fsspec has it.
        study: its name.
        sleep: waits before another attempt.

    Every method raises `BucketAway` where the bucket cannot be used, after a few attempts.
    """

    def __init__(self, address: str, study: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.address, self._study, self._sleep = address, checked_name(study), sleep
        self._opened: tuple[Any, str] | None = None

    def send(self, key: str, number: int, files: Mapping[str, BinaryIO], go_on: Callable[[], bool] = lambda: True) -> None:
        """Send a parcel, and forget those of the same key that it makes needless.

        Args:
            key: names, divided by slashes.
            number: of two parcels of a key the one with the higher number is the newer.
            files: open for reading, by name. They are read from their beginning, also where they have no name on the disk any more.
            go_on: asked every few megabytes; where it says no, the parcel stays torn.
        """
        self._outlast(lambda: self._send(f"{self._at(key)}/{number:08d}-{secrets.token_hex(4)}", files, go_on))
        if go_on():
            self._outlast(lambda: self._forget_older(key))

    def send_folder(self, key: str, number: int, folder: Path) -> None:
        """The same with the files that lie in a folder."""
        files = {path.name: path.open("rb") for path in sorted(folder.iterdir()) if path.is_file()}
        try:
            self.send(key, number, files)
        finally:
            for file in files.values():
                file.close()

    def fetch(self, key: str, to: Callable[[int], Path], beyond: int = -1) -> Path | None:
        """Fetch the newest parcel of a key that is whole.

        Args:
            to: the folder to be made of the parcel of a number.
            beyond: only what has a higher number is wanted.

        Returns:
            That folder; None if there is none.

        Raises:
            StudyError: the disk here is full.
        """
        for parcel in self._outlast(lambda: self._parcels(key)):
            if parcel.whole and parcel.number > beyond:
                with suppress(_TornError):
                    return self._outlast(lambda parcel=parcel: self._fetch(parcel, to(parcel.number)))  # type: ignore[misc]
        return None

    def newest(self, key: str) -> int:
        """The highest number of a key's parcels that have a manifest; -1 if there is none."""
        parcels = self._outlast(lambda: self._parcels(key))
        return max((parcel.number for parcel in parcels if parcel.whole), default=-1)

    def names(self, key: str) -> set[str]:
        """What there is directly under a key."""
        return {path.partition("/")[0] for path in self._outlast(lambda: self._find(key))}

    def forget(self, key: str) -> None:
        """Remove all parcels of a key, and of those below it."""
        self._outlast(lambda: self._remove(self._at(key)))

    def keep(self, key: str, names: set[str]) -> None:
        """Remove all that is under a key but what has one of these names there."""
        for name in self.names(key) - names:
            self.forget(f"{key}/{name}")

    # --- once ---

    def _open(self) -> tuple[Any, str]:
        """The file system, and the path within it."""
        if not self._opened:  # not before it is needed: whoever is forked must not inherit connections
            from fsspec.core import url_to_fs

            files, path = url_to_fs(self.address)
            self._opened = files, path.rstrip("/")
        return self._opened

    def _at(self, key: str) -> str:
        parts = [checked_name(part, "part of a bucket") for part in key.split("/")]
        return "/".join([self._open()[1], self._study, *parts])

    def _send(self, place: str, files: Mapping[str, BinaryIO], go_on: Callable[[], bool]) -> None:
        there = self._open()[0]
        there.makedirs(place, exist_ok=True)
        manifest = {}
        for name, file in files.items():
            content, size = hashlib.blake2b(), file.seek(0)
            with there.open(f"{place}/{name}", "wb") as copy:
                while part := file.read(CHUNK_BYTES):
                    if not go_on():
                        return
                    copy.write(part)
                    content.update(part)
                    size += len(part)
            manifest[name] = {"bytes": size, "blake2b": content.hexdigest()}
        there.pipe_file(f"{place}/{MANIFEST}", json.dumps(manifest).encode())

    def _fetch(self, parcel: _Parcel, folder: Path) -> Path:
        try:
            manifest = json.loads(b"".join(self._read(f"{parcel.place}/{MANIFEST}")))
            wanted = {checked_name(name): (facts["bytes"], facts["blake2b"]) for name, facts in manifest.items()}
        except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            raise _TornError from error
        with new_folder(folder) as new:
            for name, facts in wanted.items():
                content, size = hashlib.blake2b(), 0
                with (new / name).open("wb") as file:
                    for part in self._read(f"{parcel.place}/{name}"):
                        file.write(part)
                        content.update(part)
                        size += len(part)
                if (size, content.hexdigest()) != facts:
                    raise _TornError
        return folder

    def _read(self, path: str) -> Iterator[bytes]:
        """A file, part by part. Its errors are the bucket's, and not those of the disk that it is written to."""
        try:
            with self._open()[0].open(path, "rb") as file:
                while part := file.read(CHUNK_BYTES):
                    yield part
        except FileNotFoundError as error:  # forgotten meanwhile
            raise _TornError from error
        except Exception as error:
            raise _AwayError(error) from error

    def _find(self, key: str) -> list[str]:
        """Paths of all files of a key, from there on."""
        there, place = self._open()[0], self._at(key)
        there.invalidate_cache()  # others write, too
        try:
            return [path.removeprefix(f"{place}/") for path in there.find(place)]
        except FileNotFoundError:
            return []

    def _parcels(self, key: str) -> list[_Parcel]:
        """Those of a key, newest first."""
        found: dict[tuple[int, str], bool] = {}
        for path in self._find(key):
            if named := re.fullmatch(r"((\d{8,})-[0-9a-f]{8})/([^/]+)", path):
                at = int(named[2]), f"{self._at(key)}/{named[1]}"
                found[at] = found.get(at, False) or named[3] == MANIFEST
        return [_Parcel(number, place, whole) for (number, place), whole in sorted(found.items(), reverse=True)]

    def _forget_older(self, key: str) -> None:
        parcels = self._parcels(key)
        kept = [parcel for parcel in parcels if parcel.whole][:KEEP]
        for parcel in parcels:  # one that is newer and not whole may be under way
            if kept and parcel not in kept and parcel.number <= kept[0].number:
                self._remove(parcel.place)

    def _remove(self, place: str) -> None:
        with suppress(FileNotFoundError):
            self._open()[0].rm(place, recursive=True)

    # --- again and again ---

    def _outlast(self, work: Callable[[], T]) -> T:
        for left in reversed(range(ATTEMPTS)):
            try:
                return work()
            except (BudgetlmError, _TornError):
                raise
            except Exception as error:  # whatever the library of a bucket raises
                cause = error.cause if isinstance(error, _AwayError) else error
                if not left or isinstance(cause, FINAL):
                    said = (str(cause) or type(cause).__name__).strip().splitlines()[0]
                    raise BucketAway(
                        f"{self.address} cannot be used: {said}. Check that this machine reaches it and may read and write there."
                    ) from error
            self._sleep(2.0 ** (ATTEMPTS - 1 - left))
        raise AssertionError


class _AwayError(Exception):
    """What a bucket raised while it was read."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause
