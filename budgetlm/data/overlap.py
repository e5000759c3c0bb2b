"""How much of the validation split is in the training split as well: text that was copied flatters bits per byte.

Documents are compared by passages (`passages.py`) of 64 bytes, about 11 words: near the 13 words of GPT-3 (Brown et al. 2020, appendix C,
arXiv:2005.14165), but a document counts only if half of its passages occur, for licences and common phrases occur everywhere.
"""

from collections.abc import Iterable

import numpy as np

from budgetlm.data.passages import passages

PASSAGE_BYTES = 64
HALF = 0.5
"""A validation document of which so much is in the training split counts as overlapping."""
FILTER_BITS = 24
"""Most training passages are told to be new by a table of so many bits of their hash, without a search."""


def overlap(validation: Iterable[bytes], train: Iterable[bytes]) -> np.ndarray:
    """Of each validation document, the share of its passages that occur in the training documents, float64, shape (documents,)."""
    of_each = [passages(document, PASSAGE_BYTES) for document in validation]
    known = np.unique(np.concatenate(of_each)) if of_each else np.empty(0, dtype=np.uint64)
    low = np.uint64(2**FILTER_BITS - 1)
    possible = np.zeros(2**FILTER_BITS, dtype=bool)
    possible[known & low] = True
    found = np.zeros(len(known), dtype=bool)
    for document in train:
        hashes = passages(document, PASSAGE_BYTES)
        hashes = hashes[possible[hashes & low]]
        places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        found[places[known[places] == hashes]] = True
    return np.array([found[np.searchsorted(known, hashes)].mean() for hashes in of_each])
