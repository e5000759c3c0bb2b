"""A text -> hashes of its passages, by which texts are compared: near-duplicates, and what validation shares with training.

A passage is so many bytes from the beginning of a word on. White space of any kind counts as one space, and the case of ASCII letters
does not count. Characters of three and four UTF-8 bytes (Chinese, Japanese, Korean …) count as words, for those are written without spaces.
The hashes are the same on every machine.
"""

import hashlib

import numpy as np

_random = np.random.default_rng(0)
_OF_BYTE = _random.integers(2**64, size=256, dtype=np.uint64)
_FACTORS = _random.integers(2**63, size=16, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def passages(text: bytes, width: int) -> np.ndarray:
    """Hashes of the different passages of a text, uint64, sorted; of a shorter text, the one of all of it.

    Args:
        text: UTF-8.
        width: bytes of a passage, a power of two.
    """
    text = b" ".join(text.lower().split())
    if len(text) < width:
        return np.array([int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")], dtype=np.uint64)
    bytes_N = np.frombuffer(text, dtype=np.uint8)
    hashes = _OF_BYTE[bytes_N]
    for level in range(
        width.bit_length() - 1
    ):  # of 1, 2, 4, … bytes: the left half times an odd number, plus the right half
        half = 1 << level
        hashes = hashes[:-half] * _FACTORS[level] + hashes[half:]
    space = bytes_N[: len(hashes)] == ord(" ")
    begins = bytes_N[: len(hashes)] >= 0xE0
    begins[0] = True
    begins[1:] |= space[:-1]
    chosen = hashes[begins]
    return np.unique(chosen ^ (chosen >> np.uint64(31)))  # sums modulo 2^64 mix their low bits badly
