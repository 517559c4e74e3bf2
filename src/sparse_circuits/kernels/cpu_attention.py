"""Attention of many narrow heads over short contexts, forward and backward, one head after the other (Numba)."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.kernels import cpu_last, reference
from sparse_circuits.kernels.compiled import OnceDifferentiable, can_loop, threaded
from sparse_circuits.kernels.cpu_last import in_heads, memory_of

MIN_POS, MAX_POS = 16, 2048
"""Positions between which these loops are the faster ones; torch's fused attention is below, and further above not
compared."""

MAX_LAST = 4
"""Queries behind a cache up to which they go through its keys one after the other."""

MAX_WIDTH = 64
"""Entries of a head up to which they are: the widest that was compared."""


def can_sink_attention(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None) -> bool:
    """Say whether `sink_attention` takes these tensors."""
    return (
        q.numel() > 0
        and q.shape[-1] <= MAX_WIDTH
        and (_is_last(q, k) or (q.shape == k.shape and MIN_POS <= q.shape[-2] <= MAX_POS))
        and can_loop("_attention_numba", q, k, v)
    )


def sink_attention(
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    v: Float[Tensor, "batch head pos d_head"],
    sink: Float[Tensor, " head"] | None,
) -> Float[Tensor, "batch head pos d_head"]:
    """Mix values causally, with an optional sink; see `reference.sink_attention`.

    Whatever is not finite makes its own query's output not finite, and the reference is asked what else it reaches.
    """
    sink = q.new_full((q.shape[1],), -torch.inf) if sink is None else sink
    if _is_last(q, k):
        out = cpu_last.behind_cache(q, k, v, sink)
        return out if bool(out.sum().isfinite()) else reference.sink_attention(q, k, v, sink)
    (n_batch, n_head, n_pos, d_head), places = q.shape, (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    start, length = n_pos * torch.arange(n_batch), torch.full((n_batch,), n_pos)
    alone = torch.stack((start, length, start, length), 1)  # both prompts of a pair begin with all: there is one
    out: Tensor = _Attention.apply(*places, sink, alone)  # pyright: ignore[reportAssignmentType]
    if not bool(out.detach().sum().isfinite()):
        return reference.sink_attention(q, k, v, sink)
    return out.view(n_batch, n_pos, n_head, d_head).transpose(1, 2)


def can_shared_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Say whether `shared_attention` takes these tensors."""
    return q.numel() > 0 and can_loop("_attention_numba", q, k, v)


def shared_attention(
    q: Float[Tensor, "token head d_head"],
    k: Float[Tensor, "token head d_head"],
    v: Float[Tensor, "token head d_head"],
    sink: Float[Tensor, " head"] | None,
    spans: Int[Tensor, "pair 4"],
) -> Float[Tensor, "token head d_head"]:
    """Mix values in pairs of prompts that begin alike; see `reference.shared_attention`."""
    logit = q.new_full((q.shape[1],), -torch.inf) if sink is None else sink
    out: Tensor = _Attention.apply(q, k, v, logit, spans)  # pyright: ignore[reportAssignmentType]
    return out if bool(out.detach().sum().isfinite()) else reference.shared_attention(q, k, v, sink, spans)


def _is_last(q: Tensor, k: Tensor) -> bool:
    """Say whether these are a few queries behind a cache, and no gradient is asked for."""
    return q.shape[-2] < k.shape[-2] and q.shape[-2] <= MAX_LAST and not torch.is_grad_enabled()


class _Attention(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor, spans: Tensor) -> Tensor:
        q, k, v = in_heads(q), in_heads(k), in_heads(v)
        out, logit = _blank(q, spans), sink.detach().to(torch.float32).contiguous()
        highest, shrink = q.new_zeros(2, len(spans), 2, q.shape[1], int(spans[:, 3].max()))
        memory = (*memory_of(q), *memory_of(k), *memory_of(v), logit.numpy(), spans.numpy())
        threaded("_attention_numba").forward(
            *memory, out.view(-1).numpy(), q.shape[-1], highest.numpy(), shrink.numpy()
        )
        ctx.save_for_backward(q, k, v, sink, spans, highest, shrink)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        q, k, v, sink, spans, highest, shrink = ctx.saved_tensors
        by_q, by_k, by_v = (_blank(q, spans) for _ in range(3))
        mean = torch.zeros_like(highest)
        memory = (*memory_of(q), *memory_of(k), *memory_of(v), *memory_of(in_heads(grads[0])), spans.numpy())
        filled = (x.view(-1).numpy() for x in (by_q, by_k, by_v))
        threaded("_attention_numba").backward(
            *memory, highest.numpy(), shrink.numpy(), mean.numpy(), *filled, q.shape[-1]
        )
        by_sink = _by_sink(sink, highest, shrink, mean) if ctx.needs_input_grad[3] else None
        return by_q, by_k, by_v, by_sink, None


def _blank(q: Tensor, spans: Tensor) -> Tensor:
    """Return what is to be filled for every token of a prompt; those of none, if there are some, have zeros."""
    n_token = int((2 * spans[:, 3] - spans[:, 1]).sum())
    return torch.empty(q.shape) if n_token == len(q) else torch.zeros(q.shape)


def _by_sink(sink: Tensor, highest: Tensor, shrink: Tensor, mean: Tensor) -> Float[Tensor, " head"]:
    """Return the sink's gradient; what it takes is (pair, side, head, pos), the highest score in units of ln 2."""
    taken = (sink[:, None] - highest * math.log(2)).exp() * shrink
    return -(taken * mean).sum((0, 1, 3)).to(sink.dtype)
