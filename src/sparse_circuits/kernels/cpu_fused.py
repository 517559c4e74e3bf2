"""Attention with a sink on a CPU, over torch's fused one."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.kernels.compiled import OnceDifferentiable


def can_sink_attention(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None) -> bool:
    """Say whether `sink_attention` takes this input, and this torch has the fused operators.

    They turn a NaN into zeros without a word, so input that is not finite goes to the reference; a sink of −∞ takes
    nothing, and is none.
    """
    return (
        q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.float64)
        and q.shape == k.shape
        and q.numel() > 0
        and not torch.compiler.is_compiling()
        and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward")
        and bool((q.detach().sum() + k.detach().sum() + v.detach().sum()).isfinite())
        and (sink is None or bool((sink < torch.inf).all()))
    )


def sink_attention(
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    v: Float[Tensor, "batch head pos d_head"],
    sink: Float[Tensor, " head"] | None,
) -> Float[Tensor, "batch head pos d_head"]:
    """Mix values causally, with an optional sink; see `reference.sink_attention`.

    With lse the log-sum-exp of a row's scores and b the sink's logit, the output is the fused attention's times
    sigmoid(lse − b), and its own backward gives exact gradients when handed that output and logaddexp(lse, b).
    """
    if sink is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return _SinkAttention.apply(q, k, v, sink)  # pyright: ignore[reportReturnType]


class _SinkAttention(OnceDifferentiable):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        slot = sink.to(lse.dtype)[:, None]  # (head, 1)
        out = out * (lse - slot).sigmoid().unsqueeze(-1)
        lse = torch.logaddexp(lse, slot.expand_as(lse))  # (batch, head, pos)
        ctx.save_for_backward(q, k, v, sink, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, sink, out, lse = ctx.saved_tensors
        grad = grads[0]
        grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, True
        )
        share = (sink.to(lse.dtype)[:, None] - lse).exp()  # what the sink takes: (batch, head, pos)
        grad_sink = -(share * (grad * out).sum(-1)).sum((0, 2))  # (head,)
        return grad_q, grad_k, grad_v, grad_sink.to(sink.dtype)
