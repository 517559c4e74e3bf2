"""The cross-entropy over a vocabulary, forward and backward in one pass over the logits each (Numba)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.kernels.compiled import OnceDifferentiable, can_loop, threaded


def can_cross_entropy(logits: Tensor) -> bool:
    """Say whether `cross_entropy` takes these logits."""
    return logits.numel() > 0 and can_loop("_loss_numba", logits)


def cross_entropy(logits: Float[Tensor, "row vocab"], target: Int[Tensor, " row"]) -> Float[Tensor, ""]:
    """Return the mean loss of predicting the targets; see `reference.cross_entropy`."""
    return _CrossEntropy.apply(logits, target)  # pyright: ignore[reportReturnType]


class _CrossEntropy(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        logits, target = logits.detach().contiguous(), target.contiguous()
        lowest, highest = (int(t) for t in target.aminmax())
        if lowest < 0 or highest >= logits.shape[1]:
            raise IndexError(f"targets from {lowest} to {highest} are not all in [0, {logits.shape[1]})")
        highest, total, loss = torch.empty(3, len(logits))
        threaded("_loss_numba").forward(logits.numpy(), target.numpy(), highest.numpy(), total.numpy(), loss.numpy())
        ctx.save_for_backward(logits, target, highest, total)
        return loss.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, target, highest, total = ctx.saved_tensors
        out = torch.empty_like(logits)
        factor = float(grads[0]) / len(logits)
        saved = (x.numpy() for x in (logits, target, highest, total))
        threaded("_loss_numba").backward(*saved, factor, out.numpy())
        return out, None
