"""The loops of `kernels.cpu`, compiled by Numba at the first import and cached on disk."""

import numba
import numpy as np
from numba import boolean, int64, prange, uint32, void

MAGNITUDE = np.uint32(0x7FFFFFFF)
"""All bits of a float32 but the sign."""


def set_threads(n_thread: int) -> None:
    """Let the parallel loops use as many threads as torch does."""
    numba.set_num_threads(max(1, min(n_thread, numba.config.NUMBA_NUM_THREADS)))  # pyright: ignore


@numba.njit(uint32(uint32[::1], int64), cache=True, inline="always")
def _threshold(bits, n_keep):
    """Find the largest t such that at least `n_keep` (1 or more) magnitudes are at or above t.

    The search narrows [low, high) by interpolating on the counts and by halving in turn, and ends early where a
    count is exact. Entries that are all zero from some rank on are told apart at the start.
    """
    largest, n_low = np.uint32(0), np.uint32(0)
    for i in range(bits.size):
        magnitude = bits[i] & MAGNITUDE
        largest = max(largest, magnitude)
        n_low += np.uint32(magnitude > 0)
    if n_low <= n_keep:
        return np.uint32(0)
    low, high = int64(1), int64(largest) + 1  # n_low are at or above low, more than n_keep; n_high at or above high
    n_high, halve = np.uint32(0), False
    while high - low > 1:
        if halve:
            trial = (low + high) // 2
        else:
            trial = low + int64((high - low) * ((n_low - n_keep) / (n_low - n_high)))
            trial = min(max(trial, low + 1), high - 1)
        halve = not halve
        n_above, at = np.uint32(0), np.uint32(trial)
        for i in range(bits.size):
            n_above += np.uint32((bits[i] & MAGNITUDE) >= at)
        if n_above == n_keep:
            return at
        if n_above > n_keep:
            low, n_low = trial, n_above
        else:
            high, n_high = trial, n_above
    return np.uint32(low)


@numba.njit(void(uint32[::1], int64, uint32[::1], boolean[::1]), cache=True, inline="always")
def _abs_topk_row(row, n_keep, out, keep):
    if n_keep == 0:
        for i in range(row.size):
            out[i] = np.uint32(0)
            keep[i] = False
        return
    threshold = _threshold(row, n_keep)
    n_at_or_above = np.uint32(0)
    for i in range(row.size):
        is_kept = (row[i] & MAGNITUDE) >= threshold
        keep[i] = is_kept
        out[i] = row[i] if is_kept else np.uint32(0)
        n_at_or_above += np.uint32(is_kept)
    n_extra = int64(n_at_or_above) - n_keep
    i = row.size - 1
    while n_extra > 0:  # ties at the threshold: the last ones go
        if keep[i] and (row[i] & MAGNITUDE) == threshold:
            keep[i] = False
            out[i] = np.uint32(0)
            n_extra -= 1
        i -= 1


@numba.njit(void(uint32[:, ::1], int64, uint32[:, ::1], boolean[:, ::1]), cache=True)
def abs_topk_rows(rows, n_keep, out, keep):
    """Keep the `n_keep` largest magnitudes of each row."""
    for r in range(rows.shape[0]):
        _abs_topk_row(rows[r], n_keep, out[r], keep[r])


@numba.njit(void(uint32[:, ::1], int64, uint32[:, ::1], boolean[:, ::1]), cache=True, parallel=True)
def abs_topk_rows_parallel(rows, n_keep, out, keep):
    """Keep the `n_keep` largest magnitudes of each row, rows shared among threads."""
    for r in prange(rows.shape[0]):
        _abs_topk_row(rows[r], n_keep, out[r], keep[r])


@numba.njit(void(uint32[::1], boolean[::1], uint32[::1]), cache=True, parallel=True)
def where_kept(bits, keep, out):
    """Copy the kept entries, zero the others."""
    for i in prange(bits.size):
        out[i] = bits[i] if keep[i] else np.uint32(0)


@numba.njit(void(uint32[::1], int64), cache=True)
def keep_largest_bits(bits, n_keep):
    """Zero all but the `n_keep` largest magnitudes of one long vector."""
    if n_keep == 0:
        bits[:] = 0
        return
    threshold = _threshold(bits, n_keep)
    n_above = 0
    for i in range(bits.size):
        n_above += (bits[i] & MAGNITUDE) > threshold
    n_tie = n_keep - n_above
    for i in range(bits.size):
        magnitude = bits[i] & MAGNITUDE
        if magnitude < threshold:
            bits[i] = 0
        elif magnitude == threshold:
            if n_tie > 0:
                n_tie -= 1
            else:
                bits[i] = 0


@numba.njit(void(uint32[::1], boolean[::1], int64), cache=True)
def keep_largest_free_bits(bits, free, n_keep):
    """Zero all free entries but their `n_keep` largest; the others stay."""
    n_free = 0
    for i in range(bits.size):
        n_free += free[i]
    candidates = np.empty(n_free, dtype=np.uint32)
    j = 0
    for i in range(bits.size):
        if free[i]:
            candidates[j] = bits[i]
            j += 1
    keep_largest_bits(candidates, n_keep)
    j = 0
    for i in range(bits.size):
        if free[i]:
            bits[i] = candidates[j]
            j += 1
