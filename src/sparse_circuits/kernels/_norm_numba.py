"""The loops of the root-mean-square norm, compiled by Numba at the first import and cached on disk.

A row is gone through while it lies in the first cache.
"""

import numba
import numpy as np
from numba import float32, prange, void

from sparse_circuits.kernels._threads_numba import set_threads

__all__ = ["backward", "forward", "set_threads"]

ROWS_AT_ONCE = 64
"""Rows that one thread takes at a time."""


@numba.njit(float32(float32[::1], float32[::1]), cache=True, fastmath={"reassoc", "nsz", "contract"})
def _product(a, b):
    """Return the sum of products of two vectors."""
    total = np.float32(0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@numba.njit(
    void(float32[:, ::1], float32[::1], float32, float32[:, ::1], float32[::1]),
    cache=True,
    parallel=True,
    error_model="numpy",
)
def forward(x, gain, eps, out, scale):
    """Fill `out` with the rows times their scales and the gain, and `scale`."""
    n_row, width = x.shape
    for block in prange(-(-n_row // ROWS_AT_ONCE)):
        for r in range(block * ROWS_AT_ONCE, min(n_row, (block + 1) * ROWS_AT_ONCE)):
            row, to = x[r], out[r]
            factor = np.float32(1) / np.sqrt(_product(row, row) / np.float32(width) + eps)
            scale[r] = factor
            for i in range(width):
                to[i] = row[i] * factor * gain[i]


@numba.njit(
    void(*(float32[:, ::1], float32[::1], float32[::1]), *(float32[:, ::1], float32[::1]), *(float32[:, ::1],) * 2),
    cache=True,
    parallel=True,
    error_model="numpy",
)
def backward(x, gain, scale, grad, by_scale, by_x, by_gain):
    """Fill the gradient of x, and `by_gain` (part, channel) with the parts of the gain's, unless it has no part.

    `by_scale` is the gradient that comes back to each scale itself, or empty.
    """
    n_row, width = x.shape
    n_part = len(by_gain)
    part_size = -(-n_row // n_part) if n_part > 0 else ROWS_AT_ONCE
    for part in prange(-(-n_row // part_size)):
        turned = np.empty(width, np.float32)
        for r in range(part * part_size, min(n_row, (part + 1) * part_size)):
            row, pull, to, factor = x[r], grad[r], by_x[r], scale[r]
            for i in range(width):
                turned[i] = pull[i] * gain[i]
            to_scale = _product(turned, row) + (by_scale[r] if by_scale.size > 0 else np.float32(0))
            shrink = to_scale * factor * factor * factor / np.float32(width)
            for i in range(width):
                to[i] = turned[i] * factor - row[i] * shrink
            if n_part > 0:
                for i in range(width):
                    by_gain[part, i] += pull[i] * row[i] * factor
