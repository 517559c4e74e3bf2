"""A node of the sparse model as a direction in what the dense model reads.

A node at a read location is a channel of the normalised sparse stream, a = γ_s x_s / ρ_s with gain γ_s and divisor ρ_s
(the root mean square). A change Δa is a change Δx_s = Δa ρ_s / γ_s of the stream; the decoder D takes it to
Δx_d = D[:, c] Δx_s; the dense model's read changes by γ_d ∘ Δx_d / ρ_d. So

    Δ(dense read) = γ_d ∘ D[:, c] · (ρ_s / ρ_d) / γ_s · Δa

with both divisors at their root mean square over reference text. Under LayerNorm the column is centred first.

Source: paper appendix A.4, whose models have the gains folded into the weights.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.bridges.maps import Bridge
from sparse_circuits.bridges.residual import read_location
from sparse_circuits.errors import TapError
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.taps import reading
from sparse_circuits.tasks.pairs import Pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadNode:
    """A channel that a sublayer of the sparse model reads, and where it is bridged."""

    name: str
    """Such as `2.mlp.act_in:17`."""

    place: int
    """Which pair of sites, counted from 0."""

    dense_site: int
    """Site of the dense model."""

    channel: int
    """Channel of the sparse stream."""

    @property
    def location(self) -> str:
        """The read location without the channel."""
        return self.name.partition(":")[0]


def read_locations(bridge: Bridge) -> dict[str, int]:
    """Return the read locations of the sparse model that are bridged, each with its pair of sites.

    Raises:
        TapError: There is none: the only bridges stand behind the last sublayer of a model.
    """
    sparse, dense = bridge.sparse_stream, bridge.dense
    found = {
        read_location(site, sparse.n_sublayer): place
        for place, (site, other) in enumerate(bridge.bridges.sites)
        if site < sparse.n_sublayer and other < dense.n_sublayer
    }
    if not found:
        shown = " ".join(f"{s}:{d}" for s, d in bridge.bridges.sites)
        raise TapError(f"no bridge stands before a sublayer of both models (sites {shown}), so no node can be read")
    return found


def read_node(bridge: Bridge, name: str) -> ReadNode:
    """Find a node that can be carried over.

    Raises:
        TapError: There is no such node; it is not at a read location, and the message names the nearest that are; it
            belongs to the positions; or its site has no bridge.
    """
    NodeSpace.of(bridge.sparse.config).index(name)
    location, _, channel = name.partition(":")
    reads = read_locations(bridge)
    if location not in reads:
        order = list(NodeSpace.of(bridge.sparse.config).widths)
        near = sorted(reads, key=lambda read: abs(order.index(read) - order.index(location)))[:2]
        raise TapError(
            f"{name} is not at a bridged read location, so it is no channel of the stream; the nearest that are: "
            f"{' and '.join(near)}, channels 0 to {bridge.sparse.config.d_model - 1}"
        )
    if int(channel) >= bridge.sparse.config.d_model:
        raise TapError(
            f"{name} belongs to the appended positions, which are no part of the stream; {location} has channels "
            f"0 to {bridge.sparse.config.d_model - 1} of it"
        )
    place = reads[location]
    return ReadNode(name=name, place=place, dense_site=bridge.bridges.sites[place][1], channel=int(channel))


@torch.no_grad()
def read_directions(bridge: Bridge, place: int) -> Float[Tensor, "d_sparse d_dense"]:
    """Return the change of the dense read for a unit change of each sparse channel at a pair of sites.

    A channel whose gain is 0 is never read; its row is 0.
    """
    site, dense_site = bridge.bridges.sites[place]
    gain = bridge.sparse_stream.to_read(site, torch.eye(bridge.sparse.config.d_model)).diagonal()  # (d_sparse,)
    rms_sparse, rms_dense = bridge.rms[place]
    rows = bridge.dense.to_read(dense_site, bridge.bridges.decoders[place].weight.T)  # pyright: ignore
    inverse = torch.where(gain == 0, 0.0, 1 / torch.where(gain == 0, 1.0, gain))
    return rows * (rms_sparse / rms_dense) * inverse[:, None]


def read_direction(bridge: Bridge, node: ReadNode) -> Float[Tensor, " d_dense"]:
    """Return the change of the dense read for a unit change of a node's activation.

    Raises:
        TapError: The sparse norm's gain is 0 there, so the node is always 0.
    """
    direction = read_directions(bridge, node.place)[node.channel]
    if not direction.any():
        raise TapError(f"{node.name} has a gain or a decoder row of 0: nothing is read there")
    return direction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Both sides of pairs as prompts: prompt 2p + s is side s of pair p, its partner the pair's other side."""

    tokens: Int[Tensor, "prompt pos"]
    """Token ids."""

    length: Int[Tensor, " prompt"]
    """Tokens of each prompt."""

    own: Int[Tensor, " prompt"]
    """The answer that is right."""

    other: Int[Tensor, " prompt"]
    """The partner's answer."""

    templates: tuple[str, ...]
    """Of each pair."""

    levels: tuple[str, ...]
    """Of each pair."""

    @classmethod
    def of(cls, pairs: Pairs) -> "Prompts":
        """Take pairs apart."""
        return cls(
            tokens=pairs.tokens.flatten(0, 1),
            length=pairs.length.repeat_interleave(2),
            own=pairs.answers.flatten(),
            other=pairs.answers.flip(1).flatten(),
            templates=pairs.templates,
            levels=pairs.levels,
        )

    def __len__(self) -> int:
        return len(self.length)

    @property
    def is_prompt(self) -> Tensor:
        """True for tokens, False for padding; (prompt, pos)."""
        return torch.arange(self.tokens.shape[1]) < self.length[:, None]

    @property
    def first_difference(self) -> Int[Tensor, " prompt"]:
        """Place of the first token that differs from the partner's."""
        differs = (self.tokens != partner(self.tokens)) & self.is_prompt
        return differs.int().argmax(1)


def partner(x: Tensor) -> Tensor:
    """Return what belongs to the other side of each prompt's pair; axis 0 is prompts."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


@torch.no_grad()
def read_activations(
    bridge: Bridge, location: str, prompts: Prompts, *, n_row: int = 128
) -> Float[Tensor, "prompt pos d_sparse"]:
    """Return what the sparse model reads at a location, behind AbsTopK, 0 where a prompt has ended."""
    site = bridge.bridges.sites[read_locations(bridge)[location]][0]
    found = []
    for tokens in prompts.tokens.split(n_row):
        with reading(bridge.sparse, location) as seen:
            bridge.sparse.run(bridge.sparse.embed(tokens), 0, site + 1)
        found.append(seen[location][..., : bridge.sparse.config.d_model])
    return torch.cat(found) * prompts.is_prompt[..., None]


def read_changes(bridge: Bridge, location: str, prompts: Prompts) -> Float[Tensor, "prompt pos d_sparse"]:
    """Return, for each prompt and token, its partner's activation minus its own, of every channel of a location."""
    found = read_activations(bridge, location, prompts)
    return partner(found) - found
