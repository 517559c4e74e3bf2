"""Attention of many narrow heads over short contexts, forward and backward, one head after the other (Numba)."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.kernels import cpu_last, reference
from sparse_circuits.kernels.compiled import OnceDifferentiable, loops
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
        all(x.device.type == "cpu" and x.dtype is torch.float32 for x in (q, k, v))
        and q.numel() > 0
        and q.shape[-1] <= MAX_WIDTH
        and (_is_last(q, k) or (q.shape == k.shape and MIN_POS <= q.shape[-2] <= MAX_POS))
        and not torch.compiler.is_compiling()
        and loops("_attention_numba") is not None
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
    out: Tensor = _NarrowAttention.apply(q, k, v, sink)  # pyright: ignore[reportAssignmentType]
    return out if bool(out.detach().sum().isfinite()) else reference.sink_attention(q, k, v, sink)


def can_shared_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Say whether `shared_attention` takes these tensors."""
    return (
        all(x.device.type == "cpu" and x.dtype is torch.float32 for x in (q, k, v))
        and q.numel() > 0
        and loops("_attention_numba") is not None
    )


def shared_attention(
    q: Float[Tensor, "token head d_head"],
    k: Float[Tensor, "token head d_head"],
    v: Float[Tensor, "token head d_head"],
    sink: Float[Tensor, " head"] | None,
    spans: Int[Tensor, "pair 4"],
) -> Float[Tensor, "token head d_head"]:
    """Mix values in pairs of prompts that begin alike; see `reference.shared_attention`."""
    logit = q.new_full((q.shape[1],), -torch.inf) if sink is None else sink
    out: Tensor = _SharedAttention.apply(q, k, v, logit, spans)  # pyright: ignore[reportAssignmentType]
    return out if bool(out.detach().sum().isfinite()) else reference.shared_attention(q, k, v, sink, spans)


def _is_last(q: Tensor, k: Tensor) -> bool:
    """Say whether these are a few queries behind a cache, and no gradient is asked for."""
    return q.shape[-2] < k.shape[-2] and q.shape[-2] <= MAX_LAST and not torch.is_grad_enabled()


class _NarrowAttention(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        q, k, v = in_heads(q), in_heads(k), in_heads(v)
        out, (highest, shrink) = _by_position(q), q.new_empty(2, *q.shape[:3])
        logit = sink.detach().to(torch.float32).contiguous()
        memory = (*memory_of(q), *memory_of(k), *memory_of(v))
        _threads().forward(*memory, logit.numpy(), out.view(-1).numpy(), q.shape[-1], highest.numpy(), shrink.numpy())
        ctx.save_for_backward(q, k, v, sink, highest, shrink)
        return out.transpose(1, 2)  # (batch, head, pos, d_head)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        q, k, v, sink, highest, shrink = ctx.saved_tensors
        grad = in_heads(grads[0])
        by_q, by_k, by_v = (_by_position(q) for _ in range(3))
        mean = torch.empty_like(highest)
        memory = (*memory_of(q), *memory_of(k), *memory_of(v), *memory_of(grad))
        filled = (x.view(-1).numpy() for x in (by_q, by_k, by_v))
        _threads().backward(*memory, highest.numpy(), shrink.numpy(), mean.numpy(), *filled, q.shape[-1])
        by_sink = _by_sink(sink, highest, shrink, mean) if ctx.needs_input_grad[3] else None
        return by_q.transpose(1, 2), by_k.transpose(1, 2), by_v.transpose(1, 2), by_sink


class _SharedAttention(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor, spans: Tensor) -> Tensor:
        q, k, v = in_heads(q), in_heads(k), in_heads(v)
        out, logit = q.new_zeros(q.shape), sink.detach().to(torch.float32).contiguous()
        highest, shrink = q.new_zeros(2, len(spans), 2, q.shape[1], int(spans[:, 3].max()))
        memory = (*memory_of(q), *memory_of(k), *memory_of(v), logit.numpy(), spans.numpy())
        _threads().forward_shared(*memory, out.view(-1).numpy(), q.shape[-1], highest.numpy(), shrink.numpy())
        ctx.save_for_backward(q, k, v, sink, spans, highest, shrink)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        q, k, v, sink, spans, highest, shrink = ctx.saved_tensors
        by_q, by_k, by_v = (q.new_zeros(q.shape) for _ in range(3))
        mean = torch.zeros_like(highest)
        memory = (*memory_of(q), *memory_of(k), *memory_of(v), *memory_of(in_heads(grads[0])), spans.numpy())
        filled = (x.view(-1).numpy() for x in (by_q, by_k, by_v))
        _threads().backward_shared(*memory, highest.numpy(), shrink.numpy(), mean.numpy(), *filled, q.shape[-1])
        by_sink = _by_sink(sink, highest, shrink, mean).sum(0) if ctx.needs_input_grad[3] else None
        return by_q, by_k, by_v, by_sink, None


def _by_sink(sink: Tensor, highest: Tensor, shrink: Tensor, mean: Tensor) -> Float[Tensor, "*side head"]:
    """Return the sink's gradient; what it takes is (batch, *side, head, pos), the highest score in units of ln 2."""
    taken = (sink[:, None] - highest * math.log(2)).exp() * shrink
    return -(taken * mean).sum((0, -1)).to(sink.dtype)


def _by_position(x: Tensor) -> Tensor:
    """Return an empty tensor (batch, pos, head, d_head) for x (batch, head, pos, d_head): as projections make them."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3])


def _threads() -> Any:
    """Return the compiled functions, set to torch's number of threads."""
    compiled: Any = loops("_attention_numba")
    compiled.set_threads(torch.get_num_threads())
    return compiled
