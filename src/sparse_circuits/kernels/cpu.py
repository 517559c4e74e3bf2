"""The kernels on a CPU: thresholds found on the bits of |x| (Numba), attention with a sink over the fused one.

The bits of a magnitude, read as an integer, are ordered like the magnitude, with NaN above infinity. So the k-th
largest is found by bisecting on the bits, one vectorised count a bit, without sorting or scattering.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.kernels.compiled import loops
from sparse_circuits.kernels.packed import PackedWeight

_MIN_PARALLEL = 1 << 15
"""Below this many entries the threads' start costs more than they save."""

_NO_MARKS = np.empty((0, 0), dtype=np.bool_)
"""Handed to loops that need not mark what they keep."""

_N_FEW = 16
"""So many vectors or fewer go through a packed weight one after the other."""

_N_A_LINE = 4
"""So few nonzeros a row and column, and many vectors do too: laying 64 side by side would cost more than it saves."""


_N_MANY = 8
"""If one column in so many has to be gone through, going through all row by row is faster."""


def can_abs_topk(x: Tensor) -> bool:
    """Say whether `abs_topk` and `top_k_mask` take this tensor."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not torch.compiler.is_compiling()
        and loops("_topk_numba") is not None
    )


def _topk() -> Any:
    return loops("_topk_numba")


def _projection() -> Any:
    return loops("_projection_numba")


def _packed() -> Any:
    return loops("_packed_numba")


def abs_topk(x: Float[Tensor, "*batch channel"], n_keep: int) -> Float[Tensor, "*batch channel"]:
    """Keep the `n_keep` entries of largest magnitude in each vector; see `reference.abs_topk`."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _AbsTopK.apply(x, n_keep)  # pyright: ignore[reportReturnType]
    return _thinned_out(x, n_keep, None).to(x.dtype)


class _AbsTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, n_keep: int) -> Tensor:
        keep = torch.empty(x.shape, dtype=torch.bool)
        ctx.save_for_backward(keep)
        return _thinned_out(x, n_keep, keep).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        if grads[0].dtype is not torch.float32:
            return grads[0] * keep, None
        grad = grads[0].contiguous()
        out = torch.empty_like(grad)
        if grad.numel():
            _topk().set_threads(torch.get_num_threads())
            _topk().where_kept(grad.view(-1).numpy(), keep.view(-1).numpy(), out.view(-1).numpy())
        return out, None


def top_k_mask(x: Float[Tensor, "*batch channel"], n_keep: int) -> Bool[Tensor, "*batch channel"]:
    """Mark the `n_keep` entries of largest magnitude in each vector; see `reference.top_k_mask`."""
    keep = torch.empty(x.shape, dtype=torch.bool)
    _thinned_out(x, n_keep, keep)
    return keep


def _thinned_out(x: Tensor, n_keep: int, keep: Tensor | None) -> Tensor:
    """Return what AbsTopK leaves, in float32; mark it in `keep`, contiguous and of x's shape, if that is given."""
    rows = x.detach().float().contiguous()
    out, width = torch.empty_like(rows), rows.shape[-1]
    if rows.numel() == 0:
        return out
    given, left = (tensor.numpy().reshape(-1, width) for tensor in (rows, out))
    marks = _NO_MARKS if keep is None else keep.numpy().reshape(-1, width)
    compiled = _topk()
    if given.size < _MIN_PARALLEL or torch.get_num_threads() == 1:
        compiled.abs_topk_rows(given, n_keep, left, marks)
    else:
        compiled.set_threads(torch.get_num_threads())
        compiled.abs_topk_rows_parallel(given, n_keep, left, marks)
    return out


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
    return (
        weight.device.type == "cpu"
        and weight.dtype is torch.float32
        and weight.is_contiguous()
        and loops("_projection_numba") is not None
    )


def keep_largest_(weight: Float[Tensor, "..."], n_keep: int, *, n_alive: int = 0, neuron_axis: int = 0) -> None:
    """Zero all but the `n_keep` largest entries in place; see `reference.keep_largest_`."""
    bits = weight.detach().numpy().view("u4")
    n_part = torch.get_num_threads() if weight.numel() >= _MIN_PARALLEL else 1
    _projection().set_threads(n_part)
    if n_alive == 0:
        _projection().keep_largest_bits(bits.reshape(-1), n_keep, n_part)
        return
    poor = _poor_neurons(bits, n_keep, n_alive, neuron_axis, n_part)
    places = torch.empty(len(poor), n_alive, dtype=torch.int64)
    if neuron_axis == 0:
        _projection().largest_of_rows(bits, poor.numpy(), places.numpy(), n_part)
    elif len(poor) == weight.shape[1]:
        _projection().largest_of_columns(bits, places.numpy(), n_part)
    else:
        _projection().largest_of_few_columns(bits, poor.numpy(), places.numpy())
    _projection().keep_largest_and_protected(bits.reshape(-1), places.view(-1).numpy(), n_keep - places.numel(), n_part)


def _poor_neurons(bits: Any, n_keep: int, n_alive: int, neuron_axis: int, n_part: int) -> Int[Tensor, " poor"]:
    """Return the rows or columns that might not keep `n_alive` entries if the largest of the whole matrix were kept.

    Of all others the entries that are protected exceed a size that fewer than `n_keep` less all protected ones exceed;
    so they are kept in any case, and need not be looked for.
    """
    everyone, n_free = torch.arange(bits.shape[neuron_axis]), n_keep - n_alive * bits.shape[neuron_axis]
    if bits.size < _MIN_PARALLEL or n_free == 0:
        return everyone
    size, counts = _projection().rarely_exceeded(bits.reshape(-1), n_free), torch.empty_like(everyone)
    if neuron_axis == 0:
        _projection().count_above_by_row(bits, size, counts.numpy())
    else:
        _projection().count_above_by_column(bits, size, counts.numpy(), n_part)
    poor = (counts < n_alive).nonzero().flatten()
    is_wrong, are_many = int(counts.sum()) >= n_free, neuron_axis == 1 and _N_MANY * len(poor) > len(everyone)
    return everyone if is_wrong or are_many else poor


def can_pack(weight: Tensor) -> bool:
    """Say whether packed weights can be made of this tensor, or used with it."""
    return (
        weight.device.type == "cpu"
        and weight.dtype is torch.float32
        and not torch.compiler.is_compiling()
        and loops("_packed_numba") is not None
    )


def pack(weight: Float[Tensor, "target source"]) -> PackedWeight:
    """Leave out a matrix's zeros; see `packed.pack`."""
    array, offsets = weight.detach().contiguous().numpy(), _row_offsets(weight)
    n_nonzero = int(offsets[-1])
    values, columns = torch.empty(n_nonzero), torch.empty(n_nonzero, dtype=torch.int32)
    _packed().pack_rows(array, offsets.numpy(), values.numpy(), columns.numpy())
    return PackedWeight(values, columns, offsets, (weight.shape[0], weight.shape[1]))


def count_nonzero(weight: Float[Tensor, "target source"]) -> int:
    """Count a matrix's nonzeros."""
    return int(_row_offsets(weight)[-1])


def _row_offsets(weight: Float[Tensor, "target source"]) -> Int[Tensor, " target_and_end"]:
    """Return where each row's nonzeros start among all, and their number."""
    offsets = torch.empty(len(weight) + 1, dtype=torch.int64)
    _packed().set_threads(torch.get_num_threads() if weight.numel() >= _MIN_PARALLEL else 1)
    _packed().count_rows(weight.detach().contiguous().numpy(), offsets.numpy())
    return offsets


def transposed(weight: PackedWeight) -> PackedWeight:
    """Return the transposed matrix; see `packed.transposed`."""
    turned = PackedWeight(
        torch.empty_like(weight.values),
        torch.empty_like(weight.columns),
        torch.empty(weight.shape[1] + 1, dtype=torch.int64),
        (weight.shape[1], weight.shape[0]),
    )
    _packed().transpose_packed(*weight.arrays, *turned.arrays)
    return turned


def packed_linear(
    x: Float[Tensor, "*batch source"],
    weight: PackedWeight,
    bias: Float[Tensor, " target"] | None,
    dense: Float[Tensor, "target source"] | None,
) -> Float[Tensor, "*batch target"]:
    """Map vectors by a packed weight; see `reference.packed_linear`."""
    if not torch.is_grad_enabled():
        return _map(x, weight, bias, turns=dense is None)
    return _PackedLinear.apply(x, weight, bias, dense)  # pyright: ignore[reportReturnType]


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: PackedWeight, bias: Tensor | None, dense: Tensor | None) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(x if dense is not None else None)
        return _map(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
        (x,), grad = ctx.saved_tensors, grads[0].contiguous()
        flat = grad.flatten(0, -2)
        grad_x = _map(grad, transposed(ctx.weight), None) if ctx.needs_input_grad[0] else None
        grad_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
        grad_dense = flat.T @ x.flatten(0, -2) if ctx.needs_input_grad[3] else None
        return grad_x, None, grad_bias, grad_dense


def _map(x: Tensor, weight: PackedWeight, bias: Tensor | None, *, turns: bool = False) -> Tensor:
    """Map vectors; `turns` where the weight lives on, so that it pays to turn it over once."""
    rows = x.detach().contiguous().view(-1, weight.shape[1])
    out = torch.empty(len(rows), weight.shape[0])
    start = torch.zeros(weight.shape[0]) if bias is None else bias.detach().contiguous()
    arguments = (rows.numpy(), *weight.arrays, start.numpy(), out.numpy())
    is_few = len(rows) <= _N_FEW or len(weight.values) <= _N_A_LINE * sum(weight.shape)
    if turns and is_few and weight.turned is not None:
        _packed().packed_linear_columns(rows.numpy(), *weight.turned.arrays, start.numpy(), out.numpy())
    elif len(rows) <= _N_FEW:
        _packed().packed_linear_few(*arguments)
    else:
        _packed().set_threads(torch.get_num_threads())
        _packed().packed_linear_blocks(*arguments)
    return out.view(*x.shape[:-1], weight.shape[0])
