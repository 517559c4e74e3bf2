"""The kernels on a CPU: thresholds found on the bits of |x| (Numba), attention with a sink over the fused one.

The bits of a magnitude, read as an integer, are ordered like the magnitude, with NaN above infinity. So the k-th
largest is found by bisecting on the bits, one vectorised count a bit, without sorting or scattering.
"""

import functools
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_MIN_PARALLEL = 1 << 15
"""Below this many entries the threads' start costs more than they save."""


@functools.cache
def _compiled() -> ModuleType:
    """Import the Numba functions at the first call, so that importing the package compiles nothing.

    Numba's threads are those of torch's OpenMP, and starting them sets their number to all cores; torch gets its own
    number back.
    """
    n_thread = torch.get_num_threads()
    from sparse_circuits.kernels import _cpu_numba

    torch.set_num_threads(n_thread)
    return _cpu_numba


def can_abs_topk(x: Tensor) -> bool:
    """Say whether `abs_topk` takes this tensor."""
    return x.device.type == "cpu" and x.dtype is torch.float32 and not torch.compiler.is_compiling()


def abs_topk(x: Float[Tensor, "*batch channel"], n_keep: int) -> Float[Tensor, "*batch channel"]:
    """Keep the `n_keep` entries of largest magnitude in each vector; see `reference.abs_topk`."""
    if not 0 <= n_keep <= x.shape[-1]:
        raise ValueError(f"n_keep {n_keep} is not in [0, {x.shape[-1]}]")
    return _AbsTopK.apply(x, n_keep)  # pyright: ignore[reportReturnType]


class _AbsTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, n_keep: int) -> Tensor:
        out, keep = _values_and_mask(x.detach(), n_keep)
        ctx.save_for_backward(keep)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        grad = grads[0].contiguous()
        out = torch.empty_like(grad)
        if grad.numel():
            _compiled().set_threads(torch.get_num_threads())
            bits = grad.view(-1).numpy().view("u4"), keep.view(-1).numpy(), out.view(-1).numpy().view("u4")
            _compiled().where_kept(*bits)
        return out, None


def top_k_mask(x: Float[Tensor, "*batch channel"], n_keep: int) -> Bool[Tensor, "*batch channel"]:
    """Mark the `n_keep` entries of largest magnitude in each vector; see `reference.top_k_mask`."""
    if not 0 <= n_keep <= x.shape[-1]:
        raise ValueError(f"n_keep {n_keep} is not in [0, {x.shape[-1]}]")
    return _values_and_mask(x.detach(), n_keep)[1]


def _values_and_mask(x: Tensor, n_keep: int) -> tuple[Tensor, Tensor]:
    rows = x.contiguous()
    out, keep = torch.empty_like(rows), torch.empty(rows.shape, dtype=torch.bool)
    if rows.numel():
        width = rows.shape[-1]
        arguments = (
            rows.view(-1, width).numpy().view("u4"),
            n_keep,
            out.view(-1, width).numpy().view("u4"),
            keep.view(-1, width).numpy(),
        )
        function = _compiled().abs_topk_rows
        if rows.numel() >= _MIN_PARALLEL:
            _compiled().set_threads(torch.get_num_threads())
            function = _compiled().abs_topk_rows_parallel
        function(*arguments)
    return out, keep


def can_sink_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Say whether `sink_attention` takes this input, and this torch has the fused operators.

    They turn a NaN into zeros without a word, so input that is not finite goes to the reference.
    """
    return (
        q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.float64)
        and q.shape == k.shape
        and q.numel() > 0
        and not torch.compiler.is_compiling()
        and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward")
        and bool((q.detach().sum() + k.detach().sum() + v.detach().sum()).isfinite())
    )


def sink_attention(
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    v: Float[Tensor, "batch head pos d_head"],
    sink: Float[Tensor, " head"] | None,
) -> Float[Tensor, "batch head pos d_head"]:
    """Mix values causally, with an optional sink; see `reference.sink_attention`.

    With lse the log-sum-exp of a row's scores and b the sink's logit, the output is the fused attention's times
    sigmoid(lse − b), and its own backward gives exact gradients when handed that output and logaddexp(lse, b).
    """
    if sink is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return _SinkAttention.apply(q, k, v, sink)  # pyright: ignore[reportReturnType]


class _SinkAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        slot = sink.to(lse.dtype)[:, None]  # (head, 1)
        out = out * (lse - slot).sigmoid().unsqueeze(-1)
        lse = torch.logaddexp(lse, slot.expand_as(lse))  # (batch, head, pos)
        ctx.save_for_backward(q, k, v, sink, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, sink, out, lse = ctx.saved_tensors
        grad = grads[0]
        grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, True
        )
        share = (sink.to(lse.dtype)[:, None] - lse).exp()  # what the sink takes: (batch, head, pos)
        grad_sink = -(share * (grad * out).sum(-1)).sum((0, 2))  # (head,)
        return grad_q, grad_k, grad_v, grad_sink.to(sink.dtype)


def can_keep_largest(weight: Tensor) -> bool:
    """Say whether `keep_largest_` takes this tensor."""
    return weight.device.type == "cpu" and weight.dtype is torch.float32 and weight.is_contiguous()


def keep_largest_(weight: Float[Tensor, "..."], n_keep: int, *, protected: Bool[Tensor, "..."] | None = None) -> None:
    """Zero all but the `n_keep` largest entries in place; see `reference.keep_largest_`."""
    if not 0 <= n_keep <= weight.numel():
        raise ValueError(f"n_keep {n_keep} is not in [0, {weight.numel()}]")
    bits = weight.detach().view(-1).numpy().view("u4")
    if protected is None:
        _compiled().keep_largest_bits(bits, n_keep)
        return
    n_protected = int(protected.sum())
    if n_protected > n_keep:
        raise ValueError(f"{n_protected} protected entries exceed n_keep {n_keep}")
    free = ~protected.contiguous().view(-1)
    _compiled().keep_largest_free_bits(bits, free.numpy(), n_keep - n_protected)
