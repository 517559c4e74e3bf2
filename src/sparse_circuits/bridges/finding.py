"""Which node to steer with: ranked by gradients, measured on `select`."""

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.bridges.controls import along
from sparse_circuits.bridges.directions import Prompts, read_changes, read_directions, read_locations, read_node
from sparse_circuits.bridges.effects import EditedReads
from sparse_circuits.bridges.maps import Bridge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A node and what it does on `select`."""

    node: str
    """Its name."""

    estimate: float
    """First-order change of ln P(other) − ln P(own) at strength 1, nats a prompt."""

    p_other: float
    """Measured probability of the other answer at strength 1."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return dataclasses.asdict(self)


def read_gradient(reads: EditedReads) -> Float[Tensor, "prompt pos d_dense"]:
    """Return the gradient of ln P(other) − ln P(own) by the read, at no edit."""
    found = []
    for rows in reads.rows():
        edit = torch.zeros_like(reads.stream[rows]).requires_grad_()
        log_p = reads.log_probabilities(rows, edit)
        found.append(torch.autograd.grad((log_p[:, 1] - log_p[:, 0]).sum(), edit)[0])
    return torch.cat(found)


def find_nodes(bridge: Bridge, prompts: Prompts, *, n_try: int) -> list[Candidate]:
    """Rank all nodes that read the stream by first order, measure the best, and return these, best first.

    Args:
        bridge: The pair of models.
        prompts: Of `select`.
        n_try: How many are measured.
    """
    ranked: list[tuple[float, str]] = []
    for location, place in read_locations(bridge).items():
        reads = EditedReads(bridge.dense, bridge.bridges.sites[place][1], prompts)
        change = read_changes(bridge, location, prompts)  # (prompt, pos, d_sparse)
        along_rows = read_gradient(reads) @ read_directions(bridge, place).T  # (prompt, pos, d_sparse)
        effect = (change * along_rows).sum((0, 1)) / len(prompts)
        ranked += [(float(value), f"{location}:{channel}") for channel, value in enumerate(effect)]
    found = []
    for value, name in sorted(ranked, reverse=True)[:n_try]:
        node = read_node(bridge, name)
        reads = EditedReads(bridge.dense, node.dense_site, prompts)
        change = read_changes(bridge, node.location, prompts)[..., node.channel]
        answers = reads.answers(along(change, read_directions(bridge, node.place)[node.channel]))
        found.append(Candidate(node=name, estimate=value, p_other=float(answers.other.mean())))
    return sorted(found, key=lambda candidate: -candidate.p_other)
