"""The weight projection on a CPU: the threshold is bracketed by a sample, then found among what is between (Numba)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.kernels.compiled import MIN_PARALLEL, loops, threaded

_N_MANY = 8
"""If one column in so many has to be gone through, going through all row by row is faster."""


def can_keep_largest(weight: Tensor) -> bool:
    """Say whether `keep_largest_` takes this tensor."""
    return (
        weight.device.type == "cpu"
        and weight.dtype is torch.float32
        and weight.is_contiguous()
        and loops("_projection_numba") is not None
    )


def keep_largest_(weight: Float[Tensor, "..."], n_keep: int, *, n_alive: int = 0, neuron_axis: int = 0) -> None:
    """Zero all but the `n_keep` largest entries in place; see `reference.keep_largest_`."""
    bits = weight.detach().numpy().view("u4")
    n_part = torch.get_num_threads() if weight.numel() >= MIN_PARALLEL else 1
    compiled = threaded("_projection_numba", weight.numel())
    if n_alive == 0:
        compiled.keep_largest_bits(bits.reshape(-1), n_keep, n_part)
        return
    poor = _poor_neurons(bits, n_keep, n_alive, neuron_axis, n_part)
    places = torch.empty(len(poor), n_alive, dtype=torch.int64)
    if neuron_axis == 0:
        compiled.largest_of_rows(bits, poor.numpy(), places.numpy(), n_part)
    elif len(poor) == weight.shape[1]:
        compiled.largest_of_columns(bits, places.numpy(), n_part)
    else:
        compiled.largest_of_few_columns(bits, poor.numpy(), places.numpy())
    compiled.keep_largest_and_protected(bits.reshape(-1), places.view(-1).numpy(), n_keep - places.numel(), n_part)


def _poor_neurons(bits: Any, n_keep: int, n_alive: int, neuron_axis: int, n_part: int) -> Int[Tensor, " poor"]:
    """Return the rows or columns that might not keep `n_alive` entries if the largest of the whole matrix were kept.

    Of all others the entries that are protected exceed a size that fewer than `n_keep` less all protected ones exceed;
    so they are kept in any case, and need not be looked for.
    """
    everyone, n_free = torch.arange(bits.shape[neuron_axis]), n_keep - n_alive * bits.shape[neuron_axis]
    if bits.size < MIN_PARALLEL or n_free == 0:
        return everyone
    compiled: Any = loops("_projection_numba")
    size, counts = compiled.rarely_exceeded(bits.reshape(-1), n_free), torch.empty_like(everyone)
    if neuron_axis == 0:
        compiled.count_above_by_row(bits, size, counts.numpy())
    else:
        compiled.count_above_by_column(bits, size, counts.numpy(), n_part)
    poor = (counts < n_alive).nonzero().flatten()
    is_wrong, are_many = int(counts.sum()) >= n_free, neuron_axis == 1 and _N_MANY * len(poor) > len(everyone)
    return everyone if is_wrong or are_many else poor
