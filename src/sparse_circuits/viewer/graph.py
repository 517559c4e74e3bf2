"""The graph of a circuit as plain values: nodes, edges, what the stream carries, tokens below, answers above."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from sparse_circuits.circuit import Circuit
from sparse_circuits.edges import EDGE_ENDS
from sparse_circuits.model import Transformer

N_TOKEN_EDGE = 3
"""Tokens that are drawn below a read channel: those that tell the sides of a pair apart, by embedding weight."""

N_TOKEN = 14
"""Tokens that are drawn in all."""

N_SHOWN = 8
"""Tokens at each end of a residual channel's lists."""


def nodes(circuit: Circuit) -> list[dict[str, Any]]:
    """List the nodes in forward order, with what each does to the loss when it goes."""
    config = circuit.model.config
    found = []
    for name in circuit.node_names():
        location, channel = name.split(":")
        layer, site = location.split(".", 1)
        node: dict[str, Any] = {"name": name, "layer": int(layer), "site": site, "channel": int(channel)}
        if site in ("attn.q", "attn.k", "attn.v"):
            node |= {"head": int(channel) // config.d_head, "channel_in_head": int(channel) % config.d_head}
        if site.endswith("act_in") and int(channel) >= config.d_model:
            node["position_channel"] = int(channel) - config.d_model
        if name in circuit.effects:
            node["effect"] = circuit.effects[name]
        found.append(node)
    return found


def edges(circuit: Circuit) -> list[dict[str, Any]]:
    """List the edges with their weights."""
    found = []
    linears = circuit.model.linears()
    for name, keep in circuit.edges.items():
        layer, kind = name.split(".", 1)
        source, targets = EDGE_ENDS[kind]
        width = keep.shape[0] // len(targets)
        weight = linears[name].weight.detach()
        for row, column in keep.nonzero().tolist():
            ends = f"{layer}.{source}:{column}", f"{layer}.{targets[row // width]}:{row % width}"
            edge = {"source": ends[0], "target": ends[1], "weight": float(weight[row, column])}
            effect = circuit.effects.get(" → ".join(ends))
            found.append(edge if effect is None else edge | {"effect": effect})
    return found


def carries(circuit: Circuit) -> list[dict[str, str]]:
    """List which kept reads see which kept writes: the residual stream carries a channel on, without a weight."""
    writes: list[tuple[int, int, str]] = []
    found = []
    for name in circuit.node_names():
        location, channel = name.split(":")
        layer, site = location.split(".", 1)
        sublayer = 2 * int(layer) + site.startswith("mlp")
        if site.endswith("resid_delta"):
            writes.append((sublayer, int(channel), name))
        elif site.endswith("act_in"):
            found += [
                {"source": write, "target": name}
                for before, written, write in writes
                if before < sublayer and written == int(channel)
            ]
    return found


def scores(circuit: Circuit) -> list[dict[str, str]]:
    """List the pairs of kept query and key channels that are multiplied with each other in a head's score."""
    names = set(circuit.node_names())
    found = []
    for name in circuit.node_names():
        if ".attn.q:" in name and (key := name.replace(".attn.q:", ".attn.k:")) in names:
            found.append({"query": name, "key": key})
    return found


def embedding_edges(circuit: Circuit, pairs: list[list[list[int]]]) -> list[dict[str, Any]]:
    """List the largest weights from the tokens in which the sides of a pair differ to the reads of the circuit.

    Args:
        circuit: The circuit.
        pairs: Token ids of both sides of some pairs.
    """
    config = circuit.model.config
    n_seen = Counter(t for sides in pairs for ends in zip(*sides, strict=True) if ends[0] != ends[1] for t in ends)
    tokens = [token for token, _ in n_seen.most_common(N_TOKEN)]
    weight = circuit.model.token_embedding.weight.detach()[torch.tensor(tokens, dtype=torch.long)]  # (token, d_model)
    found = []
    for name in circuit.node_names():
        location, channel = name.split(":")
        if location.endswith("act_in") and int(channel) < config.d_model:
            column = weight[:, int(channel)]
            for i in column.abs().argsort(descending=True, stable=True)[:N_TOKEN_EDGE].tolist():
                if column[i] != 0:
                    found.append({"token": tokens[i], "target": name, "weight": float(column[i])})
    return found


def unembedding_edges(circuit: Circuit, answers: list[int]) -> list[dict[str, Any]]:
    """List the weights from the circuit's writes to the answers' logits, the last norm's gain included."""
    weight = gained_unembedding(circuit.model)
    found = []
    for name in circuit.node_names():
        location, channel = name.split(":")
        if location.endswith("resid_delta"):
            for answer in answers:
                if (value := float(weight[answer, int(channel)])) != 0:
                    found.append({"source": name, "token": answer, "weight": value})
    return found


def gained_unembedding(model: Transformer) -> Tensor:
    """Return what a unit of each channel of the normed stream adds to each logit, (vocab, d_model)."""
    weight = (model.token_embedding if model.config.tied_unembedding else model.unembedding).weight
    return (weight * model.final_norm.weight).detach()


def channel_tokens(circuit: Circuit) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """For each residual channel of the circuit: the tokens that write to it and the logits that read from it.

    Returns:
        By channel `embedding` and `unembedding`: up to `N_SHOWN` of the largest and of the smallest weights by token,
        largest first.
    """
    config = circuit.model.config
    ends = [name.split(":") for name in circuit.node_names()]
    channels = {
        int(c) for location, c in ends if location.endswith(("act_in", "resid_delta")) and int(c) < config.d_model
    }
    tables = {
        "embedding": circuit.model.token_embedding.weight.detach(),
        "unembedding": gained_unembedding(circuit.model),
    }
    found = {}
    for channel in sorted(channels):
        found[str(channel)] = {kind: _largest(weight[:, channel]) for kind, weight in tables.items()}
    return found


def _largest(column: Tensor) -> list[tuple[int, float]]:
    order = column.argsort(descending=True, stable=True).tolist()
    shown = order if len(order) <= 2 * N_SHOWN else order[:N_SHOWN] + order[-N_SHOWN:]
    return [(token, float(column[token])) for token in shown if column[token] != 0]
