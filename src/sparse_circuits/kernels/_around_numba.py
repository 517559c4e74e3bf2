"""The loop of `kernels.cpu_around`, compiled by Numba at the first import and cached on disk."""

import numba
import numpy as np
from numba import float32, int64, prange, uint8, void

from sparse_circuits.kernels._threads_numba import set_threads

__all__ = ["map_rows", "set_threads"]

ROWS_AT_ONCE = 64
"""Rows that one thread takes at a time."""


@numba.njit(int64(float32[::1], float32[::1], uint8[::1], float32[::1], int64[::1]), cache=True)
def _find(row, around, differs, differences, places):
    """Write by how much a row differs, and at which places; return at how many.

    Eight places are passed over at once where none differs.
    """
    for i in range(row.size):
        differences[i] = row[i] - around[i]
        differs[i] = np.uint8(differences[i] != 0)
    n, eights = 0, differs.view(np.uint64)
    for j in range(eights.size):
        if eights[j] != 0:
            for i in range(8 * j, 8 * j + 8):
                places[n] = i
                n += int64(differs[i])
    return n


@numba.njit(
    void(float32[::1], float32[::1], int64[::1], int64, float32[::1], float32[:, ::1]),
    cache=True,
    fastmath={"contract"},
)
def _add_rows(total, start, places, n, values, weight):
    """Fill `total` with start and `n` rows of the weight times their values, four at a time."""
    for i in range(total.size):
        total[i] = start[i]
    p = 0
    while p + 4 <= n:
        first, second, third, fourth = places[p], places[p + 1], places[p + 2], places[p + 3]
        a, b, c, d = values[first], values[second], values[third], values[fourth]
        of_a, of_b, of_c, of_d = weight[first], weight[second], weight[third], weight[fourth]
        for i in range(total.size):
            total[i] += a * of_a[i] + b * of_b[i] + c * of_c[i] + d * of_d[i]
        p += 4
    while p < n:
        a, of_a = values[places[p]], weight[places[p]]
        for i in range(total.size):
            total[i] += a * of_a[i]
        p += 1


@numba.njit(
    void(float32[:, ::1], int64, float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[:, ::1]),
    cache=True,
    parallel=True,
)
def map_rows(x, rows_of_run, around, weight, start, out):
    """Fill `out` with start + (x − around) @ weight, each run's rows with its `around` and `start`."""
    n_row, n_source = x.shape
    n_eight = -(-n_source // 8)
    for block in prange(-(-n_row // ROWS_AT_ONCE)):
        differs = np.zeros(8 * n_eight, dtype=np.uint8)
        differences = np.empty(n_source, dtype=np.float32)
        places = np.empty(8 * n_eight + 1, dtype=np.int64)
        for r in range(block * ROWS_AT_ONCE, min(n_row, (block + 1) * ROWS_AT_ONCE)):
            run = r // rows_of_run
            n = _find(x[r], around[run], differs, differences, places)
            _add_rows(out[r], start[run], places, n, differences, weight)
