"""The loops of `kernels.cpu_packed` over packed weights, compiled by Numba at the first import and cached on disk."""

import numba
import numpy as np
from numba import boolean, float32, int32, int64, prange, uint32, void

from sparse_circuits.kernels._threads_numba import set_threads
from sparse_circuits.kernels._vectors_numba import N_TOGETHER, set_rows, turn

__all__ = [
    "count_rows",
    "map_by_columns",
    "pack_rows",
    "packed_linear_blocks",
    "packed_linear_columns",
    "packed_linear_few",
    "set_threads",
    "transpose_packed",
    "unpack_rows",
]

N_SUM = 16
"""Rows of the weight whose results are turned over together: they fill a line of the cache."""

N_A_COLUMN = 10
"""Entries that are multiplied in the time that it takes to look up a column."""


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


@numba.njit(boolean(float32[::1], int32[::1], int64[::1], int64[::1], float32[:, ::1]), cache=True)
def unpack_rows(values, columns, offsets, chosen, out):
    """Write some rows into zeros; return whether all that were chosen exist."""
    for i in range(chosen.size):
        r = chosen[i]
        if not 0 <= r < offsets.size - 1:
            return False
        for p in range(offsets[r], offsets[r + 1]):
            out[i, columns[p]] = values[p]
    return True


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
                set_rows(bias[start + r], values, columns, p, end, turned, sums, r * N_TOGETHER)
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
    void(float32[::1], float32[::1], int32[::1], int32[::1], int64[::1], float32[::1], float32[::1]),
    cache=True,
    fastmath={"contract"},
)
def map_by_columns(vector, values, rows, columns, offsets, bias, out):
    """Map a vector by a weight that lies column by column: a zero in the vector costs nothing.

    Unless so many columns would be looked up that going through all entries, zeros or not, is cheaper. Places are read
    as unsigned, or Numba would ask of each whether it counts from the end.
    """
    place, n = np.empty(vector.size, dtype=np.int32), 0
    for c in range(vector.size):
        place[n] = c
        n += int64(vector[c] != 0)
    out[:] = bias
    if offsets[-1] - offsets[0] <= N_A_COLUMN * n:
        for p in range(offsets[0], offsets[-1]):
            out[uint32(rows[p])] += values[p] * vector[uint32(columns[p])]
        return
    for j in range(n):
        c = place[j]
        entry = vector[c]
        for p in range(offsets[c], offsets[c + 1]):
            out[uint32(rows[p])] += values[p] * entry


@numba.njit(
    void(float32[:, ::1], float32[::1], int32[::1], int32[::1], int64[::1], float32[::1], float32[:, ::1]), cache=True
)
def packed_linear_columns(x, values, rows, columns, offsets, bias, out):
    """Map vectors one after the other, each by `map_by_columns`."""
    for t in range(x.shape[0]):
        map_by_columns(x[t], values, rows, columns, offsets, bias, out[t])
