"""Some pairs of the task: what each node, edge and head does on them, in the full model and in the circuit."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.candidates import Evaluator
from sparse_circuits.circuit import Circuit
from sparse_circuits.edges import EdgeSpace, edges_between
from sparse_circuits.explaining import Explanation, Trace, explain_tokens, head_sinks
from sparse_circuits.faithfulness.intervals import estimate
from sparse_circuits.scoring import calibrated, fit_calibrations, pair_loss
from sparse_circuits.tasks.pairs import Pairs, Task
from sparse_circuits.viewer.packing import pack_numbers

N_PAIR = 16
"""Pairs that are shown."""

N_EFFECT_PAIR = 48
"""Pairs of `select` that effects are measured on, as many as the pruner takes."""

N_HEAD_NUMBER = 400_000
"""Most numbers of queries and keys in a page; with many heads fewer prompts have their attention shown."""


def show_pairs(circuit: Circuit, task: Task, *, n_pair: int = N_PAIR) -> dict[str, Any]:
    """Explain pairs of `select`, the split that sizes were chosen on; `test` stays closed."""
    split = task.split("select")
    pairs = split.take(split.spread(n_pair))
    heads = heads_of(circuit)
    d_head = circuit.model.config.d_head
    n_with_heads = max(2, N_HEAD_NUMBER // max(1, 4 * len(heads) * d_head * pairs.tokens.shape[2]))
    shown = [_show_pair(circuit, pairs, i, heads if i < n_with_heads else []) for i in range(len(pairs))]
    return {
        "split": "select",
        "heads": [describe_head(circuit, layer, head) for layer, head in heads],
        "pairs": shown,
    }


def heads_of(circuit: Circuit) -> list[tuple[int, int]]:
    """List layer and head of every head in which the circuit keeps a query, key or value."""
    d_head = circuit.model.config.d_head
    found = set()
    for name in circuit.node_names():
        location, channel = name.split(":")
        layer, site = location.split(".", 1)
        if site in ("attn.q", "attn.k", "attn.v"):
            found.add((int(layer), int(channel) // d_head))
    return sorted(found)


def node_effects(circuit: Circuit, task: Task) -> dict[str, dict[str, Any]]:
    """Return how much higher the loss on some pairs of `select` is without each node, with its interval.

    Circuit and circuit without the node are calibrated each for itself, as the pruner does it.
    """
    split = task.split("select")
    select = split.take(split.spread(N_EFFECT_PAIR))
    space = EdgeSpace.of(edges_between(circuit.model, circuit.keep))
    masks = {name: circuit.edges[name][ends[:, 0], ends[:, 1]] for name, ends in space.ends.items()}
    keep = torch.cat([circuit.keep, *masks.values()])
    evaluator = Evaluator(
        model=circuit.model, pairs=select, values=circuit.values, may_shift=not task.answers_vary, edges=space
    )
    nodes = circuit.keep.nonzero().flatten()
    if not len(nodes):
        return {}
    candidates = torch.cat((keep[None], evaluator.without_each(keep, nodes)))
    difference = evaluator.differences(candidates, base=keep)
    fitted = fit_calibrations(difference, may_shift=not task.answers_vary)
    loss = pair_loss(calibrated(difference, fitted))  # (candidate, pair)
    found = [estimate(row - loss[0], select.templates) for row in loss[1:]]
    return {
        name: {"value": e.value, "low": e.low, "high": e.high, "n_pair": e.n_pair, "n_template": e.n_template}
        for name, e in zip(circuit.node_names(), found, strict=True)
    }


def _show_pair(circuit: Circuit, pairs: Pairs, i: int, heads: list[tuple[int, int]]) -> dict[str, Any]:
    length = int(pairs.length[i])
    first, second = pairs.answers[i].tolist()
    sides = [explain_tokens(circuit, pairs.tokens[i, side, :length].tolist(), (first, second)) for side in (0, 1)]
    shown: dict[str, Any] = {
        "template": pairs.templates[i],
        "level": pairs.levels[i],
        "tokens": [side.ids for side in sides],
        "answers": [first, second],
        "model": _show_traces(sides, "model"),
        "circuit": _show_traces(sides, "circuit"),
    }
    if heads:
        recorded = torch.stack([queries_and_keys(side.model, heads) for side in sides])  # (side, head, 2, pos, d_head)
        shown["queries_and_keys"] = pack_numbers(recorded.flatten(0, 2))
    return shown


def _show_traces(sides: list[Explanation], which: Literal["model", "circuit"]) -> dict[str, Any]:
    traces = [getattr(side, which) for side in sides]
    return {
        "differences": [trace.difference for trace in traces],
        "next": [trace.next for trace in traces],
        "direct": [trace.direct for trace in traces],
        "activations": pack_numbers(torch.stack([trace.activations for trace in traces], 1)),
        "node_contributions": pack_numbers(torch.stack([trace.node_contributions for trace in traces], 1)),
        "edge_contributions": pack_numbers(torch.stack([trace.edge_contributions for trace in traces])),
    }


def queries_and_keys(trace: Trace, heads: list[tuple[int, int]]) -> Float[Tensor, "head 2 pos d_head"]:
    """Return the queries and keys of some heads, each a layer and its head."""
    return torch.stack([trace.queries_and_keys[f"{layer}.attn"][:, head] for layer, head in heads])


def describe_head(circuit: Circuit, layer: int, head: int) -> dict[str, Any]:
    """Return a head with its sink's logit and what its queries and keys are set to outside the circuit."""
    d_head = circuit.model.config.d_head
    values, keeps = circuit.space.split(circuit.values), circuit.space.split(circuit.keep)
    part = slice(head * d_head, (head + 1) * d_head)
    sinks = head_sinks(circuit.model, layer)
    return {
        "layer": layer,
        "head": head,
        "d_head": d_head,
        "sink": None if sinks is None else float(sinks[head]),
        "ablated": [values[f"{layer}.attn.{name}"][part].tolist() for name in "qk"],
        "kept": [keeps[f"{layer}.attn.{name}"][part].nonzero().flatten().tolist() for name in "qk"],
    }
