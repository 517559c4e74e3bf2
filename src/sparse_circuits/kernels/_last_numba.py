"""The loops of attention for a few queries, compiled by Numba at the first import and cached on disk.

Keys and values are gone through token by token, as a projection or a cache has them: all heads of one lie side by side.
Scores are in units of ln 2.
"""

import math

import numba
import numpy as np
from numba import float32, int64, prange, types, void

from sparse_circuits.kernels._attention_numba import query_scale, sum_of_powers
from sparse_circuits.kernels._threads_numba import set_threads
from sparse_circuits.kernels._vectors_numba import LANES, add_vector, dot, exp2

__all__ = ["backward", "forward", "forward_behind_cache", "set_threads"]

LOG2_E = np.float32(1 / math.log(2))
ZERO, ONE = np.float32(0), np.float32(1)

_ARRAY, _STEPS, _PLACED = float32[::1], types.UniTuple(int64, 3), types.UniTuple(int64, 2)
_SPANS, _BY_HEAD, _BY_KEY = int64[:, ::1], float32[:, ::1], float32[:, :, ::1]


@numba.njit(cache=True, inline="always")
def _product(a, a_at, b, b_at, n):
    """Return the product of two vectors of n entries."""
    n_whole = n // LANES * LANES
    total = dot(a, a_at, b, b_at, n_whole)
    for i in range(n_whole, n):
        total += a[a_at + i] * b[b_at + i]
    return total


@numba.njit(cache=True, inline="always")
def _add(source, source_at, factor, target, target_at, n):
    """Add a vector of n entries, times a factor."""
    n_whole = n // LANES * LANES
    for i in range(0, n_whole, LANES):
        add_vector(source, source_at + i, factor, target, target_at + i)
    for i in range(n_whole, n):
        target[target_at + i] += factor * source[source_at + i]


@numba.njit(cache=True, inline="always")
def _place(span, j):
    """Return where a prompt's token j stands: the first ones in one place, the rest in another."""
    return span[0] + j if j < span[1] else span[2] + j - span[1]


@numba.njit(cache=True)
def _multiply(query, query_at, keys, steps, span, heads, factor, d, out):
    """Fill `out` (head, key) with the products of a query's heads and keys, times a factor; steps: token, head."""
    for j in range(span[3]):
        for h in range(heads[0], heads[1]):
            at = _place(span, j) * steps[0] + h * steps[1]
            out[h, j] = _product(query, query_at + h * d, keys, at, d) * factor


@numba.njit(cache=True)
def _collect(share, values, steps, span, heads, d, out, out_at):
    """Add to the heads of `out` the tokens' values, times their shares."""
    for j in range(span[3]):
        for h in range(heads[0], heads[1]):
            _add(values, _place(span, j) * steps[0] + h * steps[1], share[h, j], out, out_at + h * d, d)


@numba.njit(cache=True)
def _spread(share, query, query_at, span, heads, d, out):
    """Add a query's heads, times the tokens' shares, to the tokens' rows of `out` (token, head, d)."""
    for j in range(span[3]):
        for h in range(heads[0], heads[1]):
            _add(query, query_at + h * d, share[h, j], out, (_place(span, j) * len(share) + h) * d, d)


@numba.njit(cache=True, error_model="numpy")
def _share_out(score, n_key, sink):
    """Turn scores into shares."""
    for h in range(sink.size):
        row, slot = score[h, :n_key], sink[h] * LOG2_E
        highest = max(row.max(), slot)
        shrink = ONE / (sum_of_powers(row, highest) + exp2(slot - highest))
        for j in range(n_key):
            row[j] *= shrink


@numba.njit(void(_ARRAY, _ARRAY, _STEPS, _ARRAY, _STEPS, _ARRAY, int64, int64, int64, _ARRAY), cache=True)
def forward_behind_cache(q, k, k_steps, v, v_steps, sink, n_query, n_pos, d, out):
    """Fill `out` (batch, query, head, d) for queries `q`, alike, of the last few of `n_pos` positions.

    The steps of keys and values are those of batch, position and head.
    """
    n_head = sink.size
    share, heads = np.empty((n_head, n_pos), np.float32), (0, n_head)
    out[:] = ZERO
    for index in range(q.size // (n_head * d)):
        b, n_key, at = index // n_query, n_pos - n_query + index % n_query + 1, index * n_head * d
        keys, values, span = k[b * k_steps[0] :], v[b * v_steps[0] :], (0, n_key, 0, n_key)
        _multiply(q, at, keys, k_steps[1:], span, heads, query_scale(d), d, share)
        _share_out(share, n_key, sink)
        _collect(share, values, v_steps[1:], span, heads, d, out, at)


@numba.njit(
    void(_ARRAY, _ARRAY, _PLACED, _ARRAY, _PLACED, _ARRAY, _SPANS, int64, _ARRAY, _BY_KEY), cache=True, parallel=True
)
def forward(q, k, k_steps, v, v_steps, sink, spans, d, out, share):
    """Fill `out` (prompt, head, d) for queries `q`, alike, and the shares (prompt, head, key) that they give.

    The steps of keys and values are those of tokens and heads. A span is where a prompt starts, how many of its tokens
    stand there, where the rest stands, and how many they are in all.
    """
    n_head = sink.size
    out[:] = ZERO
    for prompt in prange(len(spans)):
        span, heads, at = spans[prompt], (0, n_head), prompt * n_head * d
        _multiply(q, at, k, k_steps, span, heads, query_scale(d), d, share[prompt])
        _share_out(share[prompt], span[3], sink)
        _collect(share[prompt], v, v_steps, span, heads, d, out, at)


@numba.njit(
    void(
        *(_ARRAY, _ARRAY, _PLACED, _ARRAY, _PLACED, _ARRAY, _SPANS, _BY_KEY, int64, int64),
        *(_BY_HEAD, _ARRAY, _ARRAY, _ARRAY),
    ),
    cache=True,
    parallel=True,
)
def backward(q, k, k_steps, v, v_steps, grad, spans, share, d, n_job, mean, by_q, by_k, by_v):
    """Fill `mean` (prompt, head), that of the shares' gradients weighted with the shares, and add to the gradients.

    The heads go to `n_job` threads, as prompts may have tokens in common. Gradients lie as (prompt or token, head, d).
    """
    n_prompt, n_head, n_most = share.shape
    factor = ONE / np.float32(math.sqrt(d))
    for job in prange(n_job):
        heads = (job * n_head // n_job, (job + 1) * n_head // n_job)
        by_share = np.empty((n_head, n_most), np.float32)
        for prompt in range(n_prompt):
            span, given, at = spans[prompt], share[prompt], prompt * n_head * d
            _multiply(grad, at, v, v_steps, span, heads, ONE, d, by_share)
            for h in range(heads[0], heads[1]):
                total = ZERO
                for j in range(span[3]):
                    total += given[h, j] * by_share[h, j]
                for j in range(span[3]):
                    by_share[h, j] = given[h, j] * (by_share[h, j] - total) * factor
                mean[prompt, h] = total
            _collect(by_share, k, k_steps, span, heads, d, by_q, at)
            _spread(by_share, q, at, span, heads, d, by_k)
            _spread(given, grad, at, span, heads, d, by_v)
