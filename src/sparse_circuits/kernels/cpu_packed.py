"""Packed weights on a CPU: making them, and products that skip their zeros (Numba)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.kernels.compiled import OnceDifferentiable, can_loop, loops, threaded
from sparse_circuits.kernels.cpu_products import weight_gradient
from sparse_circuits.kernels.packed import PackedWeight

_N_FEW = 16
"""So many vectors or fewer go through a packed weight one after the other."""


def can_pack(weight: Tensor) -> bool:
    """Say whether packed weights can be made of this tensor, or used with it."""
    return can_loop("_packed_numba", weight)


def pack(weight: Float[Tensor, "target source"]) -> PackedWeight:
    """Leave out a matrix's zeros; see `packed.pack`."""
    array, offsets = weight.detach().contiguous().numpy(), _row_offsets(weight)
    n_nonzero = int(offsets[-1])
    values, columns = torch.empty(n_nonzero), torch.empty(n_nonzero, dtype=torch.int32)
    _compiled().pack_rows(array, offsets.numpy(), values.numpy(), columns.numpy())
    return PackedWeight(values, columns, offsets, (weight.shape[0], weight.shape[1]))


def count_nonzero(weight: Float[Tensor, "target source"]) -> int:
    """Count a matrix's nonzeros."""
    return int(_row_offsets(weight)[-1])


def _row_offsets(weight: Float[Tensor, "target source"]) -> Int[Tensor, " target_and_end"]:
    """Return where each row's nonzeros start among all, and their number."""
    offsets = torch.empty(len(weight) + 1, dtype=torch.int64)
    threaded("_packed_numba", weight.numel()).count_rows(weight.detach().contiguous().numpy(), offsets.numpy())
    return offsets


def transposed(weight: PackedWeight) -> PackedWeight:
    """Return the transposed matrix; see `packed.transposed`."""
    turned = PackedWeight(
        torch.empty_like(weight.values),
        torch.empty_like(weight.columns),
        torch.empty(weight.shape[1] + 1, dtype=torch.int64),
        (weight.shape[1], weight.shape[0]),
    )
    _compiled().transpose_packed(*weight.arrays, *turned.arrays)
    return turned


def packed_rows(weight: PackedWeight, chosen: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch source"]:
    """Return some rows of a packed weight, with their zeros; see `reference.packed_rows`."""
    flat = chosen.to(torch.int64).flatten().contiguous()
    out = torch.zeros(len(flat), weight.shape[1])
    if not _compiled().unpack_rows(*weight.arrays, flat.numpy(), out.numpy()):
        raise IndexError(f"rows from {int(flat.min())} to {int(flat.max())} of a weight that has {weight.shape[0]}")
    return out.view(*chosen.shape, weight.shape[1])


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


class _PackedLinear(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: PackedWeight, bias: Tensor | None, dense: Tensor | None) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(x if dense is not None else None)
        return _map(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
        (x,), grad = ctx.saved_tensors, grads[0].contiguous()
        grad_x = _map(grad, transposed(ctx.weight), None) if ctx.needs_input_grad[0] else None
        grad_bias = grad.view(-1, grad.shape[-1]).sum(0) if ctx.needs_input_grad[2] else None
        grad_dense = weight_gradient(grad, x) if ctx.needs_input_grad[3] else None
        return grad_x, None, grad_bias, grad_dense


def _map(x: Tensor, weight: PackedWeight, bias: Tensor | None, *, turns: bool = False) -> Tensor:
    """Map vectors; `turns` where the weight lives on, so that it pays to turn it over once."""
    rows = x.detach().contiguous().view(-1, weight.shape[1])
    out = torch.empty(len(rows), weight.shape[0])
    start = torch.zeros(weight.shape[0]) if bias is None else bias.detach().contiguous()
    arguments = (rows.numpy(), *weight.arrays, start.numpy(), out.numpy())
    if turns and len(rows) <= _N_FEW and (turned := weight.turned) is not None:
        values, lines, offsets = turned.arrays
        _compiled().packed_linear_columns(
            rows.numpy(), values, lines, turned.lines, offsets, start.numpy(), out.numpy()
        )
    elif len(rows) <= _N_FEW:
        _compiled().packed_linear_few(*arguments)
    else:
        threaded("_packed_numba").packed_linear_blocks(*arguments)
    return out.view(*x.shape[:-1], weight.shape[0])


def _compiled() -> Any:
    return loops("_packed_numba")
