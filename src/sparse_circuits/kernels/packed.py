"""A sparse matrix without its zeros, row by row."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class PackedWeight:
    """The nonzeros of a weight (target, source), row after row, columns rising within a row."""

    values: Float[Tensor, " nonzero"]
    """The weights."""

    columns: Int[Tensor, " nonzero"]
    """The source of each, int32."""

    offsets: Int[Tensor, " target_and_end"]
    """Where each row starts, and the end, int64."""

    shape: tuple[int, int]
    """Targets and sources."""

    _turned: "dict[int, PackedWeight | None]" = dataclasses.field(default_factory=dict, init=False, repr=False)
    """What `turned` was when values had been changed so many times."""

    @functools.cached_property
    def arrays(self) -> tuple[Any, Any, Any]:
        """Values, columns and offsets as NumPy arrays that share their memory; on the CPU."""
        return self.values.numpy(), self.columns.numpy(), self.offsets.numpy()

    @functools.cached_property
    def lines(self) -> Any:
        """The row of each nonzero as a NumPy array, int32; on the CPU."""
        return self.indices().to(torch.int32).numpy()

    @property
    def turned(self) -> "PackedWeight | None":
        """The matrix (source, target), to be read column by column; None if a value is not finite.

        Only of finite values may one be left out that is multiplied with zero. It is made once, and again after values
        were changed in place.
        """
        n_change = 0 if self.values.is_inference() else self.values._version
        if n_change not in self._turned:
            self._turned.clear()
            self._turned[n_change] = transposed(self) if bool(self.values.isfinite().all()) else None
        return self._turned[n_change]

    def indices(self) -> Int[Tensor, " nonzero"]:
        """Return the target of each nonzero, int64."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(self.shape[0], device=counts.device), counts)

    def dense(self) -> Float[Tensor, "target source"]:
        """Return the matrix with its zeros."""
        weight = self.values.new_zeros(self.shape)
        weight[self.indices(), self.columns.long()] = self.values
        return weight

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> "PackedWeight":
        """Return what becomes of it, such as on another device, when its tensors go through a function."""
        return PackedWeight(fn(self.values), fn(self.columns), fn(self.offsets), self.shape)


def pack(weight: Float[Tensor, "target source"]) -> PackedWeight:
    """Leave out a matrix's zeros."""
    weight = weight.detach()
    is_nonzero = weight != 0
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64, device=weight.device), is_nonzero.sum(1).cumsum(0)))
    columns = is_nonzero.nonzero()[:, 1].to(torch.int32)
    return PackedWeight(weight[is_nonzero], columns, offsets, (weight.shape[0], weight.shape[1]))


def transposed(weight: PackedWeight) -> PackedWeight:
    """Return the matrix (source, target), its nonzeros row by row again."""
    order = weight.columns.argsort(stable=True)
    counts = torch.bincount(weight.columns, minlength=weight.shape[1])
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return PackedWeight(
        weight.values[order], weight.indices()[order].to(torch.int32), offsets, (weight.shape[1], weight.shape[0])
    )
