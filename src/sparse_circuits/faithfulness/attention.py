"""Do the circuit's heads attend as the model's do, or did their patterns turn uniform?"""

import contextlib
import dataclasses
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparse_circuits import kernels
from sparse_circuits.circuit import Circuit
from sparse_circuits.faithfulness.subject import Subject
from sparse_circuits.taps import reading
from sparse_circuits.tasks.pairs import Pairs

UNIFORM = 0.98
"""A head whose entropy is above this share of the most possible, on average, attends uniformly."""

NOT_UNIFORM = 0.9
"""One below this does not. Between the two nothing is flagged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadAttention:
    """One head in the circuit and in the model, averaged over the queries of `test` that see two positions or more."""

    divergence: float
    """Jensen-Shannon divergence of the two patterns, the sink among the slots, in bits: 0 the same, 1 disjoint."""

    uniformity_model: float
    """Entropy of the model's pattern over positions, as a share of the most possible; 1 is uniform."""

    uniformity_circuit: float
    """The same of the circuit's."""

    n_node: dict[str, int]
    """Nodes of the circuit among its `q`, `k` and `v` channels."""

    @property
    def turned_uniform(self) -> bool:
        """Whether the circuit attends uniformly where the model does not."""
        return self.uniformity_circuit >= UNIFORM and self.uniformity_model < NOT_UNIFORM


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionPatterns:
    """Patterns of the heads that the circuit moves values by.

    Alike patterns show that the circuit looks where the model looks; not that it must look there to be right.
    """

    heads: dict[str, HeadAttention]
    """By `layer.head`: those with a value node in the circuit."""

    turned_uniform: list[str]
    """Heads that attend uniformly in the circuit and do not in the model."""

    @property
    def divergence_highest(self) -> float | None:
        """Largest divergence of a head, in bits; None if the circuit moves nothing between positions."""
        return max((head.divergence for head in self.heads.values()), default=None)


def attention_patterns(subject: Subject) -> AttentionPatterns:
    """Compare each head's pattern in the circuit with that in the full model.

    Source: a replication of February 2026 found uniform patterns in pruned models; measure and limits are ours.
    """
    circuit, pairs = subject.circuit, subject.test
    keeps, found = circuit.space.split(circuit.keep), {}
    for layer in range(circuit.model.config.n_layer):
        nodes = {name: _by_head(circuit, keeps[f"{layer}.attn.{name}"]) for name in ("q", "k", "v")}
        if not any(nodes["v"]):
            continue
        sums = torch.zeros(3, circuit.model.config.n_head, dtype=torch.double)
        total = 0.0
        for part in pairs.batches(64):
            seen = _is_query(part)
            in_model, in_circuit = (_pattern(circuit, part, layer, in_circuit=c) for c in (False, True))
            measures = torch.stack(
                (divergence(in_model, in_circuit), uniformity(in_model), uniformity(in_circuit))
            )  # (measure, prompt, head, query)
            sums += (measures * seen[None, :, None]).double().sum((1, 3))
            total += float(seen.sum())
        for head, (apart, own, cut) in enumerate((sums / max(total, 1.0)).T.tolist()):
            if nodes["v"][head]:
                found[f"{layer}.{head}"] = HeadAttention(
                    divergence=apart,
                    uniformity_model=own,
                    uniformity_circuit=cut,
                    n_node={name: counts[head] for name, counts in nodes.items()},
                )
    return AttentionPatterns(heads=found, turned_uniform=[name for name, head in found.items() if head.turned_uniform])


def divergence(one: Float[Tensor, "*batch pos"], other: Float[Tensor, "*batch pos"]) -> Float[Tensor, "*batch"]:
    """Return the Jensen-Shannon divergence of two patterns in bits, what is missing from 1 being the sink's."""
    one, other = (torch.cat((p, (1 - p.sum(-1, keepdim=True)).clamp(min=0)), -1) for p in (one, other))
    middle = (one + other) / 2
    return ((_entropy(middle) - (_entropy(one) + _entropy(other)) / 2) / math.log(2)).clamp(0, 1)


def uniformity(pattern: Float[Tensor, "*batch query pos"]) -> Float[Tensor, "*batch query"]:
    """Return the entropy over positions, the sink left out, as a share of the most that a query's past allows."""
    shares = pattern / pattern.sum(-1, keepdim=True).clamp(min=1e-12)
    n_seen = torch.arange(1, pattern.shape[-2] + 1, device=pattern.device)
    most = n_seen.clamp(min=2).log()  # a query that sees itself alone is counted nowhere
    return _entropy(shares) / most


def _entropy(p: Float[Tensor, "*batch slot"]) -> Float[Tensor, "*batch"]:
    return -torch.xlogy(p, p).sum(-1)


def _is_query(pairs: Pairs) -> Bool[Tensor, "prompt pos"]:
    position = torch.arange(pairs.tokens.shape[2])
    return (position >= 1) & (position < pairs.length.repeat_interleave(2)[:, None])


def _by_head(circuit: Circuit, keep: Bool[Tensor, " channel"]) -> list[int]:
    return keep.unflatten(0, (circuit.model.config.n_head, -1)).sum(1).tolist()


@torch.no_grad()
def _pattern(circuit: Circuit, pairs: Pairs, layer: int, *, in_circuit: bool) -> Float[Tensor, "prompt head query pos"]:
    model, tokens = circuit.model, pairs.tokens.flatten(0, 1)
    names = (f"{layer}.attn.q", f"{layer}.attn.k")
    run = circuit.applied() if in_circuit else contextlib.nullcontext()
    with run, reading(model, *names) as seen:
        model.run(model.embed(tokens), stop=2 * layer + 1)
    q, k = (seen[name].unflatten(-1, (model.config.n_head, -1)).transpose(1, 2) for name in names)
    sink = dict(model.named_parameters()).get(f"blocks.{layer}.attn.sink")
    assert sink is None or isinstance(sink, nn.Parameter)
    return kernels.attention_pattern(q, k, sink)
