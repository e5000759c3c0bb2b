"""Which documents of a source are kept, as what text, and to which split each belongs.

Cleaning comes first, so that duplicates are found, hashed and counted by the text that is kept. Everything here depends on the documents and
their order alone.
"""

import hashlib
import importlib.util
import re
import unicodedata
from typing import Any

import numpy as np

from budgetlm.data.config import DataConfig
from budgetlm.data.passages import passages
from budgetlm.errors import ConfigError

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
"""Control characters but tab and line feed, and the byte order mark."""
PASSAGE_BYTES = 32
"""What near-duplicates are compared by: about five words."""
PERMUTATIONS = 128
"""Similarities are estimated to within about 0.04 with so many."""
MARGIN = 0.15
"""How far below the threshold half of the pairs are still found and compared: at it nearly all are."""


def cleaned(text: str) -> str:
    """A text in Unicode's NFC, its lines ended by line feeds, without other control characters. Cleaning twice is cleaning once."""
    text = CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class Sieve:
    """Which documents are new and long enough, and to which split each belongs.

    Args:
        config: how to clean, and what share of the hashes validates.
        earlier: of a source that is read together with this one: its documents are known here, too.
    """

    def __init__(self, config: DataConfig, earlier: "Sieve | None" = None) -> None:
        self.config = config
        self.duplicates = self.near_duplicates = self.empty = self.short = self.invalid = self.changed = 0
        self.met_bytes = self.kept_bytes = 0
        """Bytes of all documents, and of those that are kept."""
        self._seen: set[bytes] = earlier._seen if earlier else set()
        self._near: NearDuplicates | None = earlier._near if earlier else near_duplicates(config.near_duplicates)

    def sort(self, text: str) -> tuple[str, bytes]:
        """A document's bytes, cleaned, and before them `train` or `validation` if it is kept, and nothing if it is dropped."""
        if self.config.clean:
            changed, text = text, cleaned(text)
            self.changed += changed != text
        data = text.encode("utf-8", errors="replace")
        self.met_bytes += len(data)
        mark, stripped = mark_of(data), len(text.strip())
        if not stripped:
            self.empty += 1
            return "", data
        if stripped < self.config.least_chars:
            self.short += 1
            return "", data
        if mark in self._seen:
            self.duplicates += 1
            return "", data
        self._seen.add(mark)
        if self._near and self._near.knows(data):
            self.near_duplicates += 1
            return "", data
        self.kept_bytes += len(data)
        return ("validation" if int.from_bytes(mark[:8], "big") < self.config.validation_fraction * 2**64 else "train"), data


def mark_of(data: bytes) -> bytes:
    """By which a document is known again."""
    return hashlib.blake2b(data, digest_size=16).digest()


def near_duplicates(threshold: float) -> "NearDuplicates | None":
    """What finds near-duplicates, or nothing where they are not looked for.

    Raises:
        ConfigError: the package that does it is not there.
    """
    if not threshold:
        return None
    check_near_duplicates(threshold)
    return NearDuplicates(threshold)


def check_near_duplicates(threshold: float) -> None:
    """See that near-duplicates can be found, where they are looked for.

    Raises:
        ConfigError: the package that does it is not there.
    """
    if threshold and importlib.util.find_spec("datasketch") is None:
        raise ConfigError(
            "data.near_duplicates needs datasketch, which is not installed. Run `pip install 'budgetlm[near]'`, or set it to 0."
        )


class NearDuplicates:
    """Documents known again although a little has changed: MinHash and locality-sensitive hashing (Broder 1997; datasketch).

    Args:
        threshold: Jaccard similarity of the passages from which on two documents are near-duplicates.
    """

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        self._threshold = threshold
        # What the index finds is compared, so it is made to find too much rather than too little.
        self._index = MinHashLSH(threshold=threshold - MARGIN, num_perm=PERMUTATIONS)
        self._empty = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)
        self._values: list[Any] = []

    def knows(self, data: bytes) -> bool:
        """Whether a document is a near-duplicate of one before it; if not, it is known from now on."""
        sketch = self._empty.copy()
        sketch.update_batch((passages(data, PASSAGE_BYTES) & np.uint64(2**32 - 1)).tolist())
        values = sketch.hashvalues
        if any(np.mean(self._values[found] == values) >= self._threshold for found in self._index.query(sketch)):
            return True
        self._index.insert(len(self._values), sketch, check_duplication=False)
        self._values.append(values)
        return False
