"""Attention for a few queries: each prompt's last one, forward and backward, and those behind a cache (Numba)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.kernels import reference
from sparse_circuits.kernels.compiled import OnceDifferentiable, can_loop, loops, threaded


def can_last_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Say whether `last_attention` takes these tensors."""
    return q.numel() > 0 and can_loop("_last_numba", q, k, v)


def last_attention(
    q: Float[Tensor, "prompt head d_head"],
    k: Float[Tensor, "token head d_head"],
    v: Float[Tensor, "token head d_head"],
    sink: Float[Tensor, " head"] | None,
    spans: Int[Tensor, "prompt 4"],
) -> Float[Tensor, "prompt head d_head"]:
    """Mix values for each prompt's last query; see `reference.last_attention`."""
    logit = q.new_full((q.shape[1],), -torch.inf) if sink is None else sink
    out: Tensor = _LastAttention.apply(q, k, v, logit, spans)  # pyright: ignore[reportAssignmentType]
    return out if bool(out.detach().sum().isfinite()) else reference.last_attention(q, k, v, sink, spans)


class _LastAttention(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor, spans: Tensor) -> Tensor:
        q, k, v, spans = q.detach().contiguous(), in_heads(k), in_heads(v), spans.contiguous()
        out, logit = torch.empty_like(q), sink.detach().to(torch.float32).contiguous()
        share = q.new_zeros(*q.shape[:2], int(spans[:, 3].max()))
        given = (q.view(-1).numpy(), *memory_of(k), *memory_of(v), logit.numpy(), spans.numpy())
        threaded("_last_numba").forward(*given, q.shape[-1], out.view(-1).numpy(), share.numpy())
        ctx.save_for_backward(q, k, v, spans, share)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        q, k, v, spans, share = ctx.saved_tensors
        by_q, by_k, by_v = torch.zeros_like(q), q.new_zeros(k.shape), q.new_zeros(v.shape)
        mean = q.new_empty(q.shape[:2])
        given = (q.view(-1).numpy(), *memory_of(k), *memory_of(v), grads[0].contiguous().view(-1).numpy())
        filled = (x.view(-1).numpy() for x in (by_q, by_k, by_v))
        sizes = (q.shape[-1], torch.get_num_threads())
        threaded("_last_numba").backward(*given, spans.numpy(), share.numpy(), *sizes, mean.numpy(), *filled)
        by_sink = -((1 - share.sum(-1)) * mean).sum(0) if ctx.needs_input_grad[3] else None
        return by_q, by_k, by_v, by_sink, None


def behind_cache(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    v: Float[Tensor, "batch head pos d_head"],
    sink: Float[Tensor, " head"],
) -> Float[Tensor, "batch head query d_head"]:
    """Mix values for queries of the last positions, one after the other; no gradient."""
    k, v = in_heads(k).transpose(1, 2), in_heads(v).transpose(1, 2)
    queries = q.detach().transpose(1, 2).contiguous()  # (batch, query, head, d_head)
    out, logit = torch.empty_like(queries), sink.detach().to(torch.float32).contiguous()
    shape, memory = (q.shape[-2], k.shape[1], q.shape[-1]), (*memory_of(k), *memory_of(v))
    compiled: Any = loops("_last_numba")
    compiled.forward_behind_cache(queries.view(-1).numpy(), *memory, logit.numpy(), *shape, out.view(-1).numpy())
    return out.transpose(1, 2)


def in_heads(x: Tensor) -> Tensor:
    """Return x, copied if the entries of a head do not lie side by side."""
    return x.detach() if x.stride(-1) == 1 else x.detach().contiguous()


def memory_of(x: Tensor) -> tuple[Any, tuple[int, ...]]:
    """Return the memory of x (…, d_head) as one vector, and the steps of all axes but the last."""
    size = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((size,), (1,)).numpy(), x.stride()[:-1]
