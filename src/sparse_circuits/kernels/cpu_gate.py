"""AbsTopK and the gate behind it in one pass over memory, and one back (Numba)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.kernels.compiled import OnceDifferentiable, can_loop, threaded

N_PART = 4
"""Parts that a run's rows are summed in, for threads to share; fixed, so that sums don't depend on their number."""


def can_gated_topk(x: Tensor, gate: Tensor, value: Tensor) -> bool:
    """Say whether `gated_topk` takes these tensors."""
    return x.numel() > 0 and can_loop("_gate_numba", x, gate, value)


def gated_topk(
    x: Float[Tensor, "batch pos channel"],
    gate: Float[Tensor, "run channel"],
    value: Float[Tensor, "#run channel"],
    n_keep: int,
) -> Float[Tensor, "batch pos channel"]:
    """Thin `x` out and set what is not let through to its value; see `reference.gated_topk`."""
    if torch.is_grad_enabled() and (x.requires_grad or gate.requires_grad or value.requires_grad):
        return _GatedTopK.apply(x, gate, value, n_keep)  # pyright: ignore[reportReturnType]
    rows, gate, out = _in_rows(x), gate.detach().contiguous(), torch.empty(x.shape)
    is_open = gate != 0
    open_first = is_open.byte().argsort(descending=True, stable=True)
    offset = ((1 - gate) * value.detach()).contiguous()
    which = (is_open.sum(1).numpy(), open_first.numpy(), _flat(out))
    threaded("_gate_numba").forward_alone(*_memory(rows, len(gate)), n_keep, gate.numpy(), offset.numpy(), *which)
    return out


class _GatedTopK(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, value: Tensor, n_keep: int) -> Tensor:
        rows = _in_rows(x)
        gate, value = gate.detach().contiguous(), value.detach().contiguous()
        out = x.new_empty(x.shape)
        thresholds, ends = torch.empty(len(rows), dtype=torch.int32), torch.empty(len(rows), dtype=torch.int64)
        offset = ((1 - gate) * value).numpy()
        kept = (thresholds.numpy(), ends.numpy())
        threaded("_gate_numba").forward(*_memory(rows, len(gate)), n_keep, gate.numpy(), offset, _flat(out), *kept)
        ctx.save_for_backward(rows, gate, value, thresholds, ends)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        rows, gate, value, thresholds, ends = ctx.saved_tensors
        grad = grads[0].contiguous()
        by_x, by_gate = torch.empty_like(grad), gate.new_zeros(len(gate), N_PART, gate.shape[-1])
        kept = (thresholds.numpy(), ends.numpy())
        arguments = (*kept, gate.numpy(), value.numpy(), _flat(by_x), by_gate.numpy())
        threaded("_gate_numba").backward(_flat(grad), *_memory(rows, len(gate)), *arguments)
        by_value = None
        if ctx.needs_input_grad[2]:
            by_run = (1 - gate) * grad.view(len(gate), -1, gate.shape[-1]).sum(1)
            by_value = by_run.sum_to_size(value.shape)
        return by_x, by_gate.sum(1), by_value, None


def _in_rows(x: Tensor) -> Tensor:
    """Return x (batch, pos, channel) as rows (batch · pos, channel), copied where memory has them at unequal distances.

    Those of q, k and v, which lie side by side, are not.
    """
    rows = x.detach().reshape(-1, x.shape[-1])
    return (
        rows
        if rows.stride(1) == 1 and rows.stride(0) >= rows.shape[1]
        else rows.clone(memory_format=torch.contiguous_format)
    )


def _memory(rows: Tensor, n_run: int) -> tuple[Any, int, int]:
    """Return the memory of rows as one vector, how far they are apart, and the rows of a run."""
    stride = rows.stride(0)
    memory = rows.as_strided(((len(rows) - 1) * stride + rows.shape[1],), (1,))
    return memory.numpy(), stride, len(rows) // n_run


def _flat(x: Tensor) -> Any:
    return x.view(-1, x.shape[-1]).numpy()
