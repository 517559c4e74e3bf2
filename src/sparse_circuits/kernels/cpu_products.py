"""Dense weights' products on a CPU: what AbsTopK left alone (Numba), or all of it by the faster of two libraries.

AbsTopK zeroes three quarters of what most linear maps read, and of the gradient that comes back to them. With lists of
the nonzeros, products skip the rest, and the gradient of a weight does as well.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.kernels.compiled import OnceDifferentiable, can_loop, loops, threaded

MIN_PRODUCTS = 1 << 24
"""Multiplications from which on the call costs less than it saves."""

MIN_WIDTH = 64
"""Sources and targets from which on they do; of fewer, lists take longer than what they spare."""

MAX_SHARE = 0.35
"""Share of nonzeros up to which listing them is surely the faster way; measured by benchmarks/kernels.py."""

N_LOOKED_AT = 64
"""Rows that tell the share of nonzeros."""


def can_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Say whether `linear` takes these tensors."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return _is_large(x, len(weight)) and can_loop("_thinned_numba", *tensors)


def linear(
    x: Float[Tensor, "*batch source"], weight: Float[Tensor, "target source"], bias: Float[Tensor, " target"] | None
) -> Float[Tensor, "*batch target"]:
    """Map vectors by a whole weight; see `reference.linear`."""
    if not torch.is_grad_enabled():
        return _mapped(x.detach(), weight.detach(), None if bias is None else bias.detach())
    return _Linear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]


def weight_gradient(
    grad: Float[Tensor, "*batch target"], x: Float[Tensor, "*batch source"]
) -> Float[Tensor, "target source"]:
    """Return the gradient of the weight that maps `x`: the sum of outer products over all vectors."""
    grad, x = _in_rows(grad), _in_rows(x)
    may_list = _is_large(x, grad.shape[1]) and loops("_thinned_numba") is not None
    if may_list and _is_thin(grad):
        return _multiplied(_listed(grad, by_column=True), x, is_turned=False)
    if may_list and _is_thin(x):
        return _multiplied(_listed(x, by_column=True), grad, is_turned=False).T
    return grad.T @ x


class _Linear(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _mapped(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), grad = ctx.saved_tensors, grads[0]
        by_x = _mapped(grad, weight.T, None) if ctx.needs_input_grad[0] else None
        by_weight = weight_gradient(grad, x) if ctx.needs_input_grad[1] else None
        by_bias = _in_rows(grad).sum(0) if ctx.needs_input_grad[2] else None
        return by_x, by_weight, by_bias


def _mapped(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ weight.T + bias; the weight may be a view that was turned over."""
    rows = _in_rows(x)
    if _is_thin(rows):
        is_turned = weight.is_contiguous()
        out = _multiplied(_listed(rows), weight if is_turned else weight.T, bias, is_turned=is_turned)
        return out.view(*x.shape[:-1], len(weight))
    if _has_fast_onednn():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _is_large(x: Tensor, n_target: int) -> bool:
    n_product = x.numel() * n_target
    return min(x.shape[-1], n_target) >= MIN_WIDTH and n_product >= max(1, MIN_PRODUCTS)


def _has_fast_onednn() -> bool:
    """Say whether oneDNN is the faster library: with AVX-512, and where this torch has the operator."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _Nonzeros(NamedTuple):
    """The nonzeros of a matrix's lines, block by block; see `_thinned_numba`."""

    values: Float[Tensor, " entry"]
    places: Tensor
    """Where in its block each stands, (entry,)."""
    ends: Tensor
    """Where each line's list starts and ends in each block, (block, line, 2)."""


def _is_thin(rows: Float[Tensor, "row channel"]) -> bool:
    """Say by some rows whether there are few enough nonzeros to list them."""
    some = rows[:: -(-len(rows) // N_LOOKED_AT)]
    return int(some.count_nonzero()) <= MAX_SHARE * some.numel()


def _listed(rows: Float[Tensor, "row channel"], *, by_column: bool = False) -> _Nonzeros:
    """List the nonzeros of each row, or of each column."""
    n_line, n_place = reversed(rows.shape) if by_column else rows.shape
    compiled = threaded("_thinned_numba")
    n_room, n_block = compiled.room(n_line, n_place), -(-n_place // compiled.N_BLOCK)
    found = _Nonzeros(
        torch.empty(n_room), torch.empty(n_room, dtype=torch.int32), torch.empty(n_block, n_line, 2, dtype=torch.int64)
    )
    note = compiled.note_columns if by_column else compiled.note_rows
    note(rows.numpy(), *(part.numpy() for part in found))
    return found


def _multiplied(nonzeros: _Nonzeros, matrix: Tensor, bias: Tensor | None = None, *, is_turned: bool) -> Tensor:
    """Multiply the lines with the rows of a matrix, or with its columns if it `is_turned`."""
    width = matrix.shape[0] if is_turned else matrix.shape[1]
    out = torch.empty(nonzeros.ends.shape[1], width)
    start = torch.zeros(width) if bias is None else bias.detach().contiguous()
    lists = (part.numpy() for part in nonzeros)
    threaded("_thinned_numba").multiply(
        *lists, matrix.detach().contiguous().numpy(), is_turned, start.numpy(), out.numpy()
    )
    return out


def _in_rows(x: Tensor) -> Float[Tensor, "row channel"]:
    return x.detach().reshape(-1, x.shape[-1]).contiguous()
