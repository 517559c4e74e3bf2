"""AbsTopK and the gate behind it in one pass over memory, and one back (Numba)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.kernels.compiled import loops

N_PART = 4
"""Parts that a run's rows are summed in, for threads to share; fixed, so that sums don't depend on their number."""


def can_gated_topk(x: Tensor, gate: Tensor, value: Tensor) -> bool:
    """Say whether `gated_topk` takes these tensors."""
    return (
        all(one.device.type == "cpu" and one.dtype is torch.float32 for one in (x, gate, value))
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and loops("_gate_numba") is not None
    )


def gated_topk(
    x: Float[Tensor, "batch pos channel"],
    gate: Float[Tensor, "run channel"],
    value: Float[Tensor, "#run channel"],
    n_keep: int,
) -> Float[Tensor, "batch pos channel"]:
    """Thin `x` out and set what is not let through to its value; see `reference.gated_topk`."""
    if torch.is_grad_enabled() and (x.requires_grad or gate.requires_grad):
        return _GatedTopK.apply(x, gate, value, n_keep)  # pyright: ignore[reportReturnType]
    x, gate, out = _in_rows(x), gate.detach().contiguous(), torch.empty(x.shape)
    is_open = gate != 0
    open_first = is_open.byte().argsort(descending=True, stable=True)
    offset = ((1 - gate) * value.detach()).contiguous()
    which = (is_open.sum(1).numpy(), open_first.numpy(), _flat(out))
    _threads().forward_alone(*_rows(x, len(gate)), n_keep, gate.numpy(), offset.numpy(), *which)
    return out


class _GatedTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, value: Tensor, n_keep: int) -> Tensor:
        x = _in_rows(x)
        gate, value = gate.detach().contiguous(), value.detach().contiguous()
        out, keep = x.new_empty(x.shape), torch.empty(x.shape, dtype=torch.bool)
        _threads().forward(
            *_rows(x, len(gate)), n_keep, gate.numpy(), ((1 - gate) * value).numpy(), _flat(out), _flat(keep)
        )
        ctx.save_for_backward(x, gate, value, keep)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, gate, value, keep = ctx.saved_tensors
        grad_x, by_gate = x.new_empty(x.shape), gate.new_zeros(len(gate), N_PART, gate.shape[-1])
        grad = _flat(grads[0].contiguous())
        arguments = (_flat(keep), gate.numpy(), value.numpy(), _flat(grad_x), by_gate.numpy())
        _threads().backward(grad, *_rows(x, len(gate)), *arguments)
        return grad_x, by_gate.sum(1), None, None


def _in_rows(x: Tensor) -> Tensor:
    """Return x (batch, pos, channel), copied if its rows do not lie at equal distances, such as those of q, k and v."""
    is_in_rows = x.stride(-1) == 1 and x.stride(0) == x.shape[1] * x.stride(1) and x.stride(1) >= x.shape[-1]
    return x.detach() if is_in_rows else x.detach().contiguous()


def _rows(x: Tensor, n_run: int) -> tuple[Any, int, int]:
    """Return the memory of x (batch, pos, channel) as one vector, how far its rows are apart, and the rows of a run."""
    n_row, stride = x.shape[0] * x.shape[1], x.stride(1)
    memory = x.as_strided(((n_row - 1) * stride + x.shape[-1],), (1,))
    return memory.numpy(), stride, n_row // n_run


def _flat(x: Tensor) -> Any:
    return x.view(-1, x.shape[-1]).numpy()


def _threads() -> Any:
    """Return the compiled functions, set to torch's number of threads."""
    compiled: Any = loops("_gate_numba")
    compiled.set_threads(torch.get_num_threads())
    return compiled
