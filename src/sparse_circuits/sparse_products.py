"""Products with the nonzeros of a weight alone, in learning, where these are few enough to be faster."""

import contextlib
from collections.abc import Iterator

from sparse_circuits import kernels
from sparse_circuits.layers import Linear
from sparse_circuits.model import Transformer

MAX_DENSITY = 0.15
"""Share of nonzeros up to which the sparse products are surely the faster ones; measured by benchmarks/kernels.py."""

MIN_SIZE = 1 << 15
"""Entries from which on they are in one pass: below, a product is over before the nonzeros are collected."""


@contextlib.contextmanager
def sparse_products(model: Transformer, *, min_size: int = MIN_SIZE) -> Iterator[list[str]]:
    """Let forward and backward passes use the nonzeros of sparse weights, where that is faster.

    The forward and the input-gradient products skip the zeros; the weight's gradient stays whole, so that a weight can
    come back. Results differ by rounding. The weights must not change inside the block.

    Args:
        model: Its weights.
        min_size: Entries of a weight below which it is left alone; for many passes there is no need to.

    Source: paper section 2.1, which found sparse products faster on a GPU below 1 % of nonzeros; ours is the CPU's.

    Yields:
        The parameters whose nonzeros are used.
    """
    chosen: dict[str, Linear] = {}
    for name, linear in _linears(model).items():
        weight = linear.weight
        if linear.packed is not None or weight.numel() < min_size or not kernels.has_fast_products(weight):
            continue
        if kernels.count_nonzero(weight) <= MAX_DENSITY * weight.numel():
            chosen[name] = linear
    for linear in chosen.values():
        linear.packed = kernels.pack(linear.weight)
    try:
        yield list(chosen)
    finally:
        for linear in chosen.values():
            linear.packed = None


def _linears(model: Transformer) -> dict[str, Linear]:
    found = {f"{name}.weight": linear for name, linear in model.linears().items()}
    if not model.config.tied_unembedding:
        found["unembedding.weight"] = model.unembedding
    return found
