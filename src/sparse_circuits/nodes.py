"""Nodes of a model: channels of the eight locations of each layer, in one long vector."""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_circuits.configs import ModelConfig
from sparse_circuits.errors import TapError, did_you_mean
from sparse_circuits.taps import NodeMask


@dataclasses.dataclass(frozen=True)
class NodeSpace:
    """Where each location's channels lie in the vector of all nodes.

    Nodes stand in the order of the forward pass, channels in their own.
    """

    widths: dict[str, int]
    """Channels by location: the census."""

    @classmethod
    def of(cls, config: ModelConfig) -> "NodeSpace":
        """Return the node space of models of this shape."""
        return cls(config.node_widths())

    @property
    def n_node(self) -> int:
        """All nodes."""
        return sum(self.widths.values())

    def slices(self) -> Iterator[tuple[str, slice]]:
        """Yield each location with its part of the vector."""
        start = 0
        for name, width in self.widths.items():
            yield name, slice(start, start + width)
            start += width

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return each location's part of the last axis."""
        return dict(zip(self.widths, vector.split(list(self.widths.values()), -1), strict=True))

    def join(self, parts: dict[str, Tensor]) -> Tensor:
        """Return the vector made of each location's part."""
        return torch.cat([parts[name] for name in self.widths], -1)

    def masks(self, keep: Bool[Tensor, "run node"], values: Float[Tensor, " node"]) -> dict[str, NodeMask]:
        """Return the edits that keep some nodes and set the others to their ablation values."""
        keeps, ablated = self.split(keep), self.split(values)
        return {name: NodeMask(keeps[name], ablated[name]) for name in self.widths}

    def names(self, keep: Bool[Tensor, " node"]) -> list[str]:
        """Return the names of the nodes that are kept, such as `0.attn.q:17`."""
        return [
            f"{name}:{channel}"
            for name, part in self.split(keep).items()
            for channel in part.nonzero().flatten().tolist()
        ]

    def marked(self, names: Sequence[str]) -> Bool[Tensor, " node"]:
        """Mark the nodes of these names."""
        marked = torch.zeros(self.n_node, dtype=torch.bool)
        marked[[self.index(name) for name in names]] = True
        return marked

    def index(self, name: str) -> int:
        """Return a node's place in the vector.

        Raises:
            TapError: There is no such location or channel.
        """
        location, _, channel = name.partition(":")
        for known, part in self.slices():
            if known == location:
                if channel.isdigit() and int(channel) < part.stop - part.start:
                    return part.start + int(channel)
                raise TapError(f"{name!r} is not a node; {location} has channels 0 to {part.stop - part.start - 1}")
        raise TapError(f"no location is called {location!r}{did_you_mean(location, self.widths)}")
