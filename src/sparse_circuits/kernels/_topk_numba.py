"""The loops of AbsTopK, compiled by Numba at the first import and cached on disk.

The bits of a magnitude, read as an integer, are ordered like the magnitude, with NaN above infinity. So the k-th
largest is found by counting how many are at or above a trial, without sorting or scattering.

An entry that may be chosen is loaded first: one that is asked for on a condition alone is no part of a vector.
"""

import numba
import numpy as np
from numba import boolean, float32, float64, int32, int64, prange, uint32, void

from sparse_circuits.kernels._threads_numba import set_threads
from sparse_circuits.kernels._vectors_numba import bits_of, value_of

__all__ = [
    "abs_topk_row",
    "abs_topk_rows",
    "abs_topk_rows_parallel",
    "row_threshold",
    "set_threads",
    "where_kept",
]

MAGNITUDE = np.int32(0x7FFFFFFF)
"""All bits of a float32 but the sign."""

INFINITY = np.int32(0x7F800000)

ROWS_AT_ONCE = 64
"""Rows that one thread takes at a time."""

N_TRIAL = 12
"""Trials of the search by value; what it has not settled then, such as ties, is halved on the bits."""


@numba.njit(int32(float32), cache=True, inline="always")
def magnitude(x):
    """Return the bits of a magnitude, which are ordered as it is."""
    return bits_of(x) & MAGNITUDE


@numba.njit("Tuple((int32, float32, uint32))(float32[::1], int32[::1])", cache=True, fastmath={"reassoc", "nsz"})
def measured(row, magnitudes):
    """Write a row's magnitudes, as bits; return the largest (as bits), their sum, and how many are not zero."""
    for i in range(row.size):
        magnitudes[i] = magnitude(row[i])
    largest, total, n_nonzero = np.int32(0), np.float32(0), np.uint32(0)
    for i in range(row.size):
        largest = max(largest, magnitudes[i])
        total += value_of(magnitudes[i])
        n_nonzero += np.uint32(magnitudes[i] > 0)
    return largest, total, n_nonzero


@numba.njit(uint32(int32[::1], int32), cache=True)
def _count(magnitudes, threshold):
    n_above = np.uint32(0)
    for i in range(magnitudes.size):
        n_above += np.uint32(magnitudes[i] >= threshold)
    return n_above


@numba.njit(int32(int32[::1], int32), cache=True)
def _next_below(magnitudes, threshold):
    """Return the largest magnitude below the threshold."""
    found = np.int32(0)
    for i in range(magnitudes.size):
        found = max(found, magnitudes[i] if magnitudes[i] < threshold else np.int32(0))
    return found


@numba.njit(int32(float32[::1], int64, int32[::1], float64[::1]), cache=True, error_model="numpy")
def row_threshold(row, n_keep, magnitudes, guess):
    """Write a row's magnitudes; return a t, as bits, that `n_keep` of them are at or above, or more if some are at it.

    The first trial is the mean times what it was times in the rows before (`guess`, one number that is kept up to date;
    0 if there were none), or what has the share in an exponential distribution. The next ones lie where the logarithm
    of the count, between what is known, would be right. A trial that finds one too few ends the search: the next
    magnitude below is the one, so that trials aim between the two. What is left is halved. No guess changes the result.
    """
    size = row.size
    largest, total, n_nonzero = measured(row, magnitudes)
    n_low = float64(n_nonzero)
    if n_keep == 0:
        return MAGNITUDE
    if n_low <= n_keep:
        return np.int32(0)
    low_bits, high_bits = 1, np.int64(largest) + 1  # at or above these are more than n_keep, and fewer
    if largest < INFINITY:
        low, high, n_high = 0.0, float64(value_of(np.int32(largest))), 0.5
        mean, aim = float64(total) / size, max(n_keep - 0.5, 0.5)
        if not guess[0] > 0:
            guess[0] = -np.log(n_keep / size)
        trial = min(guess[0] * mean, 0.9 * high)
        for i in range(N_TRIAL):
            bits = bits_of(np.float32(trial))
            n_above = float64(_count(magnitudes, bits))
            if n_above == n_keep or n_above == n_keep - 1:
                guess[0] += 0.1 * (trial / mean - guess[0])
                return bits if n_above == n_keep else _next_below(magnitudes, bits)
            if n_above > n_keep:
                low, n_low, low_bits = trial, n_above, max(low_bits, int64(bits))
            else:
                high, n_high, high_bits = trial, max(n_above, 0.5), min(high_bits, int64(bits))
            share = (n_low - aim) * (n_low + n_high) / ((n_low - n_high) * (n_low + aim))
            trial = low + (high - low) * (0.5 if i % 4 == 3 else min(max(share, 0.02), 0.98))
    while high_bits - low_bits > 1:
        middle = (low_bits + high_bits) // 2
        n_above = float64(_count(magnitudes, np.int32(middle)))
        if n_above == n_keep:
            return np.int32(middle)
        if n_above > n_keep:
            low_bits = middle
        else:
            high_bits = middle
    return np.int32(low_bits)


@numba.njit(int64(int32[::1], int32, float32[::1], float32[::1]), cache=True)
def _write(magnitudes, threshold, row, out):
    """Write what is at or above the threshold, and return how many those are."""
    n_kept = np.uint32(0)
    for i in range(row.size):
        entry, is_kept = row[i], magnitudes[i] >= threshold
        out[i] = entry if is_kept else np.float32(0)
        n_kept += np.uint32(is_kept)
    return int64(n_kept)


@numba.njit(int64(int32[::1], int32, float32[::1], float32[::1], boolean[::1]), cache=True)
def _write_and_mark(magnitudes, threshold, row, out, keep):
    """Do as `_write`, and mark them."""
    n_kept = np.uint32(0)
    for i in range(row.size):
        entry, is_kept = row[i], magnitudes[i] >= threshold
        keep[i] = is_kept
        out[i] = entry if is_kept else np.float32(0)
        n_kept += np.uint32(is_kept)
    return int64(n_kept)


@numba.njit(void(float32[::1], int64, float32[::1], boolean[::1], int32[::1], float64[::1]), cache=True)
def abs_topk_row(row, n_keep, out, keep, magnitudes, guess):
    """Keep the `n_keep` largest magnitudes of a row, and mark them unless `keep` is empty; see `row_threshold`."""
    threshold = row_threshold(row, n_keep, magnitudes, guess)
    if keep.size > 0:
        n_extra = _write_and_mark(magnitudes, threshold, row, out, keep) - n_keep
    else:
        n_extra = _write(magnitudes, threshold, row, out) - n_keep
    i = row.size - 1
    while n_extra > 0:  # ties at the threshold: the last ones go
        if magnitudes[i] == threshold:
            out[i] = np.float32(0)
            if keep.size > 0:
                keep[i] = False
            n_extra -= 1
        i -= 1


@numba.njit(void(float32[:, ::1], int64, int64, int64, float32[:, ::1], boolean[:, ::1]), cache=True)
def _abs_topk_some_rows(rows, first, end, n_keep, out, keep):
    """Do `abs_topk_rows` for the rows from `first` to `end`."""
    magnitudes, guess, unmarked = np.empty(rows.shape[1], np.int32), np.zeros(1), np.empty(0, np.bool_)
    for r in range(first, end):
        abs_topk_row(rows[r], n_keep, out[r], keep[r] if keep.size > 0 else unmarked, magnitudes, guess)


@numba.njit(void(float32[:, ::1], int64, float32[:, ::1], boolean[:, ::1]), cache=True)
def abs_topk_rows(rows, n_keep, out, keep):
    """Keep the `n_keep` largest magnitudes of each row, and mark them unless `keep` is empty."""
    _abs_topk_some_rows(rows, 0, rows.shape[0], n_keep, out, keep)


@numba.njit(void(float32[:, ::1], int64, float32[:, ::1], boolean[:, ::1]), cache=True, parallel=True)
def abs_topk_rows_parallel(rows, n_keep, out, keep):
    """Do the same, rows shared among threads."""
    for block in prange(-(-rows.shape[0] // ROWS_AT_ONCE)):
        first = block * ROWS_AT_ONCE
        _abs_topk_some_rows(rows, first, min(rows.shape[0], first + ROWS_AT_ONCE), n_keep, out, keep)


@numba.njit(void(float32[::1], boolean[::1], float32[::1]), cache=True, parallel=True)
def where_kept(grad, keep, out):
    """Copy the kept entries, zero the others."""
    for i in prange(grad.size):
        entry = grad[i]
        out[i] = entry if keep[i] else np.float32(0)
