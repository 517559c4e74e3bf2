"""Token after token through a packed model: all sublayers of a position in one compiled call, in place of hundreds.

It gives what `Transformer.run` gives behind a cache, to rounding, as long as activations are finite.
"""

import sys
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits import kernels
from sparse_circuits.kernels.compiled import loops
from sparse_circuits.kernels.packed import PackedWeight

if TYPE_CHECKING:
    from sparse_circuits.layers import Norm
    from sparse_circuits.model import Block, LayerCache, Transformer


def can_decode(model: "Transformer") -> bool:
    """Say whether `Decoder` takes a model: packed, finite, on the CPU, and nobody reads or edits its activations."""
    for linear in model.linears().values():
        packed = linear.packed
        if packed is None or linear.weight is not None or linear.cut is not None:
            return False
        if not kernels.has_fast_products(packed.values) or packed.turned is None:
            return False
    is_watched = any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
    is_idle = all(tap.is_idle for tap in model.taps().values())
    return is_idle and not is_watched and loops("_decoding_numba") is not None


class Decoder:
    """Runs one position after another.

    Args:
        model: One that `can_decode`.
        cache: What the model's forward pass left of the positions so far, one a layer.
        n_more: Positions that will come.
    """

    def __init__(self, model: "Transformer", cache: "list[LayerCache]", n_more: int) -> None:
        self._compiled: Any = loops("_decoding_numba")
        config, blocks = model.config, cast("list[Block]", model.blocks)
        self.n_pos, self.room = cache[0].n_pos, self._compiled.whole_tiles(cache[0].n_pos + n_more)
        held = torch.stack([layer.keys_and_values() for layer in cache])  # (layer, 2, batch, pos, d_attn)
        keys, values = held.unbind(1)
        self.keys = keys.new_zeros(*keys.shape[:2], config.d_attn, self.room)
        self.keys[..., : self.n_pos] = keys.transpose(-1, -2)
        width = self._compiled.whole_tiles(config.d_head)
        self.values = values.new_zeros(*values.shape[:2], config.n_head, self.room, width)
        self.values[:, :, :, : self.n_pos, : config.d_head] = values.unflatten(-1, (config.n_head, -1)).transpose(2, 3)
        reads = [read for block in blocks for read in (block.attn.read, block.mlp.read)]
        norms = [read.norm for read in reads]
        gains = torch.stack([norm.weight for norm in norms])
        shifts = torch.stack([torch.zeros(config.d_model) if norm.bias is None else norm.bias for norm in norms])
        if config.has_concatenated_positions:
            vectors = model.position_embedding.weight[: self.n_pos + n_more]
            positions = torch.stack([cast("Norm", read.position_norm)(vectors) for read in reads], 1)
        else:
            positions = torch.zeros(self.n_pos + n_more, len(reads), 0)
        self.positions = positions.unflatten(1, (-1, 2)).contiguous()  # (pos, layer, 2, d_position)
        none = torch.full((config.n_head,), -torch.inf)
        sinks = torch.stack([none if block.attn.sink is None else block.attn.sink for block in blocks])
        switches = (config.norm == "layer", config.activation == "gelu", config.residual_activation == "relu")
        self._before = (_kept(blocks[0]), switches, np.zeros((config.n_layer, 10, 1)))
        self._norms = tuple(x.unflatten(0, (-1, 2)).contiguous().numpy() for x in (gains, shifts))
        self._after = (sinks.contiguous().numpy(), *_joined(model))

    def run(self, x: Float[Tensor, "batch 1 d_model"]) -> Float[Tensor, "batch 1 d_model"]:
        """Run all sublayers for the next position, and keep its keys and values."""
        out, n_thread = x.detach()[:, 0].clone(memory_format=torch.contiguous_format), torch.get_num_threads()
        cache = (self.keys.view(-1).numpy(), self.values.view(-1).numpy(), self.room)
        reads = (*self._norms, self.positions[self.n_pos].numpy())
        arguments = (self.n_pos, *self._before, cache, reads, *self._after)
        self._compiled.set_threads(n_thread)
        self._compiled.run_position(out.numpy(), *arguments, n_thread)
        self.n_pos += 1
        return out[:, None]


def _kept(block: "Block") -> np.ndarray:
    """Return what AbsTopK keeps at each of a layer's sites, in the order of the forward pass."""
    attn, mlp = block.attn, block.mlp
    sites = (attn.read.act_in, attn.q, attn.k, attn.v, attn.resid_delta, block.after_attn)
    sites += (mlp.read.act_in, mlp.post_act, mlp.resid_delta, block.after_mlp)
    return np.array([sys.maxsize if site.n_keep is None else site.n_keep for site in sites])


def _joined(model: "Transformer") -> tuple[Any, ...]:
    """Return all maps' nonzeros by column, their rows and columns, and by kind of map columns' starts and biases."""
    linears = model.linears()
    turned = {name: cast(PackedWeight, cast(PackedWeight, linear.packed).turned) for name, linear in linears.items()}
    values, rows = (np.concatenate([weight.arrays[i] for weight in turned.values()]) for i in (0, 1))
    columns = np.concatenate([weight.lines for weight in turned.values()])
    start, offsets, biases = 0, {}, {}
    for name, weight in turned.items():
        kind, bias = name.partition(".")[2], linears[name].bias
        offsets.setdefault(kind, []).append(start + weight.arrays[2])
        biases.setdefault(kind, []).append(
            np.zeros(weight.shape[1], np.float32) if bias is None else bias.detach().numpy()
        )
        start += len(weight.values)
    return (values, rows, columns), *(tuple(np.stack(of) for of in by_kind.values()) for by_kind in (offsets, biases))
