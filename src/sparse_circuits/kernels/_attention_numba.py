"""The loops of `kernels.cpu_attention`, compiled by Numba at the first import and cached on disk.

A head is taken by itself, 16 queries at a time with all keys that they see: everything it needs lies in the first two
caches. Scores are in units of ln 2, so that a power of two stands for the exponential. What is copied is filled up with
zeros to whole tiles.
"""

import math

import numba
import numpy as np
from numba import float32, int64, prange, types, void

from sparse_circuits.kernels._threads_numba import set_threads
from sparse_circuits.kernels._vectors_numba import (
    LANES,
    N_ROW,
    add_tile,
    copy_vector,
    exp2,
    largest,
    set_tile,
    turn,
)

__all__ = ["backward", "forward", "query_scale", "set_threads", "sum_of_powers"]

HEADS_AT_ONCE = 4
"""Heads that one thread takes at a time; fewer where there are so few that threads would have nothing to do."""

N_QUERY = 16
"""Queries that are taken together; a multiple of both sides of a tile."""

LOG2_E, LN_2 = np.float32(1 / math.log(2)), np.float32(math.log(2))
ZERO, ONE, NEVER = np.float32(0), np.float32(1), np.float32(-np.inf)

_ARRAY, _STEPS, _SPANS, _BY_SIDE = float32[::1], types.UniTuple(int64, 2), int64[:, ::1], float32[:, :, :, ::1]


@numba.njit(cache=True)
def _whole(n):
    """Round up to whole tiles."""
    return -(-n // LANES) * LANES


@numba.njit(cache=True)
def _heads_at_once(n_head):
    """Return how many of all pairs' heads one thread takes at a time."""
    return max(1, min(HEADS_AT_ONCE, n_head // 16))


@numba.njit(cache=True, inline="always")
def _start(steps, token, h):
    """Return where a head's first entry lies."""
    return token * steps[0] + h * steps[1]


@numba.njit(cache=True)
def query_scale(d):
    """Return what makes scores be in units of ln 2, and of unit variance."""
    return LOG2_E / np.float32(math.sqrt(d))


@numba.njit(cache=True, inline="always")
def _copy(source, start, step, n_row, d, factor, target, to, to_step):
    """Copy rows of d entries, times a factor; they lie `step` apart there and `to_step` here."""
    n_whole = d // LANES * LANES
    for i in range(n_row):
        here, there = to + i * to_step, start + i * step
        for c in range(0, n_whole, LANES):
            copy_vector(source, there + c, factor, target, here + c)
        for c in range(n_whole, d):
            target[here + c] = source[there + c] * factor


@numba.njit(cache=True, fastmath={"reassoc", "nsz", "contract"})
def sum_of_powers(row, highest):
    """Raise two to each number less the highest, in place; return the sum."""
    total = ZERO
    for j in range(row.size):
        row[j] = exp2(row[j] - highest)
        total += row[j]
    return total


@numba.njit(cache=True)
def _score(queries, first, width, keys, height, d, n_key, score):
    """Fill `score` (N_QUERY, height) with the products of queries and turned keys."""
    for r in range(0, N_QUERY, N_ROW):
        for j in range(0, n_key, LANES):
            set_tile(score, r * height + j, height, queries, (first + r) * width, width, 1, keys, j, height, d)


@numba.njit(cache=True)
def _mix(share, height, n_key, values, width, out):
    """Fill `out` (N_QUERY, width) with the shares' mixture of rows of values."""
    for r in range(0, N_QUERY, N_ROW):
        for c in range(0, width, LANES):
            set_tile(out, r * width + c, width, share, r * height, height, 1, values, c, width, n_key)


@numba.njit(cache=True)
def _collect(share, height, n_key, queries, first, width, out):
    """Add to each key's row of `out` the mixture of the queries' rows, by the shares that they gave the key."""
    for j in range(0, n_key, N_ROW):
        for c in range(0, width, LANES):
            at = first * width + c
            add_tile(out, j * width + c, width, share, j, 1, height, queries, at, width, N_QUERY)


@numba.njit(cache=True, error_model="numpy")
def _share_out(score, height, first, n_query, slot, highest, shrink):
    """Turn rows of scores into shares, still to be multiplied with `shrink`; note the highest score and that factor."""
    n_key = first + N_QUERY
    for r in range(n_query):
        row = score[r * height : r * height + n_key]
        for j in range(first + r + 1, n_key):
            row[j] = NEVER
        top = largest(score, r * height, n_key)
        top = slot if slot > top else top
        highest[first + r] = top
        shrink[first + r] = ONE / (sum_of_powers(row, top) + exp2(slot - top))


@numba.njit(cache=True)
def _attend(queries, keys, values, n_pos, own, slot, d, width, height, score, mixed, out, out_at, out_step, *noted):
    """Write what the queries from `own` on mix, `out_step` apart; the first of them at `out_at`."""
    highest, shrink = noted
    for first in range(own // N_QUERY * N_QUERY, n_pos, N_QUERY):
        n_query = min(N_QUERY, n_pos - first)
        _score(queries, first, width, keys, height, d, first + N_QUERY, score)
        _share_out(score, height, first, n_query, slot, highest, shrink)
        _mix(score, height, first + N_QUERY, values, width, mixed)
        for r in range(max(0, own - first), n_query):
            at = out_at + (first + r - own) * out_step
            _copy(mixed, r * width, 0, 1, d, shrink[first + r], out, at, 0)


@numba.njit(
    void(_ARRAY, _STEPS, _ARRAY, _STEPS, _ARRAY, _STEPS, _ARRAY, _SPANS, _ARRAY, int64, _BY_SIDE, _BY_SIDE),
    cache=True,
    parallel=True,
)
def forward(q, q_steps, k, k_steps, v, v_steps, sink, spans, out, d, highest, shrink):
    """Fill `out` (token, head, d), and note each query's highest score and what its powers are multiplied with.

    These two, and not the logarithm of the sum: of large scores that would lose the digits that tell shares apart. They
    are (pair, side, head, pos), and left as they are where the second prompt's query is the first's.

    Each of the spans has where the first prompt of a pair starts, how many tokens both begin with, where the rest of
    the second starts, and the tokens of either; of a prompt alone both begin with all. The steps are those of tokens
    and heads; the entries of a head lie side by side.
    """
    n_pair, _, n_head, n_pos = highest.shape
    width, height = _whole(d), _whole(n_pos)
    at_once = _heads_at_once(n_pair * n_head)
    for job in prange(-(-n_pair * n_head // at_once)):
        queries, keys = np.zeros(height * width, np.float32), np.zeros(width * height, np.float32)
        values, mixed = np.zeros(height * width, np.float32), np.empty(N_QUERY * width, np.float32)
        score = np.empty(N_QUERY * height, np.float32)
        for index in range(job * at_once, min(n_pair * n_head, (job + 1) * at_once)):
            pair, h = index // n_head, index % n_head
            length = spans[pair, 3]
            for side in range(2):  # the second side leaves in its place what both begin with
                own, start = side * spans[pair, 1], spans[pair, 2 * side]
                n = length - own
                if n == 0:
                    continue
                _copy(q, _start(q_steps, start, h), q_steps[0], n, d, query_scale(d), queries, own * width, width)
                turn(k, _start(k_steps, start, h), k_steps[0], n, d, keys, own, height)
                _copy(v, _start(v_steps, start, h), v_steps[0], n, d, ONE, values, own * width, width)
                sizes, at = (length, own, sink[h] * LOG2_E, d, width, height), (start * n_head + h) * d
                noted = (highest[pair, side, h], shrink[pair, side, h])
                _attend(queries, keys, values, *sizes, score, mixed, out, at, n_head * d, *noted)


@numba.njit(cache=True, fastmath={"reassoc", "nsz", "contract"})
def _shares(row, by_row, highest, shrink):
    """Turn a query's scores into shares, and the gradients of these into those of the scores; return the mean."""
    mean = ZERO
    for j in range(row.size):
        row[j] = exp2(row[j] - highest) * shrink
        mean += row[j] * by_row[j]
    for j in range(row.size):
        by_row[j] = row[j] * (by_row[j] - mean)
    return mean


@numba.njit(cache=True)
def _weigh(score, by_score, height, first, n_query, highest, shrink, mean):
    """Turn scores into shares, and the shares' gradients into the scores'; what is not seen has neither."""
    n_key = first + N_QUERY
    for r in range(N_QUERY):
        row, by_row = score[r * height : r * height + n_key], by_score[r * height : r * height + n_key]
        for j in range(first + r + 1 if r < n_query else 0, n_key):
            row[j] = NEVER
            by_row[j] = ZERO
        if r < n_query:
            mean[first + r] = _shares(row, by_row, highest[first + r], shrink[first + r])
        else:
            for j in range(n_key):
                row[j] = ZERO


@numba.njit(cache=True)
def _is_zero(numbers, at, n):
    """Say whether n numbers are all zero; a NaN is not."""
    n_other = np.uint32(0)
    for i in range(at, at + n):
        n_other += np.uint32(numbers[i] != 0)
    return n_other == 0


@numba.njit(cache=True)
def _send_back(rows, turned, n_pos, own, d, width, height, scratch, sums, noted, by_q, at, step):
    """Write the gradients of the queries from `own` on, `step` apart, and add to the sums of those of keys and values.

    Queries to whose output no gradient comes back are passed over.
    """
    queries, keys, pulls = rows
    turned_keys, turned_values = turned
    score, by_score, mixed = scratch
    sum_k, sum_v = sums
    highest, shrink, mean = noted
    for first in range(own // N_QUERY * N_QUERY, n_pos, N_QUERY):
        n_key, n_query, skipped = first + N_QUERY, min(N_QUERY, n_pos - first), max(0, own - first)
        to = at + (first + skipped - own) * step
        if _is_zero(pulls, first * width, n_query * width):
            _copy(pulls, (first + skipped) * width, width, n_query - skipped, d, ZERO, by_q, to, step)
            mean[first : first + n_query] = ZERO
            continue
        _score(queries, first, width, turned_keys, height, d, n_key, score)
        _score(pulls, first, width, turned_values, height, d, n_key, by_score)
        _weigh(score, by_score, height, first, n_query, highest, shrink, mean)
        _mix(by_score, height, n_key, keys, width, mixed)
        _collect(score, height, n_key, pulls, first, width, sum_v)
        _collect(by_score, height, n_key, queries, first, width, sum_k)
        factor = query_scale(d) * LN_2
        _copy(mixed, skipped * width, width, n_query - skipped, d, factor, by_q, to, step)


@numba.njit(
    void(
        *(_ARRAY, _STEPS, _ARRAY, _STEPS, _ARRAY, _STEPS, _ARRAY, _STEPS, _SPANS),
        *(_BY_SIDE, _BY_SIDE, _BY_SIDE, _ARRAY, _ARRAY, _ARRAY, int64),
    ),
    cache=True,
    parallel=True,
)
def backward(q, q_steps, k, k_steps, v, v_steps, grad, grad_steps, spans, highest, shrink, mean, by_q, by_k, by_v, d):
    """Fill the gradients of q, k and v (token, head, d), and the mean of each query's (pair, side, head, pos).

    The mean is that of its shares' gradients, weighted with the shares. What keys and values of the tokens that both
    prompts begin with get from either is added up.
    """
    n_pair, _, n_head, n_pos = highest.shape
    width, height = _whole(d), _whole(n_pos)
    at_once, step = _heads_at_once(n_pair * n_head), n_head * d
    for job in prange(-(-n_pair * n_head // at_once)):
        queries, keys = np.zeros(height * width, np.float32), np.zeros(height * width, np.float32)
        pulls, turned_keys = np.zeros(height * width, np.float32), np.zeros(width * height, np.float32)
        turned_values, mixed = np.zeros(width * height, np.float32), np.empty(N_QUERY * width, np.float32)
        score, by_score = np.empty(N_QUERY * height, np.float32), np.empty(N_QUERY * height, np.float32)
        sum_k, sum_v = np.empty(height * width, np.float32), np.empty(height * width, np.float32)
        for index in range(job * at_once, min(n_pair * n_head, (job + 1) * at_once)):
            pair, h = index // n_head, index % n_head
            n_alike, length = spans[pair, 1], spans[pair, 3]
            sum_k[:] = ZERO
            sum_v[:] = ZERO
            for side in range(2):
                own, start = side * n_alike, spans[pair, 2 * side]
                n = length - own
                if n == 0:
                    continue
                _copy(q, _start(q_steps, start, h), q_steps[0], n, d, query_scale(d), queries, own * width, width)
                _copy(k, _start(k_steps, start, h), k_steps[0], n, d, ONE, keys, own * width, width)
                _copy(grad, _start(grad_steps, start, h), grad_steps[0], n, d, ONE, pulls, own * width, width)
                turn(k, _start(k_steps, start, h), k_steps[0], n, d, turned_keys, own, height)
                turn(v, _start(v_steps, start, h), v_steps[0], n, d, turned_values, own, height)
                pulls[: own * width] = ZERO
                rows, turned = (queries, keys, pulls), (turned_keys, turned_values)
                scratch, sums = (score, by_score, mixed), (sum_k, sum_v)
                noted = (highest[pair, side, h], shrink[pair, side, h], mean[pair, side, h])
                at = (start * n_head + h) * d
                _send_back(rows, turned, length, own, d, width, height, scratch, sums, noted, by_q, at, step)
                # The first side's rest goes out before the second side's takes its place; what both share, at last.
                _copy(sum_k, n_alike * width, width, length - n_alike, d, LN_2, by_k, at + (n_alike - own) * step, step)
                _copy(sum_v, n_alike * width, width, length - n_alike, d, ONE, by_v, at + (n_alike - own) * step, step)
                sum_k[n_alike * width :] = ZERO
                sum_v[n_alike * width :] = ZERO
            at = (spans[pair, 0] * n_head + h) * d
            _copy(sum_k, 0, width, n_alike, d, LN_2, by_k, at, step)
            _copy(sum_v, 0, width, n_alike, d, ONE, by_v, at, step)
