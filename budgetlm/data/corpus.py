"""Sources of text -> documents on disk, cleaned, without duplicates, split by content.

1. Find and read the sources (`sources.py`, `formats.py`), and drop what is not wanted (`sieve.py`).
2. Split: a document goes to training or validation by the hash of its text, so it never moves when the corpus grows, and
   an exact duplicate is dropped rather than straddling the two.
3. Keep: one file of text for each split and source, beside the facts of what was read. Whole or absent, and kept by content.

Of a large source only the head is kept so; the rest is read beside training (`data/rest.py`). Several sources are kept apart, so that
each can be read by its weight; what one has of another is dropped from the later one.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from budgetlm.data.config import DataConfig
from budgetlm.data.fetch import Tick
from budgetlm.data.overlap import HALF, overlap
from budgetlm.data.sieve import Sieve, mark_of
from budgetlm.data.sources import Source, open_sources
from budgetlm.errors import DataError
from budgetlm.files import digest, new_folder, read_json, write_json

SPLITS = ("train", "validation")
FORMAT = 1
"""Raised when the files written here change their meaning, so that old ones are made again."""


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
    short: int = 0
    """Documents dropped because they were shorter than `least_chars`."""
    near_duplicates: int = 0
    """Documents dropped because they were too like an earlier one."""
    changed: int = 0
    """Documents that cleaning changed."""
    overlapping: int = -1
    """Validation documents of which half or more is in training documents, too (`data/overlap.py`); -1 where nobody has looked."""
    overlap_dropped: bool = False
    """Whether these were dropped, and are not among `documents`."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Where these are several sources: `source`, `weight` (0 where all are read equally often), `documents` and `bytes` of each."""

    @property
    def kept_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(self.bytes.values())

    @property
    def overlap_share(self) -> float:
        """Share of the validation documents that are in training documents, too, by half or more; 0 where nobody has looked."""
        met = self.documents["validation"] + (self.overlapping if self.overlap_dropped else 0)
        return max(0, self.overlapping) / met

    @property
    def dropped(self) -> dict[str, int]:
        """Documents that were dropped, by the reason for it."""
        reasons = {
            "duplicates": self.duplicates,
            "near-duplicates": self.near_duplicates,
            "empty": self.empty,
            "too short": self.short,
            "in training, too": self.overlapping if self.overlap_dropped else 0,
        }
        return {reason: count for reason, count in reasons.items() if count}

    def summary(self) -> str:
        """One line for people."""
        notes = [f"{count:,} {reason} dropped" for reason, count in self.dropped.items()]
        notes += [f"{self.changed:,} cleaned"] if self.changed else []
        notes += [f"{self.invalid} documents had invalid UTF-8 (replaced)"] if self.invalid else []
        notes += ["cut at max_bytes"] if self.cut else []
        notes += [f"the head of about {self.whole_bytes / 1e6:.0f} MB"] if self.whole_bytes else []
        notes += [f"{part['weight']:.3g} from {part['source']}" for part in self.parts if part["weight"]]
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
        for part in range(max(1, len(self.facts.parts))):
            yield from self.documents_of(part, split)

    def documents_of(self, part: int, split: str) -> Iterator[str]:
        """Those of one of several sources."""
        folder = _folder_of(self.folder, part, len(self.facts.parts))
        return (document.decode() for document in _documents(folder, split))


def _folder_of(folder: Path, part: int, parts: int) -> Path:
    """Where the documents of a source lie: one alone has no folder of its own."""
    return folder / str(part) if parts > 1 else folder


def _documents(folder: Path, split: str) -> Iterator[bytes]:
    ends = np.load(folder / f"{split}.npy")
    with (folder / f"{split}.txt").open("rb") as file:
        for size in np.diff(ends, prepend=0):
            yield file.read(int(size))


def prepare_corpus(config: DataConfig, cache: Path, tick: Tick | None = None) -> Corpus:
    """Read the sources into the cache, or find them there from an earlier time. Two processes may do so at once.

    Args:
        tick: called with the bytes that were fetched or read.

    Raises:
        DataError: a source does not exist, cannot be read, or is too small to be split.
        ConfigError: what is asked for needs a package that is not installed.
    """
    sources = open_sources(config, cache, tick)
    key = _key(config, sources)
    folder = cache / "corpora" / key
    if not (folder / "corpus.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "corpus.json").exists():
                _read(sources, config, key, folder, tick)
    return Corpus(folder, CorpusFacts(**read_json(folder / "corpus.json")))


def _key(config: DataConfig, sources: list[Source]) -> str:
    """What decides which documents are kept. Settings that ask for nothing leave it as it was before there were any."""
    first, *others = sources
    head = ["head", config.head_bytes] if first.streamed else []
    names = ("text", "clean", "least_chars", "near_duplicates", "drop_overlap")
    asked = {name: getattr(config, name) for name in names if getattr(config, name)}
    if others:
        asked["sources"] = [[source.identity, source.weight] for source in sources]
    return digest(
        [
            FORMAT,
            first.identity,
            config.column,
            config.validation_fraction,
            first.max_bytes,
            *head,
            *([asked] if asked else []),
        ]
    )


def _read(sources: list[Source], config: DataConfig, key: str, folder: Path, tick: Tick | None) -> None:
    with new_folder(folder) as new:
        writers: list[_Writer] = []
        read = []
        for number, source in enumerate(sources):
            place = _folder_of(new, number, len(sources))
            place.mkdir(exist_ok=True)
            writers.append(_Writer(place, Sieve(config, writers[-1].sieve if writers else None)))
            read.append(_read_source(source, config, writers[-1], tick))
        overlapping = _overlapping(writers, sources, drop=config.drop_overlap)
        facts = [_facts(*each, key, config) for each in zip(sources, writers, read, overlapping, strict=True)]
        whole = facts[0] if len(facts) == 1 else _together(facts, sources, config, key)
        write_json(new / "corpus.json", asdict(whole))


def _read_source(source: Source, config: DataConfig, writer: "_Writer", tick: Tick | None) -> tuple[bool, bool]:
    """Write what is kept of a source. Returns whether it was cut at a limit, and whether it is but the head."""
    sieve, cut, is_head = writer.sieve, False, False
    with writer:
        for text, invalid in source.texts():
            sieve.invalid += invalid
            size = writer.add(text)
            if tick:
                tick(size)
            cut = bool(source.max_bytes) and sieve.kept_bytes >= source.max_bytes
            is_head = source.streamed and not cut and sieve.kept_bytes >= config.head_bytes
            if cut or is_head:
                break
    writer.finish(source.name)
    return cut, is_head


def _overlapping(writers: "list[_Writer]", sources: list[Source], *, drop: bool) -> list[int]:
    """How many validation documents of each source are in any source's training documents, by half or more; they can be dropped."""

    def all_of(split: str) -> Iterator[bytes]:
        return chain.from_iterable(_documents(writer.folder, split) for writer in writers)

    shares = overlap(all_of("validation"), all_of("train"))
    counts = []
    for writer, source in zip(writers, sources, strict=True):
        documents = len(writer.ends["validation"])
        overlapping, shares = shares[:documents] >= HALF, shares[documents:]
        counts.append(int(overlapping.sum()))
        if drop and counts[-1]:
            writer.keep_validation(~overlapping, source.name)
    return counts


def _facts(
    source: Source, writer: "_Writer", read: tuple[bool, bool], overlapping: int, key: str, config: DataConfig
) -> CorpusFacts:
    sieve, (cut, is_head) = writer.sieve, read
    return CorpusFacts(
        source=source.name,
        fingerprint=key,
        documents={split: len(ends) for split, ends in writer.ends.items()},
        bytes=writer.total,
        duplicates=sieve.duplicates,
        empty=sieve.empty,
        invalid=sieve.invalid,
        cut=cut,
        whole_bytes=max(sieve.kept_bytes, source.size * sieve.kept_bytes // sieve.met_bytes) if is_head else 0,
        short=sieve.short,
        near_duplicates=sieve.near_duplicates,
        changed=sieve.changed,
        overlapping=overlapping,
        overlap_dropped=config.drop_overlap,
    )


def _together(parts: list[CorpusFacts], sources: list[Source], config: DataConfig, key: str) -> CorpusFacts:
    """The facts of several sources as of one."""
    counts = ("duplicates", "empty", "invalid", "short", "near_duplicates", "changed", "overlapping")
    return CorpusFacts(
        source=config.source,
        fingerprint=key,
        documents={split: sum(part.documents[split] for part in parts) for split in SPLITS},
        bytes={split: sum(part.bytes[split] for part in parts) for split in SPLITS},
        cut=any(part.cut for part in parts),
        overlap_dropped=config.drop_overlap,
        parts=[
            {
                "source": source.name,
                "weight": source.weight,
                "documents": part.documents,
                "bytes": part.bytes,
            }
            for part, source in zip(parts, sources, strict=True)
        ],
        **{name: sum(getattr(part, name) for part in parts) for name in counts},
    )


class _Writer(ExitStack):
    """Documents -> one file of text for each split, with the places where they end."""

    def __init__(self, folder: Path, sieve: Sieve) -> None:
        super().__init__()
        self.folder, self.sieve = folder, sieve
        self.ends: dict[str, list[int]] = {split: [] for split in SPLITS}
        self.total = dict.fromkeys(self.ends, 0)
        self._files = {split: self.enter_context((folder / f"{split}.txt").open("wb")) for split in self.ends}

    def add(self, text: str) -> int:
        """Write a document to its split, unless it is dropped. Returns its bytes."""
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
                f"duplicates, {sieve.near_duplicates} near-duplicates, {sieve.short} too short), but at least 2 are needed, one of them to "
                "validate. Give a larger source, or cut the text into several documents."
            )
        if not self.ends["validation"]:
            # With few documents chance may leave validation empty; then the one with the least hash validates.
            train = list(self._written("train"))
            chosen = min(train, key=mark_of)
            self._rewrite("train", [document for document in train if document != chosen])
            self._rewrite("validation", [chosen])
        for split, ends in self.ends.items():
            np.save(self.folder / f"{split}.npy", np.asarray(ends, dtype=np.int64))

    def keep_validation(self, kept: np.ndarray, name: str) -> None:
        """Leave only some of the validation documents, shape (documents,), and at least one."""
        if not kept.any():
            raise DataError(
                f"all {len(kept)} validation documents of {name} are in its training documents, too, by half or more, so nothing would be "
                "left to validate. Set `data.near_duplicates` to 0.8 to find the copies, or `data.drop_overlap` to false."
            )
        documents = [d for d, keep in zip(_documents(self.folder, "validation"), kept, strict=True) if keep]
        self._rewrite("validation", documents)
        np.save(self.folder / "validation.npy", np.asarray(self.ends["validation"], dtype=np.int64))

    def _written(self, split: str) -> Iterator[bytes]:
        text = (self.folder / f"{split}.txt").read_bytes()
        return (text[a:b] for a, b in zip([0, *self.ends[split]], self.ends[split], strict=False))

    def _rewrite(self, split: str, documents: list[bytes]) -> None:
        (self.folder / f"{split}.txt").write_bytes(b"".join(documents))
        self.ends[split] = [int(end) for end in np.cumsum([len(d) for d in documents])]
        self.total[split] = sum(map(len, documents))
