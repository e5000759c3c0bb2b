"""Finding and opening a source: the embedded corpora `stdlib` and `site`, a file or a folder, an address, or `hf:owner/name`."""

import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from budgetlm.data.config import TOGETHER, WEIGHTED, DataConfig
from budgetlm.data.fetch import Tick, fetch
from budgetlm.data.formats import ENDINGS, Text, kind_of, read_file, read_rows, text_size
from budgetlm.data.hub import hub_rows, hub_texts, repository_of
from budgetlm.data.sieve import check_near_duplicates, mark_of
from budgetlm.errors import DataError

EMBEDDED = ("stdlib", "site")
WHOLE_HASH_BYTES = 2 * 2**30
"""Above this size in total, files are fingerprinted by name, size, date and their first megabyte instead of in full."""
HUB_MAX_BYTES = 10**9
"""How much of a Hub data set is read where `data.max_bytes` does not say."""
STREAM_HEADS = 2
"""A source is streamed unasked where it is larger than so many heads: less is soon prepared as a whole."""


@dataclass(frozen=True)
class Source:
    """Something that can be read."""

    name: str
    identity: Any
    """What decides its content."""
    texts: Callable[[], Iterator[Text]] = field(repr=False)
    """Its documents, in order."""
    max_bytes: int
    """Where reading stops; 0 for nowhere."""
    size: int
    """About how many bytes of text its files have, or the limit where that is less."""
    streamed: bool
    """Whether its head is prepared first, and the rest beside training."""
    weight: float = 0.0
    """Share of the training tokens that are read from it, where there are several; 0 where all are read equally often."""


def open_sources(config: DataConfig, cache: Path, tick: Tick | None = None) -> list[Source]:
    """Find what is to be read. Nothing is read yet but what fingerprints need, and what is on a web server is fetched into the cache.

    Raises:
        DataError: a source does not exist, or cannot be fetched.
    """
    shares = config.shares
    return [_open(share.source, share.weight, config, cache, tick, alone=len(shares) == 1) for share in shares]


def open_rows(
    config: DataConfig, columns: Sequence[str], cache: Path, remedy: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a source's tables, each with where it stands, for people. A row may lack some of the columns.

    Args:
        columns: those that are wanted; only these are read of parquet.
        remedy: what to do where a file has not these columns.

    Raises:
        DataError: it does not exist, is no table, or cannot be read or fetched.
    """
    for name in (share.source for share in config.shares):
        if name.startswith("hf:"):
            for number, row in enumerate(hub_rows(name, config, columns, cache), 1):
                yield f"row {number:,} of {name}", row
            continue
        if name in EMBEDDED:
            raise DataError(
                f"{name} has no columns. Give a table: a file or folder of csv, jsonl or parquet, or `hf:owner/name`."
            )
        web = name.startswith(("http://", "https://"))
        for path in [fetch(name, cache)] if web else _paths_of(name)[1]:
            yield from read_rows(path, columns, remedy)


def check_sources(config: DataConfig) -> None:
    """See, without reading or fetching anything, that what is named is there.

    Raises:
        DataError: it is not.
        ConfigError: what is asked for needs a package that is not installed.
    """
    check_near_duplicates(config.near_duplicates)
    for share in config.shares:
        if share.source not in EMBEDDED and not share.source.startswith(("hf:", "http://", "https://")):
            _paths_of(share.source)


def _open(name: str, weight: float, config: DataConfig, cache: Path, tick: Tick | None, *, alone: bool) -> Source:
    if name.startswith("hf:"):
        return _hub_source(name, weight, config, cache, alone=alone)
    if name in EMBEDDED:
        root, paths = _embedded(name)
    elif name.startswith(("http://", "https://")):
        path = fetch(name, cache, tick)
        root, paths = path.parent, [path]
    else:
        root, paths = _paths_of(name)
        name = str(Path(name).expanduser())
    return _files_source(name, weight, root, paths, config, alone=alone)


def _paths_of(name: str) -> tuple[Path, list[Path]]:
    path = Path(name).expanduser()
    if not path.exists():
        hint = "Check the path; a data set on the Hugging Face Hub is written `hf:owner/name`."
        if (match := WEIGHTED.fullmatch(name)) and Path(match[1]).expanduser().exists():
            hint = f"A weight is for one of several sources, e.g. `{name}{TOGETHER}site:0.3`."
        raise DataError(f"there is no file or folder {name!r}, and it is not one of {', '.join(EMBEDDED)}. {hint}")
    root, paths = (path.parent, [path]) if path.is_file() else (path, _readable(path))
    if not paths:
        raise DataError(f"the folder {path} has no file that can be read. Known endings: {ENDINGS}.")
    return root, paths


def _embedded(name: str) -> tuple[Path, list[Path]]:
    """Python sources of the interpreter: its own library without tests, or everything installed beside it."""
    root = Path(sysconfig.get_paths()["stdlib" if name == "stdlib" else "purelib"])
    left_out = {"site-packages", "dist-packages", "__pycache__"}
    if name == "stdlib":
        left_out |= {"test", "tests", "idle_test"}
    paths = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - left_out)
        paths += [Path(folder) / file for file in sorted(files) if file.endswith(".py")]
    if not paths:
        raise DataError(f"this Python has no library sources under {root}. Give a source of your own with `--data PATH`.")
    return root, paths


def _readable(folder: Path) -> list[Path]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return [path for path in files if kind_of(path)]


def _files_source(name: str, weight: float, root: Path, paths: list[Path], config: DataConfig, *, alone: bool) -> Source:
    size = sum(map(text_size, paths))
    size = min(size, config.max_bytes or size)
    streamed = alone and _is_streamed(config, size)
    ordered = paths
    if streamed:  # in an order by chance, so that the head is a sample of the whole
        ordered = sorted(paths, key=lambda path: mark_of(os.fsencode(path.relative_to(root))))

    def texts() -> Iterator[Text]:
        for path in ordered:
            yield from read_file(path, config, whole=name in EMBEDDED)

    return Source(name, _fingerprint(root, paths), texts, config.max_bytes, size, streamed, weight)


def _is_streamed(config: DataConfig, size: int) -> bool:
    return config.stream == "on" or (config.stream == "auto" and size > STREAM_HEADS * config.head_bytes)


def _fingerprint(root: Path, paths: list[Path]) -> str:
    in_full = sum(path.stat().st_size for path in paths) <= WHOLE_HASH_BYTES
    content = hashlib.blake2b(digest_size=16)
    for path in paths:
        facts = path.stat()
        content.update(f"{path.relative_to(root)}\0{facts.st_size}\0".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            if in_full:
                content.update(file.read())
            else:
                content.update(f"{facts.st_mtime_ns}\0".encode() + file.read(2**20))
    return content.hexdigest()


def _hub_source(name: str, weight: float, config: DataConfig, cache: Path, *, alone: bool) -> Source:
    repository_of(name)
    most = config.max_bytes or HUB_MAX_BYTES
    identity = [name, config.config, config.split]
    texts = partial(hub_texts, name, config, cache)
    return Source(name, identity, texts, most, most, alone and _is_streamed(config, most), weight)
