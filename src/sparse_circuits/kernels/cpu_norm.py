"""The root-mean-square norm, forward and backward in one pass over memory each (Numba)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.kernels.compiled import OnceDifferentiable, can_loop, threaded

N_PART = 16
"""Parts that rows are summed in for the gain's gradient; fixed, so that sums don't depend on the number of threads."""


def can_rms_norm(x: Tensor, gain: Tensor) -> bool:
    """Say whether `rms_norm` takes these tensors."""
    return x.numel() > 0 and can_loop("_norm_numba", x, gain)


def rms_norm(
    x: Float[Tensor, "*batch channel"], gain: Float[Tensor, " channel"], eps: float
) -> tuple[Float[Tensor, "*batch channel"], Float[Tensor, "*batch 1"]]:
    """Scale vectors to unit mean square; see `reference.rms_norm`."""
    return _RmsNorm.apply(x, gain, eps)  # pyright: ignore[reportReturnType]


class _RmsNorm(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        rows, gain = x.detach().contiguous().view(-1, x.shape[-1]), gain.detach().contiguous()
        out, scale = torch.empty_like(rows), rows.new_empty(len(rows))
        threaded("_norm_numba", rows.numel()).forward(rows.numpy(), gain.numpy(), eps, out.numpy(), scale.numpy())
        ctx.save_for_backward(rows, gain, scale)
        ctx.shape = x.shape
        ctx.set_materialize_grads(False)
        return out.view(x.shape), scale.view(*x.shape[:-1], 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor | None, None]:
        rows, gain, scale = ctx.saved_tensors
        grad = torch.zeros_like(rows) if grads[0] is None else grads[0].contiguous().view(rows.shape)
        by_scale = rows.new_empty(0) if grads[1] is None else grads[1].contiguous().view(-1)
        by_x, by_gain = torch.empty_like(rows), rows.new_zeros(N_PART * ctx.needs_input_grad[1], rows.shape[1])
        saved, filled = (rows, gain, scale, grad, by_scale), (by_x, by_gain)
        threaded("_norm_numba", rows.numel()).backward(*(one.numpy() for one in (*saved, *filled)))
        return by_x.view(ctx.shape), by_gain.sum(0) if ctx.needs_input_grad[1] else None, None
