"""One position through all sublayers of a packed model, compiled by Numba at the first import and cached on disk.

What `Transformer.run` does behind a cache, for a single position a row, without taps. Of each vector that AbsTopK has
thinned out only what is not zero is multiplied, queries and keys included.
"""

import math

import numba
import numpy as np
from numba import boolean, float32, float64, int32, int64, prange, types, void

from sparse_circuits.kernels._packed_numba import map_by_columns
from sparse_circuits.kernels._threads_numba import set_threads
from sparse_circuits.kernels._topk_numba import abs_topk_row
from sparse_circuits.kernels._vectors_numba import LANES, add_vector, exp2, set_row
from sparse_circuits.kernels.compiled import MIN_PARALLEL

__all__ = ["run_position", "set_threads", "whole_tiles"]

LOG2_E = np.float32(1 / math.log(2))
ZERO, HALF, ONE, ROOT_HALF = np.float32(0), np.float32(0.5), np.float32(1), np.float32(math.sqrt(0.5))

P = np.float32(0.3275911)
A1, A2, A3, A4, A5 = (np.float32(a) for a in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))
"""Of a rational approximation of the error function, right to 1.5e-7.

Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
"""

_VECTOR, _BY_LAYER, _OF_READS = float32[::1], float32[:, ::1], float32[:, :, ::1]


@numba.njit(int64(int64), cache=True)
def whole_tiles(n):
    """Round up to whole tiles."""
    return -(-n // LANES) * LANES


@numba.njit(void(_VECTOR, _VECTOR, _VECTOR, _VECTOR, boolean, _VECTOR), cache=True, fastmath={"reassoc", "contract"})
def _read(x, gain, shift, position, centres, out):
    """Normalise a vector, and put its position's behind it."""
    mean, square = ZERO, ZERO
    if centres:
        for i in range(x.size):
            mean += x[i]
        mean /= np.float32(x.size)
    for i in range(x.size):
        square += (x[i] - mean) * (x[i] - mean)
    eps = np.float32(1e-5) if centres else np.float32(2**-23)
    scale = ONE / np.float32(math.sqrt(square / np.float32(x.size) + eps))
    for i in range(x.size):
        out[i] = (x[i] - mean) * scale * gain[i] + shift[i]
    for i in range(position.size):
        out[x.size + i] = position[i]


@numba.njit(void(_VECTOR, boolean), cache=True, fastmath={"contract"}, error_model="numpy")
def _activate(x, is_gelu):
    """Apply GELU or ReLU in place; a check of what is divided by would keep the loop from being one of vectors."""
    if not is_gelu:
        for i in range(x.size):
            x[i] = max(x[i], ZERO)
        return
    for i in range(x.size):
        size = abs(x[i])
        t = ONE / (ONE + P * ROOT_HALF * size)
        beyond = t * (A1 + t * (A2 + t * (A3 + t * (A4 + t * A5)))) * exp2(-HALF * LOG2_E * size * size)
        x[i] = max(x[i], ZERO) - HALF * size * beyond  # beyond: 1 - erf(size / root of 2)


@numba.njit(void(_VECTOR, int64, int32[::1], _VECTOR, float64[::1]), cache=True)
def _thin_out(x, n_keep, magnitudes, out, guess):
    """Write what AbsTopK keeps of a vector; all of it where nothing is left out."""
    if n_keep < x.size:
        abs_topk_row(x, n_keep, out, np.empty(0, np.bool_), magnitudes[: x.size], guess)
    else:
        out[:] = x


@numba.njit(void(_VECTOR, _VECTOR, boolean, int64, int32[::1], _VECTOR, float64[::1]), cache=True)
def _add_to_stream(x, delta, rectifies, n_keep, magnitudes, whole, guess):
    """Add what a sublayer writes, and do to the stream what the config says."""
    for i in range(x.size):
        total = x[i] + delta[i]
        whole[i] = max(total, ZERO) if rectifies else total
    _thin_out(whole[: x.size], n_keep, magnitudes, x, guess)


@numba.njit(void(_VECTOR, float32), cache=True, fastmath={"reassoc", "nsz", "contract"})
def _share_out(score, sink):
    """Turn scores, in units of ln 2, into shares of the attention that a sink has its part of."""
    highest = sink
    for j in range(score.size):
        highest = max(highest, score[j])
    total = exp2(sink - highest)
    for j in range(score.size):
        score[j] = exp2(score[j] - highest)
        total += score[j]
    share = ONE / total
    for j in range(score.size):
        score[j] *= share


_OF_ATTENTION = (_VECTOR, _VECTOR, int64, _VECTOR, int64, int64, int64, _VECTOR, _VECTOR)


@numba.njit(void(*_OF_ATTENTION, int64, int64), cache=True)
def _attend(qkv, keys, keys_at, values, values_at, room, pos, sink, out, first, last):
    """Add a position's keys and values to those before, and mix: for the heads from `first` to before `last`.

    Keys lie channel by channel, `room` apart and zero from `pos` on, so that a query's zeros cost nothing; values lie
    head by head, their positions as wide as whole tiles.
    """
    d_attn, end = out.size, (pos // LANES + 1) * LANES
    d = d_attn // sink.size
    width, unit = whole_tiles(d), LOG2_E / np.float32(math.sqrt(d))
    score, tile = np.empty(end, np.float32), np.empty(LANES, np.float32)
    for h in range(first, last):
        score[:] = ZERO
        at = values_at + h * room * width
        for c in range(h * d, (h + 1) * d):
            if qkv[d_attn + c] != 0:
                keys[keys_at + c * room + pos] = qkv[d_attn + c]
            values[at + pos * width + c - h * d] = qkv[2 * d_attn + c]
            if qkv[c] != 0:
                for j in range(0, end, LANES):
                    add_vector(keys, keys_at + c * room + j, qkv[c] * unit, score, j)
        _share_out(score[: pos + 1], sink[h] * LOG2_E)
        for i in range(0, width, LANES):
            set_row(tile, 0, 0, score, 0, 0, 1, values, at + i, width, pos + 1)
            for c in range(i, min(i + LANES, d)):
                out[h * d + c] = tile[c - i]


@numba.njit(void(*_OF_ATTENTION, int64), cache=True, parallel=True)
def _attend_in_parts(qkv, keys, keys_at, values, values_at, room, pos, sink, out, n_part):
    """Do so for all heads, shared among threads."""
    for part in prange(n_part):
        first, last = part * sink.size // n_part, (part + 1) * sink.size // n_part
        _attend(qkv, keys, keys_at, values, values_at, room, pos, sink, out, first, last)


@numba.njit(
    void(
        *(_BY_LAYER, int64, int64[::1], types.UniTuple(boolean, 3), float64[:, :, ::1]),
        *(types.Tuple((_VECTOR, _VECTOR, int64)), types.UniTuple(_OF_READS, 3), _BY_LAYER),
        *(
            types.Tuple((_VECTOR, int32[::1], int32[::1])),
            types.UniTuple(int64[:, ::1], 4),
            types.UniTuple(_BY_LAYER, 4),
        ),
        int64,
    ),
    cache=True,
)
def run_position(stream, pos, n_keep, switches, guesses, cache, reads, sinks, nonzeros, offsets, biases, n_thread):
    """Run all sublayers for the position that comes after `pos` others; the stream is changed in place.

    Args:
        stream: (batch, d_model).
        pos: Positions in the cache, below its room; one more afterwards.
        n_keep: What AbsTopK keeps at attn.act_in, q, k, v, resid_delta, resid_mid, mlp.act_in, post_act, resid_delta,
            resid_out, 10 numbers; the width or more where it keeps all.
        switches: Norms centre; neurons are GELU's and not ReLU's; the stream is rectified.
        guesses: Where AbsTopK starts its search, (layer, 10, 1); kept up to date.
        cache: Keys (layer, batch, channel, room), zero from `pos` on; values (layer, batch, head, room, width of a head
            in whole tiles), both flat; the room, in whole tiles.
        reads: Gains of the norms and what they add, each (layer, 2, d_model), attention's first, then the MLP's; the
            normalised vector of this position (layer, 2, d_position), which may be none wide.
        sinks: (layer, head); minus infinity is none.
        nonzeros: Of all maps, column after column; their rows; their columns.
        offsets: Where each column starts, (layer, source + 1), of qkv, out, fc_in, fc_out.
        biases: Theirs, (layer, target).
        n_thread: Threads for attention over many positions, as many as `set_threads` has set.
    """
    (past_keys, past_values, room), (gains, shifts, positions), (values, rows, columns) = cache, reads, nonzeros
    n_layer, n_head, n_batch, d_model = *sinks.shape, *stream.shape
    centres, is_gelu, rectifies = switches
    d_read, d_attn, d_mlp = d_model + positions.shape[2], biases[0].shape[1] // 3, biases[2].shape[1]
    widest, width = max(d_read, 3 * d_attn, d_mlp), whole_tiles(d_attn // n_head)
    magnitudes = np.empty(widest, np.int32)
    whole, thin = np.empty(widest, np.float32), np.empty(widest, np.float32)
    for layer in range(n_layer):
        guess = guesses[layer]
        for b in range(n_batch):
            x = stream[b]
            _read(x, gains[layer, 0], shifts[layer, 0], positions[layer, 0], centres, whole[:d_read])
            _thin_out(whole[:d_read], n_keep[0], magnitudes, thin[:d_read], guess[0])
            map_by_columns(
                thin[:d_read], values, rows, columns, offsets[0][layer], biases[0][layer], whole[: 3 * d_attn]
            )
            for i in range(3):
                part = slice(i * d_attn, (i + 1) * d_attn)
                _thin_out(whole[part], n_keep[1 + i], magnitudes, thin[part], guess[1 + i])
            mixed, row = whole[:d_attn], layer * n_batch + b
            keys_at, values_at = row * d_attn * room, row * n_head * room * width
            of_attention = (thin[: 3 * d_attn], past_keys, keys_at, past_values, values_at, room, pos, sinks[layer])
            if n_thread > 1 and pos * d_attn >= MIN_PARALLEL:
                _attend_in_parts(*of_attention, mixed, n_thread)
            else:
                _attend(*of_attention, mixed, 0, n_head)
            map_by_columns(mixed, values, rows, columns, offsets[1][layer], biases[1][layer], thin[:d_model])
            _thin_out(thin[:d_model], n_keep[4], magnitudes, whole[:d_model], guess[4])
            _add_to_stream(x, whole[:d_model], rectifies, n_keep[5], magnitudes, thin, guess[5])
            _read(x, gains[layer, 1], shifts[layer, 1], positions[layer, 1], centres, whole[:d_read])
            _thin_out(whole[:d_read], n_keep[6], magnitudes, thin[:d_read], guess[6])
            map_by_columns(thin[:d_read], values, rows, columns, offsets[2][layer], biases[2][layer], whole[:d_mlp])
            _activate(whole[:d_mlp], is_gelu)
            _thin_out(whole[:d_mlp], n_keep[7], magnitudes, thin[:d_mlp], guess[7])
            map_by_columns(thin[:d_mlp], values, rows, columns, offsets[3][layer], biases[3][layer], whole[:d_model])
            _thin_out(whole[:d_model], n_keep[8], magnitudes, thin[:d_model], guess[8])
            _add_to_stream(x, thin[:d_model], rectifies, n_keep[9], magnitudes, whole, guess[9])
