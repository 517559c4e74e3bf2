"""RMS normalisation on a CPU in one pass over memory, and one back (Numba)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.kernels.compiled import loops


def can_rms_norm(x: Tensor, gain: Tensor) -> bool:
    """Say whether `rms_norm` takes these tensors."""
    return (
        all(one.device.type == "cpu" and one.dtype is torch.float32 for one in (x, gain))
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and loops("_norm_numba") is not None
    )


def rms_norm(x: Float[Tensor, "*batch channel"], gain: Float[Tensor, " channel"]) -> Float[Tensor, "*batch channel"]:
    """Scale vectors to unit mean square, then by a gain; see `reference.rms_norm`."""
    if torch.is_grad_enabled() and (x.requires_grad or gain.requires_grad):
        return _RMSNorm.apply(x, gain)  # pyright: ignore[reportReturnType]
    return _normalise(x.detach().contiguous(), gain.detach().contiguous())[0]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        x, gain = x.detach().contiguous(), gain.detach().contiguous()
        out, scales = _normalise(x, gain)
        ctx.save_for_backward(x, gain, scales)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, gain, scales = ctx.saved_tensors
        compiled = _threads()
        grad_x, by_gain = torch.empty_like(x), x.new_zeros(-(-len(scales) // compiled.ROWS_AT_ONCE), len(gain))
        grad = _flat(grads[0].contiguous())
        compiled.backward(grad, _flat(x), gain.numpy(), scales.numpy(), _flat(grad_x), by_gain.numpy())
        return grad_x, by_gain.sum(0)


def _normalise(x: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    out, scales = torch.empty_like(x), x.new_empty(x.numel() // len(gain))
    eps = torch.finfo(x.dtype).eps
    _threads().forward(_flat(x), gain.numpy(), eps, _flat(out), scales.numpy())
    return out, scales


def _flat(x: Tensor) -> Any:
    return x.view(-1, x.shape[-1]).numpy()


def _threads() -> Any:
    """Return the compiled functions, set to torch's number of threads."""
    compiled: Any = loops("_norm_numba")
    compiled.set_threads(torch.get_num_threads())
    return compiled
