"""The loops of `kernels.cpu_packed` over packed weights, compiled by Numba at the first import and cached on disk."""

import numba
import numpy as np
from numba import float32, int32, int64, prange, void

from sparse_circuits.kernels._threads_numba import set_threads
from sparse_circuits.kernels._vectors_numba import N_TOGETHER, sum_rows, turn

__all__ = [
    "count_rows",
    "pack_rows",
    "packed_linear_blocks",
    "packed_linear_columns",
    "packed_linear_few",
    "set_threads",
    "transpose_packed",
]

N_SUM = 16
"""Rows of the weight whose results are turned over together: they fill a line of the cache."""


@numba.njit(void(float32[:, ::1], int64[::1]), cache=True, parallel=True)
def count_rows(weight, offsets):
    """Fill in where each row's nonzeros start, and the end."""
    offsets[0] = 0
    for r in prange(weight.shape[0]):
        n = int64(0)
        for i in range(weight.shape[1]):
            n += int64(weight[r, i] != 0)
        offsets[r + 1] = n
    for r in range(weight.shape[0]):
        offsets[r + 1] += offsets[r]


@numba.njit(void(float32[:, ::1], int64[::1], float32[::1], int32[::1]), cache=True, parallel=True)
def pack_rows(weight, offsets, values, columns):
    """Collect the nonzeros row by row."""
    for r in prange(weight.shape[0]):
        n = offsets[r]
        for i in range(weight.shape[1]):
            if weight[r, i] != 0:
                values[n] = weight[r, i]
                columns[n] = i
                n += 1


@numba.njit(void(float32[::1], int32[::1], int64[::1], float32[::1], int32[::1], int64[::1]), cache=True)
def transpose_packed(values, columns, offsets, new_values, new_columns, new_offsets):
    """Sort the nonzeros by column; those of a column stay in the order of their rows."""
    new_offsets[:] = 0
    for p in range(columns.size):
        new_offsets[columns[p] + 1] += 1
    for c in range(1, new_offsets.size):
        new_offsets[c] += new_offsets[c - 1]
    at = new_offsets.copy()
    for r in range(offsets.size - 1):
        for p in range(offsets[r], offsets[r + 1]):
            q = at[columns[p]]
            at[columns[p]] = q + 1
            new_values[q] = values[p]
            new_columns[q] = r


@numba.njit(
    void(float32[:, ::1], float32[::1], int32[::1], int64[::1], float32[::1], float32[:, ::1]),
    cache=True,
    parallel=True,
    fastmath={"contract"},
)
def packed_linear_blocks(x, values, columns, offsets, bias, out):
    """Map many vectors, N_TOGETHER side by side: they lie as columns, so each weight multiplies a row of theirs."""
    n_vector, n_source, n_target = x.shape[0], x.shape[1], out.shape[1]
    flat_x, flat_out = x.reshape(-1), out.reshape(-1)
    for block in prange(-(-n_vector // N_TOGETHER)):
        first = block * N_TOGETHER
        n = min(N_TOGETHER, n_vector - first)
        turned = np.zeros(n_source * N_TOGETHER, dtype=np.float32)
        turn(flat_x, first * n_source, n_source, n, n_source, turned, 0, N_TOGETHER)
        sums = np.empty(N_SUM * N_TOGETHER, dtype=np.float32)
        for start in range(0, n_target, N_SUM):
            n_row = min(N_SUM, n_target - start)
            for r in range(n_row):
                p, end = offsets[start + r], offsets[start + r + 1]
                sum_rows(bias[start + r], values, columns, p, end, turned, sums, r * N_TOGETHER)
            turn(sums, 0, N_TOGETHER, n_row, n, flat_out, first * n_target + start, n_target)


@numba.njit(
    void(float32[:, ::1], float32[::1], int32[::1], int64[::1], float32[::1], float32[:, ::1]),
    cache=True,
    fastmath={"contract"},
)
def packed_linear_few(x, values, columns, offsets, bias, out):
    """Map a few vectors, one after the other."""
    for t in range(x.shape[0]):
        vector = x[t]
        for r in range(out.shape[1]):
            total = bias[r]
            for p in range(offsets[r], offsets[r + 1]):
                total += values[p] * vector[columns[p]]
            out[t, r] = total


@numba.njit(
    void(float32[:, ::1], float32[::1], int32[::1], int64[::1], float32[::1], float32[:, ::1]),
    cache=True,
    fastmath={"contract"},
)
def packed_linear_columns(x, values, rows, offsets, bias, out):
    """Map vectors one after the other by a weight that lies column by column: a zero in a vector costs nothing."""
    n_source = x.shape[1]
    place = np.empty(n_source, dtype=np.int32)
    for t in range(x.shape[0]):
        vector, total = x[t], out[t]
        n = 0
        for c in range(n_source):
            place[n] = c
            n += int64(vector[c] != 0)
        total[:] = bias
        for j in range(n):
            c = place[j]
            entry = vector[c]
            for p in range(offsets[c], offsets[c + 1]):
                total[rows[p]] += values[p] * entry
