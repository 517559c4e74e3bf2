"""Does the circuit compute what the model computes? Activations of one put into the other."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_circuits.faithfulness.intervals import Estimate, Spread, mean_of
from sparse_circuits.faithfulness.subject import Subject, Swapped, Under, activations, recorded
from sparse_circuits.taps import replacing

N_HALF = 8
"""Random halves of the circuit's nodes that are given the model's activations."""

CONSTANT = 1e-6
"""A node whose standard deviation is below this share of the widest node's, or below this, does not vary."""


SAME_ROLE = 0.5
"""A node whose correlation with itself in the model is below this explains less than a quarter of what it was."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interchange:
    """Activations of the circuit's nodes against those of the same nodes in the full model, on `test`.

    Low unexplained variance and losses that stay low show that the nodes carry the same values in both; not that nodes
    outside are idle in the model.
    """

    unexplained: float | None
    """Σ (circuit − model)² / Σ (model − its mean)² over the circuit's nodes and all tokens; 0 is the same, 1 as bad as
    a constant. None if no node varies in the model."""

    unexplained_by_location: dict[str, float | None]
    """The same by location."""

    loss_model_to_circuit: Estimate
    """Task loss of the circuit with all its nodes at the full model's activations, nats."""

    loss_half: Spread
    """The same for random halves of its nodes: mean over halves."""

    loss_by_location: dict[str, Estimate]
    """The same for the nodes of one location."""

    loss_circuit_to_model: Estimate
    """Task loss of the full model with the circuit's nodes at the circuit's activations, nats."""

    roles: dict[str, float | None]
    """By node: correlation over tokens of its activation in the circuit with that in the model; None where it is
    constant in the model, 0 where it is constant in the circuit alone."""

    @property
    def share_changed(self) -> float | None:
        """Share of the nodes that vary in the model whose correlation is below `SAME_ROLE`; None if none varies."""
        found = [value for value in self.roles.values() if value is not None]
        return sum(value < SAME_ROLE for value in found) / len(found) if found else None

    @property
    def loss_worst(self) -> float:
        """The higher of the losses with everything swapped, one way and the other."""
        return max(self.loss_model_to_circuit.value, self.loss_circuit_to_model.value)


def interchange(subject: Subject, *, seed: int = 0) -> Interchange:
    """Swap activations between circuit and model, and compare them.

    Source: the unexplained variance by location is the replication's interchange metric, with the sums over the
    circuit's nodes; roles, the way back and the losses are ours.
    """
    circuit, space = subject.circuit, subject.circuit.space
    in_circuit = activations(circuit, subject.test, circuit.keep, in_circuit=True).double()
    in_model = activations(circuit, subject.test, circuit.keep, in_circuit=False).double()
    error = (in_circuit - in_model).square().sum(0)
    spread = (in_model - in_model.mean(0)).square().sum(0)
    names = circuit.node_names()
    by_location: dict[str, float | None] = {}
    for location in space.widths:
        here = torch.tensor([name.rpartition(":")[0] == location for name in names], dtype=torch.bool)
        if here.any():
            by_location[location] = _ratio(error[here], spread[here])
    generator = torch.Generator().manual_seed(seed)
    n_half = math.ceil(circuit.n_node / 2)
    halves = [_some(circuit.keep, n_half, generator) for _ in range(N_HALF)]
    locations = {
        name: torch.zeros_like(circuit.keep).index_fill(0, torch.arange(part.start, part.stop), True) & circuit.keep
        for name, part in space.slices()
        if name in by_location
    }

    return Interchange(
        unexplained=_ratio(error, spread),
        unexplained_by_location=by_location,
        loss_model_to_circuit=subject.loss_under(_model_to_circuit(subject, circuit.keep)),
        loss_half=mean_of([subject.loss_under(_model_to_circuit(subject, half)).value for half in halves]),
        loss_by_location={
            name: subject.loss_under(_model_to_circuit(subject, nodes)) for name, nodes in locations.items()
        },
        loss_circuit_to_model=subject.loss_under(_circuit_to_model(subject)),
        roles=dict(zip(names, correlations(in_circuit, in_model), strict=True)),
    )


def correlations(one: Float[Tensor, "token node"], other: Float[Tensor, "token node"]) -> list[float | None]:
    """Return each node's correlation of the two; 0 if it is constant in the first alone, None if in the other."""
    one, other = one - one.mean(0), other - other.mean(0)
    width, other_width = one.square().mean(0).sqrt(), other.square().mean(0).sqrt()
    least = CONSTANT * max(1.0, float(other_width.max()) if len(other_width) else 1.0)
    product = (one * other).mean(0)
    found: list[float | None] = []
    for both, w, v in zip(product.tolist(), width.tolist(), other_width.tolist(), strict=True):
        found.append(None if v <= least else 0.0 if w <= least else both / (w * v))
    return found


def _model_to_circuit(subject: Subject, nodes: Bool[Tensor, " node"]) -> Under:
    @contextlib.contextmanager
    def under(tokens: Tensor, at: Tensor) -> Iterator[None]:
        seen = recorded(subject.circuit, tokens, at, in_circuit=False)
        with subject.circuit.applied(), replacing(subject.circuit.model, _edits(subject, nodes, seen)):
            yield

    return under


def _circuit_to_model(subject: Subject) -> Under:
    @contextlib.contextmanager
    def under(tokens: Tensor, at: Tensor) -> Iterator[None]:
        seen = recorded(subject.circuit, tokens, at, in_circuit=True)
        with replacing(subject.circuit.model, _edits(subject, subject.circuit.keep, seen)):
            yield

    return under


def _edits(
    subject: Subject, nodes: Bool[Tensor, " node"], seen: dict[str, Tensor]
) -> dict[str, Callable[[Tensor], Tensor]]:
    swaps = subject.circuit.space.split(nodes)
    return {name: Swapped(~swap, seen[name]) for name, swap in swaps.items() if swap.any()}


def _some(nodes: Bool[Tensor, " node"], n: int, generator: torch.Generator) -> Bool[Tensor, " node"]:
    places = nodes.nonzero().flatten()
    chosen = places[torch.randperm(len(places), generator=generator)[:n]]
    return torch.zeros_like(nodes).index_fill(0, chosen, True)


def _ratio(error: Float[Tensor, " node"], spread: Float[Tensor, " node"]) -> float | None:
    total = float(spread.sum())
    return float(error.sum()) / total if total > 0 else None
