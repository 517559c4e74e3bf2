"""Dense products on a CPU by oneDNN, which torch brings but asks for half precision alone.

MKL takes longer where there is AVX-512; elsewhere it is the faster one at most shapes, and these are not used.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.kernels.compiled import OnceDifferentiable

MIN_PRODUCTS = 1 << 24
"""Multiplications from which on the call costs less than it saves."""


def can_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Say whether `linear` takes these tensors, and this torch has the operator."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        all(one.device.type == "cpu" and one.dtype is torch.float32 for one in tensors)
        and x.numel() * weight.shape[0] >= MIN_PRODUCTS
        and not torch.compiler.is_compiling()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def linear(
    x: Float[Tensor, "*batch source"], weight: Float[Tensor, "target source"], bias: Float[Tensor, " target"] | None
) -> Float[Tensor, "*batch target"]:
    """Map vectors by a whole weight; see `reference.linear`."""
    if not torch.is_grad_enabled():
        return product(x.detach(), weight.detach(), None if bias is None else bias.detach())
    return _Linear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a @ b.T + bias."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


class _Linear(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), grad = ctx.saved_tensors, grads[0].contiguous()
        by_x = product(grad, weight.T) if ctx.needs_input_grad[0] else None
        flat = grad.view(-1, grad.shape[-1])
        by_weight = F.linear(flat.T, x.reshape(-1, x.shape[-1]).T) if ctx.needs_input_grad[1] else None
        by_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
        return by_x, by_weight, by_bias
