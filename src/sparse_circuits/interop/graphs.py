"""Nodes and edges of a circuit for tools about graphs: GraphML, CSV, Parquet, networkx.

An edge is a weight (`kind` "weight") or the residual stream carrying a written channel on to a read ("carry"). Lost are
ablation values, calibration, history and whatever else makes the circuit one that can be run.
"""

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sparse_circuits.circuit import Circuit
from sparse_circuits.errors import ConfigError
from sparse_circuits.files import written_whole
from sparse_circuits.viewer import graph as seen

NODE_FIELDS = {
    "name": str,
    "layer": int,
    "site": str,
    "channel": int,
    "head": int,
    "channel_in_head": int,
    "effect": float,
}
"""What is told of a node; head and channel in the head of q, k and v alone, the effect where it was measured."""

EDGE_FIELDS = {"source": str, "target": str, "kind": str, "weight": float, "effect": float}
"""What is told of an edge; a carry has no weight."""

_TYPES = {str: "string", int: "int", float: "double"}


def tables(circuit: Circuit) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the nodes and the edges, each as a list of records with the fields of `NODE_FIELDS` and `EDGE_FIELDS`."""
    nodes = seen.nodes(circuit)
    edges: list[dict[str, Any]] = [{"kind": "weight", **edge} for edge in seen.edges(circuit)]
    edges += [{"kind": "carry", **edge} for edge in seen.carries(circuit)]
    return (
        [{field: node.get(field) for field in NODE_FIELDS} for node in nodes],
        [{field: edge.get(field) for field in EDGE_FIELDS} for edge in edges],
    )


def to_networkx(circuit: Circuit) -> Any:
    """Return a `networkx.DiGraph`: nodes by name, the fields that are known as attributes.

    Raises:
        ConfigError: networkx is not installed.
    """
    try:
        import networkx
    except ImportError:
        raise ConfigError('networkx is missing: pip install "sparse-circuits[graphs]"') from None
    graph = networkx.DiGraph(**_about(circuit))
    nodes, edges = tables(circuit)
    for node in nodes:
        graph.add_node(node["name"], **_known(node, "name"))
    for edge in edges:
        graph.add_edge(edge["source"], edge["target"], **_known(edge, "source", "target"))
    return graph


def write_networkx(circuit: Circuit, path: Path) -> None:
    """Write the graph as node-link JSON, as `networkx.node_link_graph(…, edges="edges")` reads it."""
    nodes, edges = tables(circuit)
    data = {
        "directed": True,
        "multigraph": False,
        "graph": _about(circuit),
        "nodes": [{"id": node["name"], **_known(node, "name")} for node in nodes],
        "edges": [_known(edge) for edge in edges],
    }
    _write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def write_graphml(circuit: Circuit, path: Path) -> None:
    """Write GraphML, for Gephi, Cytoscape, yEd and networkx."""
    root = ElementTree.Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
    for kind, fields in (("node", NODE_FIELDS), ("edge", EDGE_FIELDS)):
        for field, type_ in fields.items():
            about = {"id": f"{kind}.{field}", "for": kind, "attr.name": field, "attr.type": _TYPES[type_]}
            ElementTree.SubElement(root, "key", attrib=about)
    graph = ElementTree.SubElement(root, "graph", id=str(circuit.task["name"]), edgedefault="directed")
    nodes, edges = tables(circuit)
    for node in nodes:
        _add_data(ElementTree.SubElement(graph, "node", id=node["name"]), "node", node)
    for edge in edges:
        ends = {"source": edge["source"], "target": edge["target"]}
        _add_data(ElementTree.SubElement(graph, "edge", attrib=ends), "edge", edge)
    ElementTree.indent(root)
    _write_text(path, ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n")


def write_csv(circuit: Circuit, folder: Path) -> None:
    """Write `nodes.csv` and `edges.csv` into a folder; what is not known is empty."""
    for name, records in zip(("nodes", "edges"), tables(circuit), strict=True):
        with (
            written_whole(folder / f"{name}.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, NODE_FIELDS if name == "nodes" else EDGE_FIELDS)
            writer.writeheader()
            writer.writerows(records)


def write_parquet(circuit: Circuit, folder: Path) -> None:
    """Write `nodes.parquet` and `edges.parquet` into a folder.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError('Parquet needs pyarrow: pip install "sparse-circuits[graphs]"') from None
    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    for name, records in zip(("nodes", "edges"), tables(circuit), strict=True):
        fields = NODE_FIELDS if name == "nodes" else EDGE_FIELDS
        schema = pyarrow.schema([(field, types[type_]) for field, type_ in fields.items()])
        with written_whole(folder / f"{name}.parquet") as temporary:
            parquet.write_table(pyarrow.Table.from_pylist(records, schema=schema), temporary)


def _about(circuit: Circuit) -> dict[str, Any]:
    return {"task": str(circuit.task["name"]), "n_node": circuit.n_node, "n_node_total": circuit.n_node_total}


def _known(record: dict[str, Any], *without: str) -> dict[str, Any]:
    return {field: value for field, value in record.items() if value is not None and field not in without}


def _add_data(element: ElementTree.Element, kind: str, record: dict[str, Any]) -> None:
    for field, value in _known(record).items():
        ElementTree.SubElement(element, "data", key=f"{kind}.{field}").text = str(value)


def _write_text(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
