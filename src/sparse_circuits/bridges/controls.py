"""What a steering edit is compared with: each control is another edit of the same read."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.bridges.directions import (
    Prompts,
    ReadNode,
    read_activations,
    read_changes,
    read_directions,
    read_locations,
)
from sparse_circuits.bridges.effects import EditedReads
from sparse_circuits.bridges.maps import Bridge
from sparse_circuits.errors import ConfigError


def along(
    change: Float[Tensor, "prompt pos"], direction: Float[Tensor, "*row d_dense"]
) -> Float[Tensor, "*row prompt pos d_dense"]:
    """Return the edit that adds `change` times a direction; several have axes of length 1 for prompts and tokens."""
    return change[..., None] * direction


def at_norm_of(direction: Float[Tensor, " d_dense"], wanted: Float[Tensor, " d_dense"]) -> Float[Tensor, " d_dense"]:
    """Return a direction at another's norm; a direction of 0 stays 0."""
    return direction * (wanted.norm() / direction.norm().clamp(min=1e-12))


def of_another_pair(change: Float[Tensor, "prompt pos"], prompts: Prompts) -> Float[Tensor, "prompt pos"]:
    """Return the change of the pair next in length, the same side of it, its last token on the prompt's last token."""
    length = prompts.length[::2]
    order = length.argsort(stable=True)
    chosen = torch.empty_like(order)
    chosen[order] = order.roll(1)  # pair p takes the change of pair chosen[p]
    source = (2 * chosen[:, None] + torch.tensor([0, 1])).flatten()
    place = torch.arange(change.shape[1]) - prompts.length[:, None] + prompts.length[source][:, None]
    found = change[source].gather(1, place.clamp(0, change.shape[1] - 1))
    return found * ((place >= 0) & prompts.is_prompt)


def at_other_positions(change: Float[Tensor, "prompt pos"], prompts: Prompts) -> Float[Tensor, "prompt pos"]:
    """Return the change shifted round by half of each prompt."""
    length = prompts.length[:, None]
    place = (torch.arange(change.shape[1]) + length // 2) % length
    return change.gather(1, place) * prompts.is_prompt


def unrelated_channel(bridge: Bridge, node: ReadNode, prompts: Prompts) -> int:
    """Return the channel of the node's read that changes most, on average, between the sides of another task's pairs.

    Args:
        bridge: The pair of models.
        node: What is steered; another channel is taken.
        prompts: Of the other task.
    """
    change = read_changes(bridge, node.location, prompts).abs().mean((0, 1))
    change[node.channel] = -1
    return int(change.argmax())


def null_directions(
    bridge: Bridge, node: ReadNode, prompts: Prompts, *, n_row: int, generator: torch.Generator
) -> tuple[Float[Tensor, "row d_dense"], int]:
    """Return decoder rows of other nodes that are active on the prompts.

    Rows come from the node's own read location first; if it has too few, from the other reads, each through its own
    decoder.

    Returns:
        The rows, and how many of them are of the node's own location.

    Raises:
        ConfigError: The sparse model has fewer active nodes than rows are asked for.
    """
    own, others = [], []
    for location, place in read_locations(bridge).items():
        is_active = read_activations(bridge, location, prompts).flatten(0, 1).any(0)
        rows = read_directions(bridge, place)
        is_active &= rows.any(1)
        is_active[node.channel] = False  # at another read it is the same channel of the stream
        if location == node.location:
            own = rows[is_active]
        else:
            others.append(rows[is_active])
    other = torch.cat(others) if others else torch.empty(0, bridge.dense.d_model)
    assert isinstance(own, Tensor)
    own = own[torch.randperm(len(own), generator=generator)][:n_row]
    n_more = n_row - len(own)
    if n_more > len(other):
        raise ConfigError(
            f"the null band needs {n_row} other active nodes that read the stream, the sparse model has "
            f"{len(own) + len(other)} on these prompts; 100 is the least"
        )
    return torch.cat((own, other[torch.randperm(len(other), generator=generator)][:n_more])), len(own)


def mean_profile(values: Float[Tensor, "prompt pos *channel"], prompts: Prompts) -> Float[Tensor, "2 offset *channel"]:
    """Return the mean over each side's prompts by distance from the first token that differs."""
    place, is_there = _from_first_difference(prompts, values.shape[1])
    shape = (-1, -1, *[1] * (values.ndim - 2))
    index = place.view(*place.shape, *shape[2:]).expand(-1, -1, *values.shape[2:])
    moved = values.gather(1, index) * is_there.view(*is_there.shape, *shape[2:])
    count = is_there.unflatten(0, (-1, 2)).sum(0).clamp(min=1)  # (2, offset)
    return moved.unflatten(0, (-1, 2)).sum(0) / count.view(*count.shape, *shape[2:])


def laid_at(
    profile: Float[Tensor, "2 offset *channel"],
    start: Int[Tensor, " prompt"],
    length: Int[Tensor, " prompt"],
    n_pos: int,
) -> Float[Tensor, "prompt pos *channel"]:
    """Lay a profile onto prompts, its first entry at `start`, that of side 0 onto every even prompt."""
    place = torch.arange(n_pos) - start[:, None]  # (prompt, pos)
    is_there = (place >= 0) & (place < profile.shape[1]) & (torch.arange(n_pos) < length[:, None])
    side = torch.arange(len(start))[:, None] % 2
    found = profile[side, place.clamp(0, profile.shape[1] - 1)]
    return found * is_there.view(*is_there.shape, *[1] * (found.ndim - 2))


def skyline(select: EditedReads, prompts: Prompts) -> Float[Tensor, "prompt pos d_dense"]:
    """Return the difference of means in the dense model itself: what it reads on one side minus on the other.

    Means are over the prompts of `select`, by distance from the first token that differs, and are laid onto other
    prompts likewise. No bridge and no sparse model is in it.
    """
    profile = mean_profile(select.natural, select.prompts)
    return laid_at(profile, prompts.first_difference, prompts.length, prompts.tokens.shape[1])


def _from_first_difference(prompts: Prompts, n_pos: int) -> tuple[Int[Tensor, "prompt offset"], Tensor]:
    place = torch.arange(n_pos) + prompts.first_difference[:, None]
    return place.clamp(max=n_pos - 1), place < prompts.length[:, None]
