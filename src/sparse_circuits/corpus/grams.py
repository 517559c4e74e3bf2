"""Rows of tokens, told apart by hashes: does a text share some with another?"""

import numpy as np

N_GRAM = 13
"""Tokens in a row that a prompt of level ii must not share with the corpus (DESIGN: corpus)."""


def hash_grams(rows: np.ndarray, n: int = N_GRAM) -> np.ndarray:
    """Return a 64-bit hash of every `n` entries in a row of the last axis."""
    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        length = rows.shape[-1] - n + 1
        hashes = np.zeros((*rows.shape[:-1], max(length, 0)), dtype=np.uint64)
        for i in range(n if length > 0 else 0):
            hashes = hashes * step + rows[..., i : i + length].astype(np.uint64) + np.uint64(1)
    return hashes


def is_among(hashes: np.ndarray, grams: np.ndarray) -> np.ndarray:
    """Say of each hash whether it is one of `grams`, which are sorted."""
    if len(grams) == 0:
        return np.zeros(hashes.shape, dtype=bool)
    return grams[np.minimum(np.searchsorted(grams, hashes), len(grams) - 1)] == hashes
