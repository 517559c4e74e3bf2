"""The loops of `kernels.cpu_products` over what AbsTopK left, compiled by Numba at the first import, cached on disk.

The nonzeros of a matrix's lines (its rows, or its columns) are listed block by block: all lines' nonzeros among the
first N_BLOCK places of a line, line after line, then all lines' among the next places. So they lie in the order in
which a product asks for them, and the rows that a block multiplies stay in the first cache meanwhile.
"""

import numba
import numpy as np
from numba import boolean, float32, int32, int64, prange, void

from sparse_circuits.kernels._threads_numba import set_threads
from sparse_circuits.kernels._vectors_numba import (
    LANES,
    N_LISTED,
    N_TOGETHER,
    NONZERO_PLACES,
    add_rows,
    copy_vector,
    list_nonzeros,
    turn,
)

__all__ = ["N_BLOCK", "multiply", "note_columns", "note_rows", "room", "set_threads"]

N_BLOCK = 128
"""Places of a line in one block: as many rows of N_TOGETHER numbers fill a first cache of 32 KB."""

N_LINE = 512
"""Lines whose sums stay in the second cache."""

N_CHUNK = 64
"""Lines whose lists lie without a gap."""

N_ROOM = N_CHUNK * N_BLOCK + N_LISTED
"""Entries that these may need in one block."""

_TABLE = NONZERO_PLACES.reshape(-1)


@numba.njit(int64(float32[::1], int64, int64, float32[::1], int32[::1], int64), cache=True)
def _note(x, at, n, values, places, to):
    """List the nonzeros among n numbers, and return where the list ends."""
    n_whole = n // N_LISTED * N_LISTED
    for i in range(0, n_whole, N_LISTED):
        to += list_nonzeros(x, at + i, np.int32(i), _TABLE, values, places, to)
    for i in range(n_whole, n):
        places[to] = i
        values[to] = x[at + i]
        to += int64(x[at + i] != 0)
    return to


@numba.njit(int64(int64, int64), cache=True)
def room(n_line, n_place):
    """Return how many entries the lists of so many lines of so many places may need."""
    return -(-n_place // N_BLOCK) * -(-n_line // N_CHUNK) * N_ROOM


@numba.njit(void(float32[:, ::1], float32[::1], int32[::1], int64[:, :, ::1]), cache=True, parallel=True)
def note_rows(x, values, places, ends):
    """List each row's nonzeros, and fill `ends`, (block, row, 2), with where each list starts and ends."""
    n_row, width = x.shape
    flat = x.reshape(-1)
    n_chunk = -(-n_row // N_CHUNK)
    for chunk in prange(n_chunk):
        rows = range(chunk * N_CHUNK, min(n_row, (chunk + 1) * N_CHUNK))
        for block in range(ends.shape[0]):
            first, to = block * N_BLOCK, (block * n_chunk + chunk) * N_ROOM
            n = min(N_BLOCK, width - first)
            for r in rows:
                ends[block, r, 0] = to
                to = _note(flat, r * width + first, n, values, places, to)
                ends[block, r, 1] = to


@numba.njit(void(float32[:, ::1], float32[::1], int32[::1], int64[:, :, ::1]), cache=True, parallel=True)
def note_columns(x, values, places, ends):
    """List each column's nonzeros, as `note_rows`."""
    n_row, width = x.shape
    flat = x.reshape(-1)
    n_chunk = -(-width // N_CHUNK)
    for job in prange(n_chunk * ends.shape[0]):
        block, first_column = job // n_chunk, job % n_chunk * N_CHUNK
        turned = np.empty(N_CHUNK * N_BLOCK, dtype=np.float32)
        first, to = block * N_BLOCK, job * N_ROOM
        n, n_column = min(N_BLOCK, n_row - first), min(N_CHUNK, width - first_column)
        turn(flat, first * width + first_column, width, n, n_column, turned, 0, N_BLOCK)
        for c in range(n_column):
            ends[block, first_column + c, 0] = to
            to = _note(turned, c * N_BLOCK, n, values, places, to)
            ends[block, first_column + c, 1] = to


@numba.njit(void(float32[::1], int64, int64, int64, int64, float32[::1]), cache=True)
def _copy_panel(matrix, at, step, n_row, n_column, panel):
    """Copy rows of at most N_TOGETHER numbers, zeros behind them."""
    for r in range(n_row):
        if n_column == N_TOGETHER:
            for c in range(0, N_TOGETHER, LANES):
                copy_vector(matrix, at + r * step + c, np.float32(1), panel, r * N_TOGETHER + c)
        else:
            for c in range(n_column):
                panel[r * N_TOGETHER + c] = matrix[at + r * step + c]


@numba.njit(
    void(float32[::1], int32[::1], int64[:, :, ::1], float32[:, ::1], boolean, float32[::1], float32[:, ::1]),
    cache=True,
    parallel=True,
)
def multiply(values, places, ends, matrix, is_turned, first, out):
    """Fill each line of `out` with first + Σ value · matrix[place], over the nonzeros of that line.

    If `is_turned`, the columns of `matrix` are multiplied in place of its rows.
    """
    n_line, width = out.shape
    n_place = matrix.shape[1] if is_turned else matrix.shape[0]
    flat, flat_out = matrix.reshape(-1), out.reshape(-1)
    n_panel = -(-width // N_TOGETHER)
    for job in prange(n_panel * -(-n_line // N_LINE)):
        column, line = job % n_panel * N_TOGETHER, job // n_panel * N_LINE
        n_column, n = min(N_TOGETHER, width - column), min(N_LINE, n_line - line)
        panel = np.zeros(N_BLOCK * N_TOGETHER, dtype=np.float32)
        sums = np.zeros(n * N_TOGETHER, dtype=np.float32)
        for i in range(n):
            sums[i * N_TOGETHER : i * N_TOGETHER + n_column] = first[column : column + n_column]
        for block in range(-(-n_place // N_BLOCK)):
            place = block * N_BLOCK
            n_row = min(N_BLOCK, n_place - place)
            if is_turned:
                turn(flat, column * n_place + place, n_place, n_column, n_row, panel, 0, N_TOGETHER)
            else:
                _copy_panel(flat, place * width + column, width, n_row, n_column, panel)
            for i in range(n):
                start, end = ends[block, line + i, 0], ends[block, line + i, 1]
                add_rows(np.float32(0), values, places, start, end, panel, sums, i * N_TOGETHER)
        for i in range(n):
            to = (line + i) * width + column
            if n_column == N_TOGETHER:
                for c in range(0, N_TOGETHER, LANES):
                    copy_vector(sums, i * N_TOGETHER + c, np.float32(1), flat_out, to + c)
            else:
                flat_out[to : to + n_column] = sums[i * N_TOGETHER : i * N_TOGETHER + n_column]
