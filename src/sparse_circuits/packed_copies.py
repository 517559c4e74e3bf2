"""Packed copies of large models in other programs' formats: made at the first opening, for packed ones from then on."""

import dataclasses
import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from sparse_circuits.checkpoint import save_model
from sparse_circuits.errors import SparseCircuitsError
from sparse_circuits.files import read_json, write_json
from sparse_circuits.model import Transformer
from sparse_circuits.packed_model import load_packed
from sparse_circuits.released import cache_folder

FORMAT, VERSION = "sparse-circuits packed copy", 1

SMALLEST = 32 * 2**20
"""Bytes of the files from which a copy is worth its place."""

LARGEST_SHARE = 0.5
"""Of the files' bytes: what packs worse is not kept a second time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedCopy:
    """Where the copy of a model lies, and what was seen when it was made."""

    note: Path
    """Its JSON: what it was made from, and which tensors hold numbers that are not finite."""

    weights: Path
    """The packed model; absent where packing saves nothing."""


def place_of(files: Sequence[Path]) -> PackedCopy | None:
    """Return where the copy of a model in these files belongs, or None if they are too small to need one.

    The place depends on path, size and time of each file: a file that changed has another place.
    """
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    if sum(size for _, size, _ in stats) < SMALLEST:
        return None
    source = hashlib.sha256("\n".join(path for path, _, _ in stats).encode()).hexdigest()[:16]
    state = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    folder = cache_folder() / "packed"
    return PackedCopy(note=folder / f"{source}-{state}.json", weights=folder / f"{source}-{state}.safetensors")


def noted(copy: PackedCopy) -> dict[str, int] | None:
    """Return what was seen when the copy was made: numbers that are not finite, by tensor; None if it never was."""
    try:
        return dict(read_json(copy.note, expect=FORMAT, version=VERSION)["not_finite"])
    except (SparseCircuitsError, KeyError, TypeError, ValueError):
        return None


def open_copy(copy: PackedCopy) -> Transformer | None:
    """Return the copy's model with its weights left packed, or None if there is no copy that can be read."""
    try:
        return load_packed(copy.weights)
    except SparseCircuitsError:
        return None


def keep(model: Transformer, copy: PackedCopy, files: Sequence[Path], not_finite: dict[str, int]) -> None:
    """Write the copy of a model, and remove those of earlier states of its files; a full disk is only a warning."""
    n_byte = sum(file.stat().st_size for file in files)
    is_packed = packed_size(model) <= LARGEST_SHARE * n_byte
    source = copy.note.name.split("-")[0]
    try:
        if is_packed:
            save_model(model, copy.weights)
        note = {"format": FORMAT, "version": VERSION, "files": [str(file.resolve()) for file in files]}
        write_json(copy.note, note | {"is_packed": is_packed, "not_finite": not_finite})
        for stale in copy.note.parent.glob(f"{source}-*"):
            if stale not in (copy.note, copy.weights):
                stale.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"{copy.note.parent}: no packed copy was kept for next time ({error})", stacklevel=3)


def packed_size(model: Transformer) -> int:
    """Return about how many bytes `save_model` writes."""
    total = 0
    for tensor in model.state_dict().values():
        size = 4 * tensor.numel()
        total += min(size, 6 * int(tensor.count_nonzero())) if tensor.ndim == 2 else size
    return total


@torch.no_grad()
def count_not_finite(model: Transformer) -> dict[str, int]:
    """Count NaN and infinite weights, by tensor; only those that have some."""
    tensors = dict(model.state_dict())
    packed = {name: getattr(module, "packed", None) for name, module in model.named_modules()}
    tensors |= {f"{name}.weight": weight.values for name, weight in packed.items() if weight is not None}
    # A finite sum has only finite terms; one that is not may have overflowed, so that they are counted.
    suspects = {name: tensor for name, tensor in tensors.items() if not bool(tensor.sum().isfinite())}
    counts = {name: int((~tensor.isfinite()).sum()) for name, tensor in suspects.items()}
    return {name: count for name, count in counts.items() if count}
