"""The numeric kernels: one function, one meaning each, whatever the device.

`reference` is the definition, in plain PyTorch. A call goes to the fastest version for its device; `use("reference")`
forces the definition. Callers never choose. Where a version can't be compiled, one warning says why, and the definition
takes its place.
"""

import contextlib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.kernels import (
    cpu_around,
    cpu_attention,
    cpu_fused,
    cpu_gate,
    cpu_last,
    cpu_loss,
    cpu_norm,
    cpu_packed,
    cpu_products,
    cpu_projection,
    cpu_topk,
    cuda,
    reference,
)
from sparse_circuits.kernels import packed as _packed
from sparse_circuits.kernels.packed import PackedWeight as PackedWeight

_forced_reference = False


@contextlib.contextmanager
def use(version: Literal["reference", "fastest"]) -> Iterator[None]:
    """Choose the kernels' version inside a `with` block.

    Args:
        version: `reference` for plain PyTorch everywhere, `fastest` for the device's own.
    """
    global _forced_reference
    if version not in ("reference", "fastest"):
        raise ValueError(f"version is {version!r}, expected 'reference' or 'fastest'")
    before, _forced_reference = _forced_reference, version == "reference"
    try:
        yield
    finally:
        _forced_reference = before


def abs_topk(x: Float[Tensor, "*batch channel"], n_keep: int) -> Float[Tensor, "*batch channel"]:
    """Keep the `n_keep` entries of largest magnitude in each vector; see `reference.abs_topk`."""
    _check_count(n_keep, x.shape[-1])
    return _for_topk(x).abs_topk(x, n_keep)


def gated_topk(
    x: Float[Tensor, "batch pos channel"],
    gate: Float[Tensor, "run channel"],
    value: Float[Tensor, "#run channel"],
    n_keep: int,
) -> Float[Tensor, "batch pos channel"]:
    """Thin vectors out and set what is not let through to its value; see `reference.gated_topk`."""
    _check_count(n_keep, x.shape[-1])
    _check_runs(x, gate)
    if gate.shape[1] != x.shape[-1] or value.shape not in (gate.shape, gate[:1].shape):
        raise ValueError(f"gates {tuple(gate.shape)} and values {tuple(value.shape)} for {x.shape[-1]} channels")
    version = cpu_gate if not _forced_reference and cpu_gate.can_gated_topk(x, gate, value) else reference
    return version.gated_topk(x, gate, value, n_keep)


def rms_norm(
    x: Float[Tensor, "*batch channel"], gain: Float[Tensor, " channel"], eps: float
) -> tuple[Float[Tensor, "*batch channel"], Float[Tensor, "*batch 1"]]:
    """Scale vectors to unit mean square, then by the gain; see `reference.rms_norm`."""
    if gain.shape != x.shape[-1:]:
        raise ValueError(f"a gain {tuple(gain.shape)} for {x.shape[-1]} channels")
    version = cpu_norm if not _forced_reference and cpu_norm.can_rms_norm(x, gain) else reference
    return version.rms_norm(x, gain, eps)


def linear(
    x: Float[Tensor, "*batch source"], weight: Float[Tensor, "target source"], bias: Float[Tensor, " target"] | None
) -> Float[Tensor, "*batch target"]:
    """Map vectors by a whole weight; see `reference.linear`."""
    version = cpu_products if not _forced_reference and cpu_products.can_linear(x, weight, bias) else reference
    return version.linear(x, weight, bias)


def linear_around(
    x: Float[Tensor, "batch pos source"],
    weight: Float[Tensor, "target source"],
    bias: Float[Tensor, " target"] | None,
    around: Float[Tensor, "run source"],
) -> Float[Tensor, "batch pos target"]:
    """Map vectors that mostly equal `around`; see `reference.linear_around`."""
    _check_runs(x, around)
    if not x.shape[-1] == weight.shape[1] == around.shape[1]:
        raise ValueError(
            f"vectors of width {x.shape[-1]} around {around.shape[1]} values don't fit {weight.shape[1]} sources"
        )
    if not _forced_reference and cpu_around.can_linear_around(x, weight, bias):
        return cpu_around.linear_around(x, weight, bias, around)
    return reference.linear_around(x, weight, bias, around)


def top_k_mask(x: Float[Tensor, "*batch channel"], n_keep: int) -> Bool[Tensor, "*batch channel"]:
    """Mark the `n_keep` entries of largest magnitude in each vector; see `reference.top_k_mask`."""
    _check_count(n_keep, x.shape[-1])
    return _for_topk(x).top_k_mask(x, n_keep)


def sink_attention(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    v: Float[Tensor, "batch head pos d_head"],
    sink: Float[Tensor, " head"] | None,
) -> Float[Tensor, "batch head query d_head"]:
    """Mix values causally, with an optional sink; see `reference.sink_attention`."""
    if k.shape != v.shape or (sink is not None and sink.shape != (q.shape[1],)):
        raise ValueError(
            f"keys {tuple(k.shape)}, values {tuple(v.shape)} and sinks {sink if sink is None else tuple(sink.shape)} "
            f"for queries {tuple(q.shape)}"
        )
    for version in () if _forced_reference else (cpu_attention, cpu_fused, cuda):
        if version.can_sink_attention(q, k, v, sink):
            return version.sink_attention(q, k, v, sink)
    return reference.sink_attention(q, k, v, sink)


def shared_attention(
    q: Float[Tensor, "token head d_head"],
    k: Float[Tensor, "token head d_head"],
    v: Float[Tensor, "token head d_head"],
    sink: Float[Tensor, " head"] | None,
    spans: Int[Tensor, "pair 4"],
) -> Float[Tensor, "token head d_head"]:
    """Mix values in pairs of prompts that begin alike; see `reference.shared_attention`."""
    if not q.shape == k.shape == v.shape or (sink is not None and sink.shape != (q.shape[1],)):
        raise ValueError(f"keys {tuple(k.shape)} and values {tuple(v.shape)} for queries {tuple(q.shape)}")
    first, n_alike, rest, length = spans.unbind(1)
    ends = torch.cat((first + length, rest + length - n_alike))
    if len(spans) and (int(spans.min()) < 0 or int(ends.max()) > len(q) or bool((n_alike > length).any())):
        raise ValueError(f"spans reach beyond the {len(q)} tokens, or more is alike than there is")
    fits = not _forced_reference and cpu_attention.can_shared_attention(q, k, v)
    return (cpu_attention if fits else reference).shared_attention(q, k, v, sink, spans)


def last_attention(
    q: Float[Tensor, "prompt head d_head"],
    k: Float[Tensor, "token head d_head"],
    v: Float[Tensor, "token head d_head"],
    sink: Float[Tensor, " head"] | None,
    spans: Int[Tensor, "prompt 4"],
) -> Float[Tensor, "prompt head d_head"]:
    """Mix values for each prompt's last query alone; see `reference.last_attention`."""
    if k.shape != v.shape or q.shape != (len(spans), *k.shape[1:]) or (sink is not None and len(sink) != q.shape[1]):
        raise ValueError(
            f"{len(spans)} prompts, queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)}"
        )
    start, n_first, rest, length = spans.unbind(1)
    ends = torch.cat((start + n_first, rest + length - n_first))
    if len(spans) and (
        int(spans.min()) < 0 or int(ends.max()) > len(k) or bool(((n_first > length) | (length < 1)).any())
    ):
        raise ValueError(f"spans reach beyond the {len(k)} tokens, or are empty")
    fits = not _forced_reference and cpu_last.can_last_attention(q, k, v)
    return (cpu_last if fits else reference).last_attention(q, k, v, sink, spans)


def cross_entropy(logits: Float[Tensor, "row vocab"], target: Int[Tensor, " row"]) -> Float[Tensor, ""]:
    """Return the mean loss of predicting the targets; see `reference.cross_entropy`."""
    if logits.shape[:-1] != target.shape:
        raise ValueError(f"targets {tuple(target.shape)} don't fit logits {tuple(logits.shape)}")
    version = cpu_loss if not _forced_reference and cpu_loss.can_cross_entropy(logits) else reference
    return version.cross_entropy(logits, target)


def keep_largest_(weight: Float[Tensor, "..."], n_keep: int, *, n_alive: int = 0, neuron_axis: int = 0) -> None:
    """Zero all but the `n_keep` largest entries in place; see `reference.keep_largest_`."""
    n_alive = _checked_alive(weight, n_keep, n_alive, neuron_axis)
    for version in () if _forced_reference else (cpu_projection, cuda):
        if version.can_keep_largest(weight):
            return version.keep_largest_(weight, n_keep, n_alive=n_alive, neuron_axis=neuron_axis)
    return reference.keep_largest_(weight, n_keep, n_alive=n_alive, neuron_axis=neuron_axis)


def keep_largest_many_(jobs: Sequence[tuple[Tensor, int, int, int]]) -> None:
    """Project many weights; on a GPU all together.

    Args:
        jobs: For each weight, the arguments of `keep_largest_`: weight, n_keep, n_alive, neuron_axis.
    """
    if jobs and not _forced_reference and all(cuda.can_keep_largest(job[0]) for job in jobs):
        cuda.keep_largest_many_([(w, n, _checked_alive(w, n, alive, axis), axis) for w, n, alive, axis in jobs])
        return
    for weight, n_keep, n_alive, axis in jobs:
        keep_largest_(weight, n_keep, n_alive=n_alive, neuron_axis=axis)


def _checked_alive(weight: Tensor, n_keep: int, n_alive: int, neuron_axis: int) -> int:
    """Return how many entries of each neuron are protected, after checking all that was asked for."""
    _check_count(n_keep, weight.numel())
    if n_alive == 0:
        return 0
    if weight.ndim != 2 or neuron_axis not in (0, 1):
        raise ValueError(f"neurons are rows (0) or columns (1) of a matrix, not axis {neuron_axis} of {weight.ndim}")
    n_alive = min(n_alive, weight.shape[1 - neuron_axis])
    if n_alive * weight.shape[neuron_axis] > n_keep:
        raise ValueError(f"{n_alive * weight.shape[neuron_axis]} protected entries exceed n_keep {n_keep}")
    return n_alive


def count_nonzero(weight: Float[Tensor, "target source"]) -> int:
    """Count a matrix's nonzeros."""
    return cpu_packed.count_nonzero(weight) if has_fast_products(weight) else int(weight.count_nonzero())


def pack(weight: Float[Tensor, "target source"]) -> PackedWeight:
    """Leave out a matrix's zeros."""
    return (cpu_packed if has_fast_products(weight) else _packed).pack(weight)


def packed_rows(weight: PackedWeight, chosen: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch source"]:
    """Return some rows of a packed weight; see `reference.packed_rows`."""
    version = cpu_packed if has_fast_products(weight.values) and chosen.device.type == "cpu" else reference
    return version.packed_rows(weight, chosen)


def packed_linear(
    x: Float[Tensor, "*batch source"],
    weight: PackedWeight,
    bias: Float[Tensor, " target"] | None = None,
    *,
    dense: Float[Tensor, "target source"] | None = None,
) -> Float[Tensor, "*batch target"]:
    """Map vectors by a packed weight; see `reference.packed_linear`."""
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"vectors of width {x.shape[-1]} don't fit a weight of {weight.shape[1]} sources")
    if has_fast_products(x):
        return cpu_packed.packed_linear(x, weight, bias, dense)
    version = cuda if not _forced_reference and cuda.can_packed_linear(x, weight, bias, dense) else reference
    return version.packed_linear(x, weight, bias, dense)


def has_fast_products(x: Tensor) -> bool:
    """Say whether products with packed weights have a compiled version for a tensor's device and type."""
    return not _forced_reference and cpu_packed.can_pack(x)


def _for_topk(x: Tensor) -> ModuleType:
    for version in () if _forced_reference else (cpu_topk, cuda):
        if version.can_abs_topk(x):
            return version
    return reference


def _check_count(n_keep: int, size: int) -> None:
    if not 0 <= n_keep <= size:
        raise ValueError(f"n_keep {n_keep} is not in [0, {size}]")


def _check_runs(x: Tensor, of_runs: Tensor) -> None:
    if x.shape[0] % len(of_runs):
        raise ValueError(f"a batch of {x.shape[0]} can't be shared out to {len(of_runs)} runs")


attention_pattern = reference.attention_pattern
softmax_with_sink = reference.softmax_with_sink
