"""Products of activations that are mostly constant, or mostly zero: only what differs is multiplied (Numba)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.kernels.compiled import OnceDifferentiable, can_loop, threaded


def can_linear_around(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Say whether `linear_around` takes these tensors; it has no gradient for weights."""
    is_learned = weight.requires_grad or (bias is not None and bias.requires_grad)
    return x.numel() > 0 and not (is_learned and torch.is_grad_enabled()) and can_loop("_around_numba", x, weight)


def linear_around(
    x: Float[Tensor, "batch pos source"],
    weight: Float[Tensor, "target source"],
    bias: Float[Tensor, " target"] | None,
    around: Float[Tensor, "run source"],
) -> Float[Tensor, "batch pos target"]:
    """Map `x` by a weight; see `reference.linear_around`."""
    return _LinearAround.apply(x, weight.detach(), None if bias is None else bias.detach(), around.detach())  # pyright: ignore[reportReturnType]


class _LinearAround(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        start = around @ weight.T if bias is None else torch.addmm(bias, around, weight.T)
        return _mapped(x.detach(), around, weight.T, start)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        n_target, n_source = weight.shape
        return _mapped(grads[0], weight.new_zeros(1, n_target), weight, weight.new_zeros(1, n_source)), None, None, None


def _mapped(x: Tensor, around: Tensor, weight: Tensor, start: Tensor) -> Tensor:
    """Return start + (x − around) @ weight, weight being (source, target)."""
    rows, out = x.contiguous().view(-1, weight.shape[0]), torch.empty(*x.shape[:-1], weight.shape[1])
    arrays = [one.contiguous().numpy() for one in (around, weight, start)]
    flat = out.view(-1, out.shape[-1]).numpy()
    threaded("_around_numba").map_rows(rows.numpy(), len(rows) // len(around), *arrays, flat)
    return out
