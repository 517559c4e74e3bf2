"""The graph of a circuit as SVG: locations are rows, from the first layer at the bottom to the last at the top."""

from html import escape
from typing import Any

SITES = ("attn.act_in", "attn.qkv", "attn.resid_delta", "mlp.act_in", "mlp.post_act", "mlp.resid_delta")
"""Rows of a layer, from the bottom; q, k and v share one."""

TITLES = {
    "attn.act_in": "attention reads",
    "attn.qkv": "q · k · v",
    "attn.resid_delta": "attention writes",
    "mlp.act_in": "MLP reads",
    "mlp.post_act": "neurons",
    "mlp.resid_delta": "MLP writes",
}

WIDTH, LEFT, ROW, STEP = 1000, 190, 78, 46
"""Width of the picture, of its row titles, height of a row, least distance of two nodes; in pixels."""

STYLE = """
.graph { --ink: #1c2430; --faint: #8a94a3; --line: #d9dee6; --plus: #1f6fb2; --minus: #c4472f;
  --node: #f7f9fc; --paper: #fff;
  --heat: #f2b441; font: 12px system-ui, sans-serif; color: var(--ink); }
@media (prefers-color-scheme: dark) { .graph { --ink: #e8ecf2; --faint: #8591a3; --line: #333c49; --plus: #62aef0;
  --minus: #f08a72; --node: #1d242e; --paper: #12161c; --heat: #c98a1b; } }
.graph text { fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.graph .faint { fill: var(--faint); }
.graph .row { stroke: var(--line); } .graph .plus { stroke: var(--plus); } .graph .minus { stroke: var(--minus); }
.graph .carry { stroke: var(--faint); stroke-dasharray: 3 4; stroke-width: 1; fill: none; }
.graph .edge { fill: none; stroke-linecap: round; } .graph circle { fill: var(--node); stroke: var(--ink); }
.graph .heat { fill: var(--heat); stroke: none; }
"""


def draw_graph(view: dict[str, Any]) -> str:
    """Return an SVG picture of a view-model, styles included; titles show on hover.

    Edges are blue for positive and red for negative weights, thicker for larger ones; dashed lines are channels that
    the residual stream carries from a write to a later read. A node's fill grows with what its removal costs.
    """
    rows = rows_of(view)
    place, width = places(rows, view)
    height = ROW * len(rows) + 30
    parts = [
        f'<svg class="graph" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(view["title"])}: {len(view["nodes"])} nodes">',
        f"<style>{STYLE}</style>",
    ]
    for i, (layer, site) in enumerate(rows):
        y = height - 40 - ROW * i
        parts.append(f'<line class="row" x1="{LEFT - 20}" x2="{width - 10}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="8" y="{y - 3}">{TITLES[site]}</text>')
        parts.append(f'<text class="faint" x="8" y="{y + 12}">layer {layer}</text>')
    parts += [_carry(carry, place) for carry in view["carries"]]
    largest = max((abs(edge["weight"]) for edge in view["edges"]), default=1.0)
    parts += [_edge(edge, place, largest) for edge in view["edges"]]
    most = max((node.get("effect", 0.0) for node in view["nodes"]), default=0.0)
    parts += [_node(node, place, most) for node in view["nodes"]]
    return "\n".join([*parts, "</svg>"])


def _row_of(node: dict[str, Any]) -> tuple[int, str]:
    site = node["site"]
    return node["layer"], "attn.qkv" if site in ("attn.q", "attn.k", "attn.v") else site


def rows_of(view: dict[str, Any]) -> list[tuple[int, str]]:
    """Return layer and site of each row that has nodes, from the bottom."""
    found = {_row_of(node) for node in view["nodes"]}
    return sorted(found, key=lambda row: (row[0], SITES.index(row[1])))


def places(rows: list[tuple[int, str]], view: dict[str, Any]) -> tuple[dict[str, tuple[float, float]], float]:
    """Place the nodes: each row sorted by where its neighbours are, a few times up and down.

    Returns:
        x and y of each node in pixels, y downwards, and the width of the picture.
    """
    members: dict[tuple[int, str], list[str]] = {row: [] for row in rows}
    for node in view["nodes"]:
        members[_row_of(node)].append(node["name"])
    neighbours: dict[str, list[str]] = {node["name"]: [] for node in view["nodes"]}
    for link in view["edges"] + view["carries"]:
        neighbours[link["source"]].append(link["target"])
        neighbours[link["target"]].append(link["source"])
    widest = max((len(names) for names in members.values()), default=1)
    width = max(WIDTH, LEFT + STEP * (widest + 1))
    x: dict[str, float] = {}
    for sweep in range(9):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            names = members[row]

            def wanted(name: str) -> float:
                near = [x[other] for other in neighbours[name] if other in x]
                return sum(near) / len(near) if near else x.get(name, 0.0)

            names.sort(key=wanted)
            gap = (width - LEFT - 20) / (len(names) + 1)
            for i, name in enumerate(names):
                x[name] = LEFT + gap * (i + 1)
    height = ROW * len(rows) + 30
    y = {row: height - 40 - ROW * i for i, row in enumerate(rows)}
    return {name: (x[name], y[row]) for row in rows for name in members[row]}, width


def _path(source: tuple[float, float], target: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = source, target
    bend = (y1 - y2) / 2
    return f"M{x1:.1f} {y1 - 9:.1f} C{x1:.1f} {y1 - bend:.1f} {x2:.1f} {y2 + bend:.1f} {x2:.1f} {y2 + 9:.1f}"


def _edge(edge: dict[str, Any], place: dict[str, tuple[float, float]], largest: float) -> str:
    sign = "plus" if edge["weight"] > 0 else "minus"
    thick = 0.8 + 3.2 * abs(edge["weight"]) / largest
    return (
        f'<path class="edge {sign}" data-source="{edge["source"]}" data-target="{edge["target"]}" '
        f'd="{_path(place[edge["source"]], place[edge["target"]])}" stroke-width="{thick:.2f}">'
        f"<title>{edge['source']} → {edge['target']}: {edge['weight']:+.3f}</title></path>"
    )


def _carry(carry: dict[str, str], place: dict[str, tuple[float, float]]) -> str:
    return (
        f'<path class="carry" data-source="{carry["source"]}" data-target="{carry["target"]}" '
        f'd="{_path(place[carry["source"]], place[carry["target"]])}">'
        f"<title>{carry['source']} → {carry['target']}: carried by the residual stream</title></path>"
    )


def _node(node: dict[str, Any], place: dict[str, tuple[float, float]], most: float) -> str:
    x, y = place[node["name"]]
    effect = node.get("effect")
    label = str(node["channel"])
    told = node["name"]
    if "head" in node:
        label = f"{node['site'][-1]} {node['head']}.{node['channel_in_head']}"
        told += f" (head {node['head']}, channel {node['channel_in_head']})"
    if effect is not None:
        told += f"; without it the loss is {effect:+.3f} nats higher"
    heat = max(0.0, effect or 0.0) / most if most > 0 else 0.0
    return (
        f'<g class="node" data-name="{node["name"]}" tabindex="0"><title>{escape(told)}</title>'
        f'<circle cx="{x:.1f}" cy="{y}" r="9"/><circle class="heat" cx="{x:.1f}" cy="{y}" r="{8 * heat**0.5:.1f}"/>'
        f'<text x="{x:.1f}" y="{y + 22}" text-anchor="middle">{label}</text></g>'
    )
