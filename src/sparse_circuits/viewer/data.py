"""What a picture of a circuit shows, as plain JSON values: the view-model."""

import json
from pathlib import Path
from typing import Any

from sparse_circuits.checkpoint import model_hash
from sparse_circuits.circuit import Circuit
from sparse_circuits.edges import EDGE_ENDS

FORMAT, VERSION = "sparse-circuits view", 1


def view_model(circuit: Circuit, *, folder: Path | None = None) -> dict[str, Any]:
    """Return everything that a picture of the circuit needs.

    Args:
        circuit: The circuit.
        folder: Its folder, for the report, if it has been verified.

    Returns:
        Format, version, title, `nodes`, `edges`, `carries`, numbers, curves, the report if there is one.
    """
    report = folder / "report.json" if folder is not None else None
    has_report = report is not None and report.exists()
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": circuit.task["name"],
        "model": {"hash": model_hash(circuit.model), "n_layer": circuit.model.config.n_layer},
        "task": circuit.task,
        "summary": {
            "n_node": circuit.n_node,
            "n_node_total": circuit.n_node_total,
            "n_edge": circuit.n_edge,
            "calibration": {"scale": circuit.calibration.scale, "shift": circuit.calibration.shift},
            "losses": circuit.losses,
        },
        "nodes": _nodes(circuit),
        "edges": _edges(circuit),
        "carries": _carries(circuit),
        "history": circuit.history,
        "removed": circuit.removed,
        "settings": circuit.settings,
        "report": json.loads(report.read_text(encoding="utf-8")) if has_report and report else None,
    }


def _nodes(circuit: Circuit) -> list[dict[str, Any]]:
    """List the nodes in forward order, with what each does to the loss when it goes."""
    d_head = circuit.model.config.d_head
    nodes = []
    for name in circuit.node_names():
        location, channel = name.split(":")
        layer, site = location.split(".", 1)
        node = {"name": name, "layer": int(layer), "site": site, "channel": int(channel)}
        if site in ("attn.q", "attn.k", "attn.v"):
            node |= {"head": int(channel) // d_head, "channel_in_head": int(channel) % d_head}
        if name in circuit.effects:
            node["effect"] = circuit.effects[name]
        nodes.append(node)
    return nodes


def _edges(circuit: Circuit) -> list[dict[str, Any]]:
    """List the edges with their weights."""
    edges = []
    linears = circuit.model.linears()
    for name, keep in circuit.edges.items():
        layer, kind = name.split(".", 1)
        source, targets = EDGE_ENDS[kind]
        width = keep.shape[0] // len(targets)
        weight = linears[name].weight.detach()
        for row, column in keep.nonzero().tolist():
            target = targets[row // width]
            edges.append(
                {
                    "source": f"{layer}.{source}:{column}",
                    "target": f"{layer}.{target}:{row % width}",
                    "weight": float(weight[row, column]),
                }
            )
    return edges


def _carries(circuit: Circuit) -> list[dict[str, str]]:
    """List which kept reads see which kept writes: the residual stream carries a channel on, without a weight."""
    writes: list[tuple[int, int, str]] = []
    carries = []
    for name in circuit.node_names():
        location, channel = name.split(":")
        layer, site = location.split(".", 1)
        sublayer = 2 * int(layer) + site.startswith("mlp")
        if site.endswith("resid_delta"):
            writes.append((sublayer, int(channel), name))
        elif site.endswith("act_in"):
            carries += [
                {"source": write, "target": name}
                for before, written, write in writes
                if before < sublayer and written == int(channel)
            ]
    return carries
