"""A model whose sparse weights stay packed in memory: to run, read, edit and generate with, not to train or cut."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparse_circuits import checkpoint, kernels
from sparse_circuits.errors import FormatError
from sparse_circuits.kernels import PackedWeight
from sparse_circuits.layers import Linear
from sparse_circuits.model import Transformer
from sparse_circuits.tokenizer import Tokenizer


class PackedEmbedding(nn.Module):
    """An embedding whose vectors are unpacked when they are looked up."""

    weight = None

    def __init__(self, packed: PackedWeight) -> None:
        super().__init__()
        self.packed = packed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedEmbedding":
        """Move the nonzeros along, when torch moves a module or gives it another type."""
        super()._apply(fn, recurse)
        self.packed = self.packed.mapped(fn)
        return self

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Look vectors up."""
        return kernels.packed_rows(self.packed, tokens)


def load_packed(path: Path, tokenizer: Tokenizer | None = None) -> Transformer:
    """Read a model file without ever making its sparse matrices whole.

    Args:
        path: What `checkpoint.save_model` wrote; matrices that it stored whole stay whole.
        tokenizer: What the tokens mean.

    Returns:
        The model in evaluation mode. Linear maps that are packed have no `weight`: edges can't be cut there.

    Raises:
        FormatError: As `checkpoint.load_model`.
    """
    model, arrays = checkpoint.read_model(path, tokenizer)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    whole = {}
    for name, shape in shapes.items():
        if f"{name}.values" in arrays:
            checkpoint.check_packed(arrays, name, shape, str(path))
            checkpoint.check_type(arrays[f"{name}.values"], name, str(path))
            values, columns, offsets = (torch.from_numpy(_taken(arrays, name, part)) for part in checkpoint.PARTS)
            packed = PackedWeight(values, columns, offsets, (shape[0], shape[1]))
            if _stays_packed(model, name):
                _put(model, name, packed)
            else:
                whole[name] = packed.dense()
        elif name not in arrays:
            raise FormatError(f"{path}: has no tensor {name}")
        elif arrays[name].shape != shape:
            raise FormatError(f"{path}: {name} has shape {arrays[name].shape}, its config says {shape}")
        else:
            checkpoint.check_type(arrays[name], name, str(path))
            whole[name] = torch.from_numpy(arrays.pop(name))
    model.load_state_dict(whole, strict=False, assign=True)
    return model.requires_grad_(False).eval()


def pack_model(model: Transformer) -> Transformer:
    """Pack a model's linear maps, embedding and unembedding in place, where fewer than half the entries are nonzero.

    A tied unembedding stays whole.
    """
    for name, tensor in list(model.state_dict().items()):
        if _stays_packed(model, name) and 2 * int(tensor.count_nonzero()) < tensor.numel():
            _put(model, name, kernels.pack(tensor))
    return model.requires_grad_(False).eval()


def _stays_packed(model: Transformer, name: str) -> bool:
    """Say whether a tensor can be packed in memory: linear maps, and embeddings that are not tied."""
    if name in ("token_embedding.weight", "unembedding.weight"):
        return not model.config.tied_unembedding
    return name.removesuffix(".weight").removeprefix("blocks.") in model.linears()


def _taken(arrays: dict[str, np.ndarray], name: str, part: str) -> np.ndarray:
    """Take one part of a packed matrix, in the types that the kernels have."""
    kind = {"values": np.float32, "columns": np.int32, "offsets": np.int64}[part]
    return arrays.pop(f"{name}.{part}").astype(kind)


def _put(model: Transformer, name: str, packed: PackedWeight) -> None:
    """Put a packed weight in the place of a parameter."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, Linear):
        owner.packed = packed
        owner.register_parameter("weight", None)
    else:
        model.token_embedding = cast(nn.Embedding, PackedEmbedding(packed))
