"""The four numeric kernels: one function, one meaning each, whatever the device.

`reference` is the definition, in plain PyTorch. A call goes to the fastest version for its device; `use("reference")`
forces the definition. Callers never choose.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from sparse_circuits.kernels import cpu, reference

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
    if not _forced_reference and cpu.can_abs_topk(x):
        return cpu.abs_topk(x, n_keep)
    return reference.abs_topk(x, n_keep)


def top_k_mask(x: Float[Tensor, "*batch channel"], n_keep: int) -> Bool[Tensor, "*batch channel"]:
    """Mark the `n_keep` entries of largest magnitude in each vector; see `reference.top_k_mask`."""
    version = cpu if not _forced_reference and cpu.can_abs_topk(x) else reference
    return version.top_k_mask(x, n_keep)


def sink_attention(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    v: Float[Tensor, "batch head pos d_head"],
    sink: Float[Tensor, " head"] | None,
) -> Float[Tensor, "batch head query d_head"]:
    """Mix values causally, with an optional sink; see `reference.sink_attention`."""
    if not _forced_reference and cpu.can_sink_attention(q, k, v):
        return cpu.sink_attention(q, k, v, sink)
    return reference.sink_attention(q, k, v, sink)


def keep_largest_(weight: Float[Tensor, "..."], n_keep: int, *, protected: Bool[Tensor, "..."] | None = None) -> None:
    """Zero all but the `n_keep` largest entries in place; see `reference.keep_largest_`."""
    version = cpu if not _forced_reference and cpu.can_keep_largest(weight) else reference
    version.keep_largest_(weight, n_keep, protected=protected)


attention_pattern = reference.attention_pattern
softmax_with_sink = reference.softmax_with_sink
