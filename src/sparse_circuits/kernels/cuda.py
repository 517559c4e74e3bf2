"""The kernels on an NVIDIA GPU, in Triton and over torch's fused attention; the same meaning as the reference.

Triton comes with torch's builds for GPUs, or by the extra `gpu`. Where it is missing or can't compile, one warning says
so and the reference is used.
"""

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_circuits.kernels import reference
from sparse_circuits.kernels.compiled import OnceDifferentiable, give_up
from sparse_circuits.kernels.packed import PackedWeight, pack

MAX_WIDTH = 16_384
"""Longest vector that one program holds in its registers."""

_N_BIN = (2048, 1024, 1024)
"""Bins of the three passes of the projection: 11, 10 and 10 bits of a magnitude's 31."""

MAX_FLASH_WIDTH = 256
"""Widest head that torch's flash attention takes."""

FIRST_FLASH = (8, 0)
"""Compute capability from which on torch has flash attention: Ampere."""

_BLOCK = 4096
"""Entries that a program of the projection looks at together."""


@functools.cache
def _loops() -> ModuleType:
    return importlib.import_module("sparse_circuits.kernels._cuda_triton")


@functools.cache
def _compiles(index: int) -> bool:
    """Say whether the Triton kernels run on a GPU, by one call of each on a few numbers."""
    try:
        x = torch.arange(-4.0, 4.0, device=f"cuda:{index}").view(2, 4)
        right = all(torch.equal(abs_topk(y, 2), reference.abs_topk(y, 2)) for y in (x, x.bfloat16()))
        packed = pack(x)
        right &= torch.equal(packed_linear(x, packed, None, None), reference.packed_linear(x, packed, None, None))
        projected = x.clone()
        keep_largest_many_([(projected, 4, 1, 0)])
        right &= int(projected.count_nonzero()) == 4
    except Exception as error:  # a compiler that is missing or fails can raise anything: the reference does the same
        give_up("Triton", error)
        return False
    if not right:
        give_up("Triton", RuntimeError("they give wrong results on this GPU"))
    return right


def can_abs_topk(x: Tensor) -> bool:
    """Say whether `abs_topk` and `top_k_mask` take this tensor."""
    return (
        x.device.type == "cuda"
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and x.shape[-1] <= MAX_WIDTH
        and not torch.compiler.is_compiling()
        and _compiles(x.device.index or 0)
    )


def abs_topk(x: Float[Tensor, "*batch channel"], n_keep: int) -> Float[Tensor, "*batch channel"]:
    """Keep the `n_keep` entries of largest magnitude in each vector; see `reference.abs_topk`."""
    return _AbsTopK.apply(x, n_keep)  # pyright: ignore[reportReturnType]


def top_k_mask(x: Float[Tensor, "*batch channel"], n_keep: int) -> Bool[Tensor, "*batch channel"]:
    """Mark the `n_keep` entries of largest magnitude in each vector; see `reference.top_k_mask`."""
    return _values_and_mask(x.detach(), n_keep)[1]


class _AbsTopK(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, x: Tensor, n_keep: int) -> Tensor:
        out, keep = _values_and_mask(x.detach(), n_keep)
        ctx.save_for_backward(keep)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return torch.where(keep, grads[0], 0.0), None


def _values_and_mask(x: Tensor, n_keep: int) -> tuple[Tensor, Tensor]:
    rows, width = x.contiguous(), x.shape[-1]
    out, keep = torch.empty_like(rows), torch.empty(rows.shape, dtype=torch.bool, device=x.device)
    if rows.numel():
        block = _power_of_two(width)
        with torch.cuda.device_of(x):  # Triton launches on the current device
            _loops().abs_topk_rows[(rows.numel() // width,)](
                rows,
                out,
                keep.view(torch.int8),
                n_keep,
                width,
                BLOCK=block,
                IS_HALF=x.dtype is not torch.float32,
                num_warps=min(8, max(1, block // 1024)),
            )
    return out, keep


def can_keep_largest(weight: Tensor) -> bool:
    """Say whether `keep_largest_` takes this tensor."""
    return (
        weight.device.type == "cuda"
        and weight.dtype is torch.float32
        and weight.is_contiguous()
        and max(weight.shape, default=0) <= MAX_WIDTH
        and weight.numel() > 0
        and _compiles(weight.device.index or 0)
    )


def keep_largest_(weight: Float[Tensor, "..."], n_keep: int, *, n_alive: int = 0, neuron_axis: int = 0) -> None:
    """Zero all but the `n_keep` largest entries in place; see `reference.keep_largest_`."""
    keep_largest_many_([(weight, n_keep, n_alive, neuron_axis)])


def keep_largest_many_(jobs: Sequence[tuple[Tensor, int, int, int]]) -> None:
    """Project many weights with the same few launches; nothing is read back.

    Args:
        jobs: For each: weight, entries to keep, entries protected of each neuron, axis of the neurons.
    """
    device, start, rows = jobs[0][0].device, 0, []
    for weight, n_keep, n_alive, axis in jobs:
        n_column = weight.shape[-1]
        n_neuron = weight.shape[axis] if n_alive else 0
        # NaN-proof and exact: the search is among the free entries, of which n_keep less the protected ones are kept.
        rows.append((weight.data_ptr(), weight.numel(), n_column, axis, n_alive, n_keep - n_alive * n_neuron, start, 0))
        start += n_neuron
    groups = _by_length(jobs)
    rows += [rows[i] for mine in groups.values() for i in mine]
    uploaded = torch.tensor(rows, dtype=torch.int64)
    if device.type == "cuda":  # at once and from pinned memory, so that the host waits for nothing
        uploaded = uploaded.pin_memory().to(device, non_blocking=True)
    table = uploaded[: len(jobs)]
    least, last = (torch.empty(max(start, 1), dtype=torch.int32, device=device) for _ in range(2))
    state = torch.zeros(len(jobs), 2, dtype=torch.int32, device=device)
    state[:, 1] = table[:, 5].to(torch.int32)
    counts = torch.zeros(len(jobs), 2048, dtype=torch.int32, device=device)
    n_tie = torch.zeros(len(jobs), dtype=torch.int32, device=device)
    with torch.cuda.device_of(table):
        first = len(jobs)
        for long, mine in groups.items():
            side = max(1, min(16, 32_768 // long))
            n_program = max(-(-jobs[i][0].shape[jobs[i][3]] // side) for i in mine)
            chosen, first = uploaded[first : first + len(mine)], first + len(mine)
            _loops().protect[(n_program, len(mine))](chosen, least, last, N_LONG=long, N_SIDE=side, num_warps=8)
        _launch(jobs, table, state, counts, n_tie, least, last)


def _launch(
    jobs: Sequence[tuple[Tensor, int, int, int]],
    table: Tensor,
    state: Tensor,
    counts: Tensor,
    n_tie: Tensor,
    least: Tensor,
    last: Tensor,
) -> None:
    """Find the last entry to keep, zero what is below it, and drop ties; each neuron's largest are protected."""
    loops = _loops()
    n_program = max(1, min(512, max(job[0].numel() for job in jobs) // _BLOCK))
    for shift, n_bin in zip((20, 10, 0), _N_BIN, strict=True):
        loops.count[(n_program, len(jobs))](
            table, state, counts, least, last, SHIFT=shift, N_BIN=n_bin, BLOCK=_BLOCK, num_warps=8
        )
        loops.pick[(len(jobs),)](state, counts, N_BIN=n_bin)
    loops.apply[(n_program, len(jobs))](table, state, n_tie, least, last, BLOCK=_BLOCK, num_warps=8)
    loops.drop_ties[(len(jobs),)](table, state, n_tie, least, last, BLOCK=_BLOCK, num_warps=8)


def _by_length(jobs: Sequence[tuple[Tensor, int, int, int]]) -> dict[int, list[int]]:
    """Return the jobs that protect entries of each neuron, by how many a neuron has, rounded up to a power of two."""
    groups: dict[int, list[int]] = {}
    for i, (weight, _, n_alive, axis) in enumerate(jobs):
        if n_alive:
            groups.setdefault(_power_of_two(weight.shape[1 - axis]), []).append(i)
    return groups


def _power_of_two(n: int) -> int:
    return 1 << max(4, (n - 1).bit_length())


def can_packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None, dense: Tensor | None) -> bool:
    """Say whether `packed_linear` takes these: in float32, where no gradient is asked for."""
    return (
        x.device.type == "cuda"
        and x.dtype is torch.float32
        and (weight.values.device, weight.values.dtype) == (x.device, x.dtype)
        and not asks_for_gradient(x, bias, dense)
        and not torch.compiler.is_compiling()
        and _compiles(x.device.index or 0)
    )


def asks_for_gradient(*tensors: Tensor | None) -> bool:
    """Say whether a result of these would have a gradient to send back."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def packed_linear(
    x: Float[Tensor, "*batch source"],
    weight: PackedWeight,
    bias: Float[Tensor, " target"] | None,
    dense: Float[Tensor, "target source"] | None,
) -> Float[Tensor, "*batch target"]:
    """Map vectors by a packed weight; see `reference.packed_linear`. Only gradients need `dense`, and here are none."""
    del dense
    (n_target, n_source), rows = weight.shape, x.detach().contiguous().view(-1, weight.shape[1])
    out = rows.new_empty(len(rows), n_target)
    if out.numel():
        n_vector = min(16, 1 << (len(rows) - 1).bit_length())
        with torch.cuda.device_of(x):
            _loops().packed_product[(n_target, -(-len(rows) // n_vector))](
                rows,
                weight.values,
                weight.columns,
                weight.offsets,
                weight.values if bias is None else bias.detach(),
                out,
                len(rows),
                n_source,
                n_target,
                HAS_BIAS=bias is not None,
                N_VECTOR=n_vector,
                N_ENTRY=32,
                num_warps=1,
            )
    return out.view(*x.shape[:-1], n_target)


def can_sink_attention(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None) -> bool:
    """Say whether `sink_attention` takes this input: half precision, where torch has its fused operators.

    Whether values are finite is not asked, as on a CPU: the answer would make the host wait.
    """
    return (
        q.device.type == "cuda"
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape == k.shape
        and q.numel() > 0
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= MAX_FLASH_WIDTH
        and torch.cuda.get_device_capability(q.device) >= FIRST_FLASH
        and not torch.compiler.is_compiling()
        and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_backward")
    )


def sink_attention(
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    v: Float[Tensor, "batch head pos d_head"],
    sink: Float[Tensor, " head"] | None,
) -> Float[Tensor, "batch head pos d_head"]:
    """Mix values causally, with an optional sink; see `cpu_fused.sink_attention` for how."""
    if sink is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return _SinkAttention.apply(q, k, v, sink)  # pyright: ignore[reportReturnType]


class _SinkAttention(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        out, lse, *rest = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)
        ctx.n_query, ctx.n_key = rest[2], rest[3]
        slot = sink.to(lse.dtype)[:, None]  # (head, 1)
        out = (out * (lse - slot).sigmoid().unsqueeze(-1)).to(q.dtype)
        lse = torch.logaddexp(lse, slot.expand_as(lse))  # (batch, head, pos)
        ctx.save_for_backward(q, k, v, sink, out, lse, rest[0], rest[1], rest[4], rest[5])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, sink, out, lse, ends_q, ends_k, seed, offset = ctx.saved_tensors
        grad = grads[0]
        grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse, ends_q, ends_k, ctx.n_query, ctx.n_key, 0.0, True, seed, offset
        )
        share = (sink.to(lse.dtype)[:, None] - lse).exp()  # what the sink takes: (batch, head, pos)
        grad_sink = -(share * (grad * out).float().sum(-1)).sum((0, 2))  # (head,)
        return grad_q, grad_k, grad_v, grad_sink.to(sink.dtype)
