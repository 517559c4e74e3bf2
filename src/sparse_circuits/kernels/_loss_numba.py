"""The loops of the cross-entropy over a vocabulary, compiled by Numba at the first import and cached on disk.

A row of logits is gone through while it lies in the first cache. A power of two stands for the exponential.
"""

import math

import numba
import numpy as np
from numba import float32, int64, prange, void

from sparse_circuits.kernels._threads_numba import set_threads
from sparse_circuits.kernels._vectors_numba import LANES, exp2, largest

__all__ = ["backward", "forward", "set_threads"]

LOG2_E = np.float32(1 / math.log(2))


@numba.njit(float32(float32[::1], float32), cache=True, fastmath={"reassoc", "nsz", "contract"})
def _sum_of_powers(row, highest):
    """Return the sum of e to each number less the highest."""
    total = np.float32(0)
    for j in range(row.size):
        total += exp2((row[j] - highest) * LOG2_E)
    return total


@numba.njit(void(float32[:, ::1], int64[::1], float32[::1], float32[::1], float32[::1]), cache=True, parallel=True)
def forward(logits, target, highest, total, loss):
    """Fill in each row's largest logit, the sum of exponentials of what lies how far below it, and the loss."""
    n_row, width = logits.shape
    flat, n_whole = logits.reshape(-1), width // LANES * LANES
    for r in prange(n_row):
        row = logits[r]
        top = largest(flat, r * width, n_whole)
        for j in range(n_whole, width):
            top = max(top, row[j])
        highest[r], total[r] = top, _sum_of_powers(row, top)
        loss[r] = top - row[target[r]] + np.float32(np.log(total[r]))


@numba.njit(void(float32[::1], float32, float32, float32[::1]), cache=True, fastmath={"contract"})
def _write_powers(row, highest, factor, out):
    for j in range(row.size):
        out[j] = exp2((row[j] - highest) * LOG2_E) * factor


@numba.njit(
    void(float32[:, ::1], int64[::1], float32[::1], float32[::1], float32, float32[:, ::1]),
    cache=True,
    parallel=True,
    error_model="numpy",
)
def backward(logits, target, highest, total, factor, out):
    """Fill `out` with `factor` times each row's softmax less 1 at its target."""
    for r in prange(logits.shape[0]):
        _write_powers(logits[r], highest[r], factor / total[r], out[r])
        out[r, target[r]] -= factor
