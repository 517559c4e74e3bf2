"""AbsTopK on a CPU: thresholds found on the bits of |x| (Numba)."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_circuits.kernels.compiled import MIN_PARALLEL, OnceDifferentiable, loops, threaded

_NO_MARKS = np.empty((0, 0), dtype=np.bool_)
"""Handed to loops that need not mark what they keep."""


def can_abs_topk(x: Tensor) -> bool:
    """Say whether `abs_topk` and `top_k_mask` take this tensor."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not torch.compiler.is_compiling()
        and loops("_topk_numba") is not None
    )


def abs_topk(x: Float[Tensor, "*batch channel"], n_keep: int) -> Float[Tensor, "*batch channel"]:
    """Keep the `n_keep` entries of largest magnitude in each vector; see `reference.abs_topk`."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _AbsTopK.apply(x, n_keep)  # pyright: ignore[reportReturnType]
    return _thinned_out(x, n_keep, None).to(x.dtype)


class _AbsTopK(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, x: Tensor, n_keep: int) -> Tensor:
        keep = torch.empty(x.shape, dtype=torch.bool)
        ctx.save_for_backward(keep)
        return _thinned_out(x, n_keep, keep).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        if grads[0].dtype is not torch.float32:
            return torch.where(keep, grads[0], 0.0), None
        grad = grads[0].contiguous()
        out = torch.empty_like(grad)
        if grad.numel():
            threaded("_topk_numba").where_kept(grad.view(-1).numpy(), keep.view(-1).numpy(), out.view(-1).numpy())
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
    compiled = threaded("_topk_numba")
    if given.size < MIN_PARALLEL or torch.get_num_threads() == 1:
        compiled.abs_topk_rows(given, n_keep, left, marks)
    else:
        compiled.abs_topk_rows_parallel(given, n_keep, left, marks)
    return out
