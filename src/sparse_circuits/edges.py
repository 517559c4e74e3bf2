"""Edges of a model: nonzero weights between kept nodes, in one long vector."""

import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.taps import EdgeCut

EDGE_ENDS = {
    "attn.qkv": ("attn.act_in", ("attn.q", "attn.k", "attn.v")),
    "attn.out": ("attn.v", ("attn.resid_delta",)),
    "mlp.fc_in": ("mlp.act_in", ("mlp.post_act",)),
    "mlp.fc_out": ("mlp.post_act", ("mlp.resid_delta",)),
}
"""For each linear map of a layer: the location of its sources, and those of its targets in order."""


def edges_between(model: Transformer, keep: Bool[Tensor, " node"]) -> dict[str, Bool[Tensor, "target source"]]:
    """Return, by linear map, which weights are nonzero and join two kept nodes.

    Raises:
        TapError: The model is packed.
    """
    model.require_whole()
    keeps = NodeSpace.of(model.config).split(keep)
    edges = {}
    for name, linear in model.linears().items():
        layer, kind = name.split(".", 1)
        source, targets = EDGE_ENDS[kind]
        target_keep = torch.cat([keeps[f"{layer}.{target}"] for target in targets])
        edges[name] = (linear.weight != 0) & target_keep[:, None] & keeps[f"{layer}.{source}"]
    return edges


def source_values(values: dict[str, Float[Tensor, " channel"]], linear: str) -> Float[Tensor, " source"]:
    """Return the ablation values of a linear map's sources, out of those by location."""
    layer, kind = linear.split(".", 1)
    return values[f"{layer}.{EDGE_ENDS[kind][0]}"]


@dataclasses.dataclass(frozen=True)
class EdgeSpace:
    """Where the edges of some linear maps lie in one vector: map after map in forward order, row by row."""

    ends: dict[str, Int[Tensor, "edge 2"]]
    """Target and source of each edge, by linear map."""

    shapes: dict[str, tuple[int, ...]]
    """Shape of each map's weight."""

    @classmethod
    def of(cls, edges: dict[str, Bool[Tensor, "target source"]]) -> "EdgeSpace":
        """Return the space of these edges."""
        return cls(
            ends={name: mask.nonzero() for name, mask in edges.items()},
            shapes={name: tuple(mask.shape) for name, mask in edges.items()},
        )

    @property
    def n_edge(self) -> int:
        """All edges."""
        return sum(len(ends) for ends in self.ends.values())

    def slices(self) -> Iterator[tuple[str, slice]]:
        """Yield each linear map with its part of the vector."""
        start = 0
        for name, ends in self.ends.items():
            yield name, slice(start, start + len(ends))
            start += len(ends)

    def masks(self, keep: Bool[Tensor, "*run edge"]) -> dict[str, Bool[Tensor, "*run target source"]]:
        """Return which weights are edges, by linear map."""
        masks = {}
        for name, part in self.slices():
            mask = torch.zeros(*keep.shape[:-1], *self.shapes[name], dtype=torch.bool)
            mask[..., self.ends[name][:, 0], self.ends[name][:, 1]] = keep[..., part]
            masks[name] = mask
        return masks

    def cuts(self, keep: Bool[Tensor, "run edge"], values: dict[str, Float[Tensor, " channel"]]) -> dict[str, EdgeCut]:
        """Return the cuts of the edges that are not kept, where there are any; all other weights stay live.

        Args:
            keep: For each run.
            values: What sources are worth when cut off, by location.
        """
        cuts = {}
        for name, part in self.slices():
            if not keep[:, part].all():
                live = torch.ones(len(keep), *self.shapes[name], dtype=torch.bool)
                live[:, self.ends[name][:, 0], self.ends[name][:, 1]] = keep[:, part]
                cuts[name] = EdgeCut(live, source_values(values, name))
        return cuts

    def node_ends(self, space: NodeSpace) -> Int[Tensor, "edge 2"]:
        """Return the source and the target of each edge, as places in the vector of nodes."""
        starts = {location: part.start for location, part in space.slices()}
        ends = [torch.empty(0, 2, dtype=torch.long)]
        for name, found in self.ends.items():
            layer, kind = name.split(".", 1)
            source, targets = EDGE_ENDS[kind]
            width = self.shapes[name][0] // len(targets)
            first = torch.tensor([starts[f"{layer}.{target}"] for target in targets])  # (target location,)
            row, column = found.unbind(1)
            ends.append(torch.stack((starts[f"{layer}.{source}"] + column, first[row // width] + row % width), 1))
        return torch.cat(ends)

    def names(self, keep: Bool[Tensor, " edge"]) -> list[str]:
        """Return the names of the edges that are kept, such as `0.attn.act_in:3 → 0.attn.q:17`."""
        found = []
        for name, part in self.slices():
            layer, kind = name.split(".", 1)
            source, targets = EDGE_ENDS[kind]
            width = self.shapes[name][0] // len(targets)
            for row, column in self.ends[name][keep[part]].tolist():
                found.append(f"{layer}.{source}:{column} → {layer}.{targets[row // width]}:{row % width}")
        return found
