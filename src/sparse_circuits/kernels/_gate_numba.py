"""The loops of `kernels.gate`, compiled by Numba at the first import and cached on disk."""

import numba
import numpy as np
from numba import boolean, float32, int32, int64, prange, void

from sparse_circuits.kernels._threads_numba import set_threads
from sparse_circuits.kernels._topk_numba import ROWS_AT_ONCE, magnitude, measured, row_threshold

__all__ = ["backward", "forward", "set_threads"]

N_FEW = 8
"""Open gates up to which each one's rank is counted, in place of a search for the threshold."""


@numba.njit(int64(int32[::1], int32, float32[::1], float32[::1], float32[::1], float32[::1]), cache=True)
def _write(magnitudes, threshold, row, gate, offset, out):
    """Write what is at or above the threshold, gated, and return how many those are."""
    n_kept = np.uint32(0)
    for i in range(row.size):
        entry, is_kept = row[i], magnitudes[i] >= threshold
        out[i] = (entry if is_kept else np.float32(0)) * gate[i] + offset[i]
        n_kept += np.uint32(is_kept)
    return int64(n_kept)


@numba.njit(int64(int32[::1], int32, int64, float32[::1], float32[::1]), cache=True)
def _drop_ties(magnitudes, threshold, n_extra, offset, out):
    """Take back the last so many entries that are at the threshold; return from where on none at it is kept."""
    i = out.size
    while n_extra > 0:
        i -= 1
        if magnitudes[i] == threshold:
            out[i] = offset[i]
            n_extra -= 1
    return i


@numba.njit(
    void(float32[::1], int64, int64, int64, float32[:, ::1], float32[:, ::1], float32[:, ::1], int32[::1], int64[::1]),
    cache=True,
    parallel=True,
)
def forward(x, stride, rows_of_run, n_keep, gate, offset, out, thresholds, ends):
    """Thin each row out and gate it; rows start `stride` apart in `x`.

    What was kept of a row are the magnitudes above its threshold, and those at it before its end.
    """
    n_row, width = out.shape
    for block in prange(-(-n_row // ROWS_AT_ONCE)):
        magnitudes, guess = np.empty(width, dtype=np.int32), np.zeros(1)
        for r in range(block * ROWS_AT_ONCE, min(n_row, (block + 1) * ROWS_AT_ONCE)):
            run = r // rows_of_run
            row = x[r * stride : r * stride + width]
            threshold = np.int32(0)
            if n_keep < width:
                threshold = row_threshold(row, n_keep, magnitudes, guess)
            else:
                magnitudes[:] = 0
            n_kept = _write(magnitudes, threshold, row, gate[run], offset[run], out[r])
            thresholds[r] = threshold
            ends[r] = _drop_ties(magnitudes, threshold, n_kept - n_keep, offset[run], out[r])


@numba.njit(boolean(int32[::1], int64, int64), cache=True)
def _is_among(magnitudes, place, n_keep):
    """Say whether an entry is among the `n_keep` largest, ties going to the lower index."""
    its = magnitudes[place]
    n_before = np.uint32(0)
    for i in range(magnitudes.size):
        n_before += np.uint32(magnitudes[i] > its)
    for i in range(place):
        n_before += np.uint32(magnitudes[i] == its)
    return n_before < n_keep


@numba.njit(
    void(
        float32[::1], int64, int64, int64, float32[:, ::1], float32[:, ::1], int64[::1], int64[:, ::1], float32[:, ::1]
    ),
    cache=True,
    parallel=True,
)
def forward_alone(x, stride, rows_of_run, n_keep, gate, offset, n_open, open_first, out):
    """Do as `forward` where no gradient is asked for: what stands behind a closed gate need not be known.

    `n_open` says how many gates of each run are open, and `open_first` lists each run's channels, the open ones first.
    """
    n_row, width = out.shape
    for block in prange(-(-n_row // ROWS_AT_ONCE)):
        magnitudes, guess = np.empty(width, dtype=np.int32), np.zeros(1)
        for r in range(block * ROWS_AT_ONCE, min(n_row, (block + 1) * ROWS_AT_ONCE)):
            run = r // rows_of_run
            row = x[r * stride : r * stride + width]
            if n_open[run] <= N_FEW:
                for i in range(width):
                    out[r, i] = offset[run, i]
                if n_open[run] > 0:
                    measured(row, magnitudes)
                for i in range(n_open[run]):
                    channel = open_first[run, i]
                    is_kept = _is_among(magnitudes, channel, n_keep)
                    out[r, channel] += row[channel] * gate[run, channel] if is_kept else np.float32(0)
                continue
            threshold = np.int32(0)
            if n_keep < width:
                threshold = row_threshold(row, n_keep, magnitudes, guess)
            else:
                magnitudes[:] = 0
            n_kept = _write(magnitudes, threshold, row, gate[run], offset[run], out[r])
            _drop_ties(magnitudes, threshold, n_kept - n_keep, offset[run], out[r])


@numba.njit(
    void(float32[::1], float32[::1], int32, int64, float32[::1], float32[::1], float32[::1], float32[::1]),
    cache=True,
)
def _write_gradients(grad, row, threshold, end, gate, value, grad_x, by_gate):
    # In one loop there are more pairs of arrays that might overlap than the compiler checks, so it would go one by one.
    for i in range(grad.size):
        entry = row[i]
        by_gate[i] += grad[i] * ((entry if magnitude(entry) >= threshold else np.float32(0)) - value[i])
    for i in range(grad.size):
        passed = grad[i] * gate[i]
        grad_x[i] = passed if magnitude(row[i]) >= threshold else np.float32(0)
    for i in range(end, grad.size):
        if magnitude(row[i]) == threshold:
            by_gate[i] -= grad[i] * row[i]
            grad_x[i] = 0


@numba.njit(
    void(
        float32[:, ::1],
        float32[::1],
        int64,
        int64,
        int32[::1],
        int64[::1],
        float32[:, ::1],
        float32[:, ::1],
        float32[:, ::1],
        float32[:, :, ::1],
    ),
    cache=True,
    parallel=True,
)
def backward(grad, x, stride, rows_of_run, thresholds, ends, gate, value, grad_x, by_gate):
    """Send the gradient to `x`, and add what each gate gets to `by_gate`, (run, part of its rows, channel)."""
    n_run, n_part, width = by_gate.shape
    part_size = -(-rows_of_run // n_part)
    for job in prange(n_run * n_part):
        run, part = job // n_part, job % n_part
        start = run * rows_of_run
        for r in range(start + part * part_size, start + min(rows_of_run, (part + 1) * part_size)):
            row = x[r * stride : r * stride + width]
            kept = (thresholds[r], ends[r], gate[run], value[run % value.shape[0]])
            _write_gradients(grad[r], row, *kept, grad_x[r], by_gate[run, part])
