"""The loops of `kernels.cpu_norm`, compiled by Numba at the first import and cached on disk."""

import numba
import numpy as np
from numba import float32, prange, void

from sparse_circuits.kernels._cpu_numba import set_threads

__all__ = ["backward", "forward", "set_threads"]

ROWS_AT_ONCE = 64
"""Rows that one thread takes at a time, and whose gradients of the gain are added up before those of others."""

_SUMS = {"reassoc", "nsz", "contract"}
"""A sum may be taken in lanes; infinity and NaN keep their meaning."""


@numba.njit(float32(float32[::1]), cache=True, fastmath=_SUMS)
def _sum_of_squares(row):
    total = np.float32(0)
    for i in range(row.size):
        total += row[i] * row[i]
    return total


@numba.njit(void(float32[::1], float32[::1], float32, float32[::1]), cache=True)
def _scale(row, gain, scale, out):
    for i in range(row.size):
        out[i] = row[i] * scale * gain[i]


@numba.njit(
    void(float32[:, ::1], float32[::1], float32, float32[:, ::1], float32[::1]),
    cache=True,
    parallel=True,
    error_model="numpy",
)
def forward(x, gain, eps, out, scales):
    """Write each row's `scales` entry, (mean square + eps)^(-1/2), and the row times it and the gain."""
    n_row, width = x.shape
    for block in prange(-(-n_row // ROWS_AT_ONCE)):
        for r in range(block * ROWS_AT_ONCE, min(n_row, (block + 1) * ROWS_AT_ONCE)):
            scales[r] = np.float32(1) / np.sqrt(_sum_of_squares(x[r]) / np.float32(width) + eps)
            _scale(x[r], gain, scales[r], out[r])


@numba.njit(
    float32(float32[::1], float32[::1], float32[::1], float32, float32[::1], float32[::1]), cache=True, fastmath=_SUMS
)
def _share_out(grad, row, gain, scale, grad_x, by_gain):
    """Begin a row's gradient, add to the gain's, and return Σ grad · gain · row."""
    total = np.float32(0)
    for i in range(row.size):
        by_row = grad[i] * gain[i]
        total += by_row * row[i]
        grad_x[i] = by_row * scale
        by_gain[i] += grad[i] * row[i] * scale
    return total


@numba.njit(void(float32[::1], float32, float32[::1]), cache=True)
def _subtract(row, factor, grad_x):
    for i in range(row.size):
        grad_x[i] -= row[i] * factor


@numba.njit(
    void(float32[:, ::1], float32[:, ::1], float32[::1], float32[::1], float32[:, ::1], float32[:, ::1]),
    cache=True,
    parallel=True,
    error_model="numpy",
)
def backward(grad, x, gain, scales, grad_x, by_gain):
    """Write the gradient of `x`, and that of the gain in parts, (block of rows, channel), which start at zero."""
    n_row, width = x.shape
    for block in prange(by_gain.shape[0]):
        for r in range(block * ROWS_AT_ONCE, min(n_row, (block + 1) * ROWS_AT_ONCE)):
            total = _share_out(grad[r], x[r], gain, scales[r], grad_x[r], by_gain[block])
            _subtract(x[r], total * scales[r] * scales[r] * scales[r] / np.float32(width), grad_x[r])
