"""A source of text -> documents on disk, without duplicates, split by content.

1. Find: the embedded corpora `stdlib` and `site`, a file or a folder, or `hf:owner/name` on the Hugging Face Hub.
2. Read: everything arrives as a stream of rows through the `datasets` library.
3. Split: a document goes to training or validation by the hash of its text, so it never moves when the corpus grows, and
   an exact duplicate is dropped rather than straddling the two.
4. Keep: one file of text for each split, beside the facts of what was read. Whole or absent, and kept by content.

Of a large source only the head is kept so; the rest is read beside training (`data/rest.py`).
"""

import hashlib
import os
import re
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from budgetlm.errors import ConfigError, DataError
from budgetlm.files import digest, new_folder, read_json, write_json

EMBEDDED = ("stdlib", "site")
TABLE_KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
TEXT_ENDINGS = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".c", ".h", ".cpp", ".js", ".ts", ".rs", ".go", ".java"}
PIECE_BYTES = 16 * 1024
"""A text file of the user's beyond 64 of these is cut at line ends into documents of about this size, so that one long
book still has a validation split. Files of the embedded corpora stay whole."""
WHOLE_HASH_BYTES = 2 * 2**30
"""Above this size in total, files are fingerprinted by name, size, date and their first megabyte instead of in full."""
HUB_MAX_BYTES = 10**9
"""How much of a Hub data set is read where `data.max_bytes` does not say."""
STREAM_HEADS = 2
"""A source is streamed unasked where it is larger than so many heads: less is soon prepared as a whole."""
STREAM_CHOICES = ("auto", "on", "off")
FORMAT = 1
"""Raised when the files written here change their meaning, so that old ones are made again."""

Tick = Callable[[int], None]
"""Called with the number of bytes just done: what a progress bar wants."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from and how it becomes tokens."""

    source: str = "stdlib"
    """`stdlib`, `site`, a file or folder of text/jsonl/parquet, or `hf:owner/name`."""
    column: str = "text"
    """Column that holds the text, in tables."""
    config: str = ""
    """Configuration (subset) of a Hub data set."""
    split: str = "train"
    """Split of a Hub data set; our own validation split is cut from it."""
    validation_fraction: float = 0.05
    """Share of the documents kept for validation."""
    max_bytes: int = 0
    """Stop reading after this much text; 0 reads everything, or 1 GB from the Hub."""
    vocab_size: int = 0
    """Size of the byte-level BPE to be trained; 0 for one suited to the budget."""
    tokenizer: str = ""
    """A byte-level `tokenizer.json` to be used instead of training one."""
    stream: str = "auto"
    """Whether training begins on the head while the rest is read: `on`, `off`, or `auto` for sources larger than two heads."""
    head_bytes: int = 32 * 2**20
    """Text that is prepared before training begins: it decides the validation split and the tokenizer."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 0.5:
            raise ConfigError(
                f"data.validation_fraction is {self.validation_fraction}, but must lie between 0 and 0.5. 0.05 is usual."
            )
        if self.vocab_size and not 257 <= self.vocab_size <= 2**20:
            raise ConfigError(
                f"data.vocab_size is {self.vocab_size}, but a byte-level vocabulary has from 257 (256 bytes and the end "
                f"of a text) to {2**20} tokens. 0 chooses one for you."
            )
        if self.max_bytes < 0:
            raise ConfigError(f"data.max_bytes is {self.max_bytes}; use a positive number of bytes, or 0 for no limit.")
        if self.stream not in STREAM_CHOICES:
            raise ConfigError(f"data.stream cannot be {self.stream!r}. Use {', '.join(STREAM_CHOICES)}.")
        if self.head_bytes < 1:
            raise ConfigError(f"data.head_bytes is {self.head_bytes}, but must be above 0. {32 * 2**20} is usual.")


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """What was read."""

    source: str
    fingerprint: str
    """Hash of the content and of the settings that decide what becomes of it."""
    documents: dict[str, int]
    """Documents in each split."""
    bytes: dict[str, int]
    """UTF-8 bytes in each split."""
    duplicates: int
    """Exact duplicates dropped."""
    empty: int
    """Documents dropped because there was nothing in them."""
    invalid: int
    """Documents with bytes that are not UTF-8, each bad stretch replaced by U+FFFD."""
    cut: bool
    """Whether reading stopped at `max_bytes`."""
    whole_bytes: int = 0
    """Where this is the head of a larger source: how much text the whole has, estimated from the head and the size of the files
    (or the limit). 0 where this is all."""

    @property
    def kept_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(self.bytes.values())

    def summary(self) -> str:
        """One line for people."""
        notes = [f"{self.duplicates} duplicates dropped"] if self.duplicates else []
        notes += [f"{self.invalid} documents had invalid UTF-8 (replaced)"] if self.invalid else []
        notes += ["cut at max_bytes"] if self.cut else []
        notes += [f"the head of about {self.whole_bytes / 1e6:.0f} MB"] if self.whole_bytes else []
        train, validation = self.bytes["train"] / 1e6, self.bytes["validation"] / 1e6
        return (
            f"{self.source}: {sum(self.documents.values())} documents, {train:.1f} MB to train, {validation:.1f} MB "
            f"to validate{''.join(f', {note}' for note in notes)}"
        )


@dataclass(frozen=True)
class Corpus:
    """Documents on disk."""

    folder: Path
    facts: CorpusFacts

    def documents(self, split: str) -> Iterator[str]:
        """The documents of `train` or `validation`, in the order in which they were read."""
        ends = np.load(self.folder / f"{split}.npy")
        with (self.folder / f"{split}.txt").open("rb") as file:
            for size in np.diff(ends, prepend=0):
                yield file.read(int(size)).decode()


@dataclass(frozen=True)
class Source:
    """Something that can be read."""

    name: str
    identity: Any
    """What decides its content."""
    rows: Callable[[], Iterator[dict[str, Any]]] = field(repr=False)
    max_bytes: int
    """Where reading stops; 0 for nowhere."""
    size: int
    """Bytes of its files, or the limit where that is less: about how much text it has."""
    streamed: bool
    """Whether its head is prepared first, and the rest beside training."""


def prepare_corpus(config: DataConfig, cache: Path, tick: Tick | None = None) -> Corpus:
    """Read a source into the cache, or find it there from an earlier time. Two processes may do so at once.

    Raises:
        DataError: there is no such source, it cannot be read, or it is too small to be split.
    """
    source = open_source(config)
    head = ["head", config.head_bytes] if source.streamed else []
    key = digest([FORMAT, source.identity, config.column, config.validation_fraction, source.max_bytes, *head])
    folder = cache / "corpora" / key
    if not (folder / "corpus.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "corpus.json").exists():
                _read(source, config, key, folder, tick)
    return Corpus(folder, CorpusFacts(**read_json(folder / "corpus.json")))


def _read(source: Source, config: DataConfig, key: str, folder: Path, tick: Tick | None) -> None:
    with new_folder(folder) as new:
        writer = _Writer(new, config.validation_fraction)
        sieve, cut, is_head = writer.sieve, False, False
        with writer:
            for text in texts(source, config.column, sieve):
                size = writer.add(text)
                if tick:
                    tick(size)
                cut = bool(source.max_bytes) and sieve.kept_bytes >= source.max_bytes
                is_head = source.streamed and not cut and sieve.kept_bytes >= config.head_bytes
                if cut or is_head:
                    break
        writer.finish(source.name)
        facts = CorpusFacts(
            source=source.name,
            fingerprint=key,
            documents={split: len(ends) for split, ends in writer.ends.items()},
            bytes=writer.total,
            duplicates=sieve.duplicates,
            empty=sieve.empty,
            invalid=sieve.invalid,
            cut=cut,
            whole_bytes=max(sieve.kept_bytes, source.size * sieve.kept_bytes // sieve.met_bytes) if is_head else 0,
        )
        write_json(new / "corpus.json", asdict(facts))


class Sieve:
    """Which documents are new, and to which split each belongs.

    Args:
        validation_fraction: share of the hashes that validate.
    """

    def __init__(self, validation_fraction: float) -> None:
        self.fraction = validation_fraction
        self.duplicates = self.empty = self.invalid = 0
        self.met_bytes = self.kept_bytes = 0
        """Bytes of all documents, and of those that were new."""
        self.seen: set[bytes] = set()

    def sort(self, text: str) -> tuple[str, bytes]:
        """A document's bytes, and before them `train` or `validation` if it is new, nothing if it is empty or known."""
        data = text.encode("utf-8", errors="replace")
        mark = _mark(data)
        self.met_bytes += len(data)
        if not text.strip():
            self.empty += 1
            return "", data
        if mark in self.seen:
            self.duplicates += 1
            return "", data
        self.seen.add(mark)
        self.kept_bytes += len(data)
        return ("validation" if int.from_bytes(mark[:8], "big") < self.fraction * 2**64 else "train"), data


def _mark(data: bytes) -> bytes:
    """By which a document is known again."""
    return hashlib.blake2b(data, digest_size=16).digest()


def texts(source: Source, column: str, sieve: Sieve) -> Iterator[str]:
    """The texts of a source, in order; the sieve counts those that were not UTF-8.

    Raises:
        DataError: it cannot be read.
    """
    for row in source.rows():
        text, replaced = _text(row, column, source.name)
        sieve.invalid += replaced
        yield text


class _Writer(ExitStack):
    """Documents -> one file of text for each split, with the places where they end."""

    def __init__(self, folder: Path, validation_fraction: float) -> None:
        super().__init__()
        self.folder, self.sieve = folder, Sieve(validation_fraction)
        self.ends: dict[str, list[int]] = {"train": [], "validation": []}
        self.total = dict.fromkeys(self.ends, 0)
        self._files = {split: self.enter_context((folder / f"{split}.txt").open("wb")) for split in self.ends}

    def add(self, text: str) -> int:
        """Write a document to its split, unless it is empty or known. Returns its bytes."""
        split, data = self.sieve.sort(text)
        if split:
            self._files[split].write(data)
            self.total[split] += len(data)
            self.ends[split].append(self.total[split])
        return len(data)

    def finish(self, name: str) -> None:
        """See to it that both splits have something, and write where their documents end."""
        new, sieve = sum(map(len, self.ends.values())), self.sieve
        if new < 2:
            raise DataError(
                f"{name} has {new} documents with text in them ({sieve.empty} were empty, {sieve.duplicates} "
                "duplicates), but at least 2 are needed, one of them to validate. Give a larger source, or cut the text "
                "into several documents."
            )
        if not self.ends["validation"]:
            _move_to_validation(self.folder, self.ends, self.total)
        for split, ends in self.ends.items():
            np.save(self.folder / f"{split}.npy", np.asarray(ends, dtype=np.int64))


def _move_to_validation(folder: Path, ends: dict[str, list[int]], total: dict[str, int]) -> None:
    """With few documents chance may leave validation empty; then the one with the least hash validates."""
    train = (folder / "train.txt").read_bytes()
    documents = [train[a:b] for a, b in zip([0, *ends["train"]], ends["train"], strict=False)]
    chosen = min(documents, key=_mark)
    kept = [document for document in documents if document != chosen]
    (folder / "train.txt").write_bytes(b"".join(kept))
    (folder / "validation.txt").write_bytes(chosen)
    ends["train"] = list(np.cumsum([len(d) for d in kept]))
    ends["validation"] = [len(chosen)]
    total |= {"train": len(train) - len(chosen), "validation": len(chosen)}


def _text(row: dict[str, Any], column: str, name: str) -> tuple[str, bool]:
    """The text of a row, and whether something in it was not UTF-8."""
    if column not in row:
        columns = ", ".join(sorted(str(key) for key in row)) or "none"
        raise DataError(f"{name} has no column {column!r}. Its columns are: {columns}. Set `data.column` to one of them.")
    value = row[column]
    if value is None:
        return "", False
    if not isinstance(value, str):
        raise DataError(
            f"column {column!r} of {name} holds {type(value).__name__}, not text. Set `data.column` to a column of text."
        )
    return value, bool(row.get("__invalid__", "\ufffd" in value))


# --- finding and opening a source ------------------------------------------------------------------------------------


def open_source(config: DataConfig) -> Source:
    """Find a source; nothing is read yet but what its fingerprint needs.

    Raises:
        DataError: there is none.
    """
    if config.source in EMBEDDED:
        root, paths = _embedded(config.source)
        return _files_source(config.source, root, paths, config, whole=True)
    if config.source.startswith("hf:"):
        return _hub_source(config)
    path = Path(config.source).expanduser()
    if not path.exists():
        raise DataError(
            f"there is no file or folder {config.source!r}, and it is not one of {', '.join(EMBEDDED)}. Check the path; a "
            "data set on the Hugging Face Hub is written `hf:owner/name`."
        )
    root, paths = (path.parent, [path]) if path.is_file() else (path, _readable(path))
    if not paths:
        endings = ", ".join(sorted(TEXT_ENDINGS | set(TABLE_KINDS)))
        raise DataError(f"the folder {path} has no file that can be read. Known endings: {endings} (tables also .gz).")
    return _files_source(str(path), root, paths, config, whole=False)


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
    return [path for path in files if _kind(path)]


def _kind(path: Path) -> str:
    """The `datasets` reader for a file: `text`, `json`, `parquet`, or nothing."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in (".gz", ".zst"):
        return TABLE_KINDS.get(endings[-2], "") if len(endings) > 1 else ""
    if endings and endings[-1] in TABLE_KINDS:
        return TABLE_KINDS[endings[-1]]
    return "text" if endings and endings[-1] in TEXT_ENDINGS else ""


def _files_source(name: str, root: Path, paths: list[Path], config: DataConfig, *, whole: bool) -> Source:
    size = sum(path.stat().st_size for path in paths)
    size = min(size, config.max_bytes or size)
    streamed = _is_streamed(config, size)
    if streamed:  # in an order by chance, so that the head is a sample of the whole
        ordered = sorted(paths, key=lambda path: _mark(os.fsencode(path.relative_to(root))))
    else:  # kind by kind
        kinds = list(dict.fromkeys(map(_kind, paths)))
        ordered = sorted(paths, key=lambda path: kinds.index(_kind(path)))

    def rows() -> Iterator[dict[str, Any]]:
        import datasets

        for kind, files in groupby(ordered, key=_kind):
            if kind in ("text", ""):
                arguments = {"paths": [str(f) for f in files], "column": config.column, "whole": whole}
                yield from datasets.IterableDataset.from_generator(read_text_files, gen_kwargs=arguments)
            else:
                yield from _load(name, path=kind, data_files=[str(f) for f in files], split="train")

    return Source(name, _fingerprint(root, paths), rows, config.max_bytes, size, streamed)


def _is_streamed(config: DataConfig, size: int) -> bool:
    return config.stream == "on" or (config.stream == "auto" and size > STREAM_HEADS * config.head_bytes)


def read_text_files(paths: list[str], column: str, whole: bool) -> Iterator[dict[str, Any]]:
    """Rows of text files, bad UTF-8 replaced and marked; long files cut into pieces unless `whole`."""
    for path in paths:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"could not read {path}: {error.strerror}. Check its permissions.") from error
        cut = not whole and len(data) > 64 * PIECE_BYTES
        for piece in _pieces(data) if cut else [data]:
            try:
                yield {column: piece.decode(), "__invalid__": False}
            except UnicodeDecodeError:
                yield {column: piece.decode(errors="replace"), "__invalid__": True}


def _pieces(data: bytes) -> Iterator[bytes]:
    """Parts of about PIECE_BYTES that end at a line's end, or at worst before a new character."""
    start = 0
    while start < len(data):
        end = min(len(data), start + PIECE_BYTES)
        if end < len(data):
            line_end = data.rfind(b"\n", start, end)
            end = line_end + 1 if line_end >= start else end
            while line_end < start and end < len(data) and data[end] & 0xC0 == 0x80:
                end += 1
        yield data[start:end]
        start = end


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


def _hub_source(config: DataConfig) -> Source:
    repository = config.source.removeprefix("hf:")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
        raise DataError(f"{config.source!r} does not name a Hub data set. Write it as `hf:owner/name`.")
    identity = [config.source, config.config, config.split]

    def rows() -> Iterator[dict[str, Any]]:
        yield from _load(config.source, path=repository, name=config.config or None, split=config.split)

    most = config.max_bytes or HUB_MAX_BYTES
    return Source(config.source, identity, rows, most, most, _is_streamed(config, most))


def _load(source: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Stream rows through `datasets`; whatever goes wrong in there is about the source, and is said so."""
    import datasets

    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(streaming=True, **arguments)
    except (DataError, GeneratorExit, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"could not read {source}: {type(error).__name__}: {reason[:300]}. Check that it exists and can be read"
            + (
                ", its configuration and split, and your connection."
                if source.startswith("hf:")
                else ", and is what its ending says."
            )
        ) from error
