"""The circuit JSON of the MIB benchmark: heads and MLPs with the residual channels that they write, and edges between.

Our nodes are channels, theirs are heads and MLPs, so a circuit becomes coarser: a head is in it if any of its queries,
keys or values is. Lost are q, k, v and neuron channels, weights, ablation values and calibration.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_circuits.circuit import Circuit
from sparse_circuits.files import written_whole


def mib_graph(circuit: Circuit) -> dict[str, Any]:
    """Return the content of the JSON.

    A component's `neurons` are the residual channels that it writes in the circuit, its score the sum of its nodes'
    effects. An edge is in the circuit if its source writes a channel that its target reads there; only those are
    listed, with the number of such channels as `score`.
    """
    config = circuit.model.config
    writes, reads, scores = _writes(circuit), _reads(circuit), _scores(circuit)
    nodes = {
        name: {
            "in_graph": bool(scores[name][0]),
            "score": scores[name][1],
            "neurons": written.tolist(),
        }
        for name, written in writes.items()
    }
    nodes["logits"] = {"in_graph": True, "score": 0.0}
    edges = {}
    for source, written in writes.items():
        for target, read in reads.items():
            n_shared = int((written & read).sum())
            if n_shared and scores[source][0] and _rank(source) < _rank(target):
                edges[f"{source}->{target}"] = {"in_graph": True, "score": float(n_shared)}
    return {
        "cfg": {
            "n_layers": config.n_layer,
            "n_heads": config.n_head,
            "parallel_attn_mlp": False,
            "d_model": config.d_model,
        },
        "nodes": nodes,
        "edges": edges,
    }


def write_mib(circuit: Circuit, path: Path) -> None:
    """Write the JSON."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(mib_graph(circuit), allow_nan=False) + "\n", encoding="utf-8")


def _rank(name: str) -> int:
    """Return where a component stands: the input, then for each layer its heads and its MLP, then the logits."""
    if name in ("input", "logits"):
        return -1 if name == "input" else 1 << 30
    layer = int(name.split("<")[0].split(".")[0][1:])
    return 2 * layer + name.startswith("m")


def _writes(circuit: Circuit) -> dict[str, Tensor]:
    """Return the residual channels (d_model,) that each component writes."""
    config, parts = circuit.model.config, circuit.space.split(circuit.keep)
    read = torch.zeros(config.d_model, dtype=torch.bool)
    for name, keep in parts.items():
        if name.endswith("act_in"):
            read |= keep[: config.d_model]
    written = {"input": read}
    for i in range(config.n_layer):
        by_head = circuit.edges[f"{i}.attn.out"].unflatten(1, (config.n_head, config.d_head)).any(2)  # (d_model, head)
        written |= {f"a{i}.h{h}": by_head[:, h] for h in range(config.n_head)}
        written[f"m{i}"] = parts[f"{i}.mlp.resid_delta"]
    return written


def _reads(circuit: Circuit) -> dict[str, Tensor]:
    """Return the residual channels (d_model,) that each input of a component reads; positions are none."""
    config, read = circuit.model.config, {}
    for i in range(config.n_layer):
        qkv = circuit.edges[f"{i}.attn.qkv"][:, : config.d_model]
        by_head = qkv.unflatten(0, (3, config.n_head, config.d_head)).any(2)  # (q k v, head, d_model)
        for j, kind in enumerate("qkv"):
            read |= {f"a{i}.h{h}<{kind}>": by_head[j, h] for h in range(config.n_head)}
        read[f"m{i}"] = circuit.edges[f"{i}.mlp.fc_in"][:, : config.d_model].any(0)
    return read | {"logits": torch.ones(config.d_model, dtype=torch.bool)}


def _scores(circuit: Circuit) -> dict[str, tuple[bool, float]]:
    """Return whether each component has a kept node, and the sum of its nodes' effects."""
    config = circuit.model.config
    found: dict[str, tuple[bool, float]] = {"input": (True, 0.0)}
    for i in range(config.n_layer):
        found |= {f"a{i}.h{h}": (False, 0.0) for h in range(config.n_head)} | {f"m{i}": (False, 0.0)}
    for node in circuit.node_names():
        location, channel = node.split(":")
        layer, site = location.split(".", 1)
        if site in ("attn.q", "attn.k", "attn.v"):
            name = f"a{layer}.h{int(channel) // config.d_head}"
        elif site in ("mlp.post_act", "mlp.resid_delta"):
            name = f"m{layer}"
        else:
            continue
        found[name] = (True, found[name][1] + circuit.effects.get(node, 0.0))
    return found
