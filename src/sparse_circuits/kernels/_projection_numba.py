"""The loops of the weight projection, compiled by Numba at the first import and cached on disk."""

import numba
import numpy as np
from numba import int32, int64, prange, uint32, void

from sparse_circuits.kernels._threads_numba import set_threads
from sparse_circuits.kernels._topk_numba import MAGNITUDE
from sparse_circuits.kernels._vectors_numba import LANES, above, lowest_one, number_of_ones

__all__ = [
    "count_above_by_column",
    "count_above_by_row",
    "keep_largest_and_protected",
    "keep_largest_bits",
    "largest_of_columns",
    "largest_of_few_columns",
    "largest_of_rows",
    "rarely_exceeded",
    "set_threads",
]

N_SAMPLE = 1 << 14
"""About so many entries a sample has, or all where there are fewer."""

DOUBT = 3.0
"""Standard deviations that a rank in a sample is given on both sides."""


@numba.njit(int32[::1](uint32[::1]), cache=True)
def _sample(bits):
    """Return some N_SAMPLE magnitudes or all, from all columns alike where bits are those of a matrix."""
    return (bits[:: max(1, bits.size // N_SAMPLE) | 1] & MAGNITUDE).astype(np.int32)


@numba.njit("UniTuple(int32, 2)(int32[::1], float64, float64)", cache=True)
def _bracket(sample, share, doubt):
    """Return two magnitudes that the one with so large a share at or above it most likely lies between, or is.

    Their ranks in the sample are `doubt` standard deviations away; beyond its ends every magnitude is in between.
    """
    rank, spread = share * sample.size, doubt * np.sqrt(share * (1 - share) * sample.size) + 1
    low, high = np.int32(-1), MAGNITUDE
    if rank + spread < sample.size:
        place = sample.size - 1 - int64(rank + spread)
        low = np.partition(sample, place)[place]
    if rank - spread >= 1:
        place = sample.size - int64(rank - spread)
        high = np.partition(sample, place)[place]
    return low, high


@numba.njit("UniTuple(int64, 2)(uint32[::1], int32, int32, int32[::1])", cache=True)
def _collect(bits, low, high, inside):
    """Count the magnitudes at or above the higher one, and write down and count those between both."""
    n_high, n_inside, n_whole = 0, 0, bits.size // LANES * LANES
    for start in range(0, n_whole, LANES):
        is_high = above(bits, start, high - np.int32(1))
        left = above(bits, start, low) & ~is_high
        n_high += number_of_ones(is_high)
        while left != 0:
            inside[n_inside] = bits[start + lowest_one(left)] & MAGNITUDE
            n_inside += 1
            left &= left - 1
    for i in range(n_whole, bits.size):
        size = np.int32(bits[i] & MAGNITUDE)
        n_high += size >= high
        if low < size < high:
            inside[n_inside] = size
            n_inside += 1
    return n_high, n_inside


@numba.njit(int32(int32[::1], int64), cache=True)
def _nth_of(sizes, n):
    """Return the `n`-th largest (n from 1), by histograms of 13, then 9, then 9 bits."""
    found = np.int32(0)
    for shift, n_bin in ((18, 8192), (9, 512), (0, 512)):
        counts, top = np.zeros(n_bin, np.int64), np.int32(n_bin - 1)
        for i in range(sizes.size):
            counts[(sizes[i] >> np.int32(shift)) & top] += 1
        while counts[top] < n:
            n -= counts[top]
            top -= 1
        found |= top << np.int32(shift)
        sizes = sizes[sizes >> np.int32(shift) == found >> np.int32(shift)]
    return found


@numba.njit(int64(uint32[::1], int32), cache=True, parallel=True)
def _count_above(bits, size):
    n = 0
    for i in prange(bits.size):
        n += np.int64(np.int32(bits[i] & MAGNITUDE) > size)
    return n


@numba.njit(int32(uint32[::1], int64, int64), cache=True, parallel=True)
def _nth_largest(bits, n, n_part):
    """Return the `n`-th largest magnitude (n from 1); one thread a part.

    A sample says what it most likely lies between. One pass counts what is above, and collects the few in between. If
    it is neither among them nor, as with many ties, one of both ends, the bracket is widened, at last to everything.
    """
    width, sample, doubt = -(-bits.size // n_part), _sample(bits), DOUBT
    found, counts = np.empty((n_part, width), np.int32), np.zeros((n_part, 2), np.int64)
    while True:
        low, high = _bracket(sample, n / bits.size, doubt)
        for p in prange(n_part):
            counts[p, 0], counts[p, 1] = _collect(bits[p * width : (p + 1) * width], low, high, found[p])
        n_high, n_inside = counts[:, 0].sum(), counts[:, 1].sum()
        if n <= n_high:
            if n > _count_above(bits, high):
                return high
        elif n <= n_high + n_inside:
            break
        elif n <= _count_above(bits, low - np.int32(1)):
            return low
        doubt *= 10
    inside, end = np.empty(n_inside, np.int32), 0
    for p in range(n_part):
        inside[end : end + counts[p, 1]] = found[p, : counts[p, 1]]
        end += counts[p, 1]
    return _nth_of(inside, n - n_high)


@numba.njit(void(uint32[::1], int64, int64), cache=True, parallel=True)
def keep_largest_bits(bits, n_keep, n_part):
    """Zero all but the `n_keep` largest magnitudes of one long vector, in so many parts side by side."""
    if n_keep == 0:
        bits[:] = 0
        return
    threshold = np.uint32(_nth_largest(bits, n_keep, n_part))
    n_kept = 0
    for i in prange(bits.size):
        is_kept = (bits[i] & MAGNITUDE) >= threshold
        n_kept += np.int64(is_kept)
        bits[i] = bits[i] if is_kept else np.uint32(0)
    i = bits.size - 1
    while n_kept > n_keep and threshold > 0:  # ties at the threshold: the last ones go
        if (bits[i] & MAGNITUDE) == threshold:
            bits[i] = 0
            n_kept -= 1
        i -= 1


@numba.njit(uint32(uint32[::1], int64), cache=True)
def rarely_exceeded(bits, n):
    """Return a magnitude that fewer than `n` entries exceed: most likely, not surely."""
    return np.uint32(_bracket(_sample(bits), n / bits.size, DOUBT)[1])


@numba.njit(void(uint32[:, ::1], uint32, int64[::1]), cache=True, parallel=True)
def count_above_by_row(bits, size, counts):
    """Count each row's magnitudes above one."""
    for r in prange(bits.shape[0]):
        n = np.int32(0)
        for i in range(bits.shape[1]):
            n += np.int32((bits[r, i] & MAGNITUDE) > size)
        counts[r] = n


@numba.njit(void(uint32[:, ::1], uint32, int64, int64, int64[::1]), cache=True)
def _count_above_in_some_columns(bits, size, first, end, counts):
    n = np.zeros(max(0, end - first), dtype=np.int32)
    for r in range(bits.shape[0]):
        row = bits[r, first:end]
        for i in range(n.size):
            n[i] += np.int32((row[i] & MAGNITUDE) > size)
    counts[first:end] = n


@numba.njit(void(uint32[:, ::1], uint32, int64[::1], int64), cache=True, parallel=True)
def count_above_by_column(bits, size, counts, n_part):
    """Count each column's magnitudes above one, in so many parts side by side."""
    width = -(-bits.shape[1] // n_part)
    for p in prange(n_part):
        _count_above_in_some_columns(bits, size, p * width, min((p + 1) * width, bits.shape[1]), counts)


@numba.njit(void(int64[::1], int64[::1], int64, int64), cache=True, inline="always")
def _insert(held, places, magnitude, place):
    """Take an entry into a falling list, if it is larger than the last or as large and earlier."""
    j = held.size - 1
    if magnitude < held[j] or (magnitude == held[j] and place > places[j]):
        return
    while j > 0 and (held[j - 1] < magnitude or (held[j - 1] == magnitude and places[j - 1] > place)):
        held[j] = held[j - 1]
        places[j] = places[j - 1]
        j -= 1
    held[j] = magnitude
    places[j] = place


@numba.njit(int64(uint32[::1], int64[::1]), cache=True, inline="always")
def _nth_of_few(values, held):
    """Return the n-th largest of a few values, n being the length of the scratch `held`; −1 if there are fewer."""
    held[:] = -1
    for i in range(values.size):
        value = int64(values[i])
        j = held.size - 1
        if value > held[j]:
            while j > 0 and held[j - 1] < value:
                held[j] = held[j - 1]
                j -= 1
            held[j] = value
    return held[held.size - 1]


@numba.njit(void(uint32[:, ::1], int64[::1], int64[:, ::1]), cache=True)
def _largest_of_some_rows(bits, chosen, places):
    """Do `largest_of_rows` for some rows.

    A row is dealt out to 64 lanes. The n-th largest of the lanes' maxima is at most the n-th largest entry, so that the
    few lanes with a maximum below it need no second look.
    """
    width, n = bits.shape[1], places.shape[1]
    n_dealt = width // 64 * 64
    held = np.empty(n, dtype=np.int64)
    maxima = np.empty(64, dtype=np.uint32)
    for c in range(chosen.size):
        r = chosen[c]
        row = bits[r]
        maxima[:] = 0
        for start in range(0, n_dealt, 64):
            for lane in range(64):
                maxima[lane] = max(maxima[lane], row[start + lane] & MAGNITUDE)
        least = _nth_of_few(maxima, held)
        held[:] = -1
        places[c, :] = -1
        for lane in range(64):
            if int64(maxima[lane]) >= least:
                for i in range(lane, n_dealt, 64):
                    _insert(held, places[c], int64(row[i] & MAGNITUDE), r * width + i)
        for i in range(n_dealt, width):
            _insert(held, places[c], int64(row[i] & MAGNITUDE), r * width + i)


@numba.njit(void(uint32[:, ::1], int64[::1], int64[:, ::1], int64), cache=True, parallel=True)
def largest_of_rows(bits, chosen, places, n_part):
    """Write the flat places of these rows' largest magnitudes into `places` (chosen, n), ties to the lower index."""
    height = -(-chosen.size // n_part)
    for p in prange(n_part):
        some = slice(p * height, (p + 1) * height)
        _largest_of_some_rows(bits, chosen[some], places[some])


@numba.njit(void(uint32[:, ::1], int64[:, ::1], int64, int64), cache=True)
def _largest_of_some_columns(bits, places, first, end):
    """Do `largest_of_columns` for some columns.

    As for rows: a column is cut into at most 32 stretches, whose maxima bound its n-th largest entry from below.
    """
    if first >= end:
        return
    n_row, n_column = bits.shape[0], end - first
    n = places.shape[1]
    stretch = max(1, -(-n_row // 32))
    maxima = np.zeros((32, n_column), dtype=np.uint32)
    for r in range(n_row):
        row, largest = bits[r, first:end], maxima[r // stretch]
        for i in range(n_column):
            largest[i] = max(largest[i], row[i] & MAGNITUDE)
    scratch, of_column = np.empty(n, dtype=np.int64), np.empty(-(-n_row // stretch), dtype=np.uint32)
    least = np.empty(n_column, dtype=np.int32)
    for i in range(n_column):
        for j in range(of_column.size):
            of_column[j] = maxima[j, i]
        least[i] = _nth_of_few(of_column, scratch)
    held = np.full((n_column, n), -1, dtype=np.int64)
    places[first:end] = -1
    for r in range(n_row):
        row = bits[r, first:end]
        for start in range(0, n_column, 32):
            stop = min(start + 32, n_column)
            n_large = np.int32(0)
            for i in range(start, stop):
                n_large += np.int32(np.int32(row[i] & MAGNITUDE) >= least[i])
            if n_large > 0:
                for i in range(start, stop):
                    if np.int32(row[i] & MAGNITUDE) >= least[i]:
                        place = r * bits.shape[1] + first + i
                        _insert(held[i], places[first + i], int64(row[i] & MAGNITUDE), place)


@numba.njit(void(uint32[:, ::1], int64[:, ::1], int64), cache=True, parallel=True)
def largest_of_columns(bits, places, n_part):
    """Write the flat places of each column's largest magnitudes into `places` (column, n), ties to the lower index."""
    width = -(-bits.shape[1] // n_part)
    for p in prange(n_part):
        _largest_of_some_columns(bits, places, p * width, min((p + 1) * width, bits.shape[1]))


@numba.njit(void(uint32[:, ::1], int64[::1], int64[:, ::1]), cache=True, parallel=True)
def largest_of_few_columns(bits, chosen, places):
    """Do the same for some columns, one after the other."""
    for c in prange(chosen.size):
        held = np.full(places.shape[1], -1, dtype=np.int64)
        places[c, :] = -1
        for r in range(bits.shape[0]):
            _insert(held, places[c], int64(bits[r, chosen[c]] & MAGNITUDE), r * bits.shape[1] + chosen[c])


@numba.njit(void(uint32[::1], int64[::1], int64, int64), cache=True)
def keep_largest_and_protected(bits, protected, n_keep, n_part):
    """Zero all but the protected places and the `n_keep` largest of the others."""
    saved = np.empty(protected.size, dtype=np.uint32)
    for i in range(protected.size):
        saved[i] = bits[protected[i]]
        bits[protected[i]] = 0
    keep_largest_bits(bits, n_keep, n_part)
    for i in range(protected.size):
        bits[protected[i]] = saved[i]
