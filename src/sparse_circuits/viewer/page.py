"""One self-contained HTML page of a circuit: the graph, the numbers, the curves."""

from html import escape
from pathlib import Path
from typing import Any

from sparse_circuits.files import written_whole
from sparse_circuits.viewer.drawing import draw_graph

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1060px; margin: 2rem auto; padding: 0 1rem;
  color: #1c2430; background: #fff; }
@media (prefers-color-scheme: dark) { body { color: #e8ecf2; background: #12161c; } }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p.lead { margin-top: 0; opacity: .8; } .scroll { overflow-x: auto; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } th { text-align: left; font-weight: 600; }
td, th { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
code { font-size: .85em; } pre { white-space: pre-wrap; background: #8881; padding: .6rem .8rem; border-radius: 6px; }
.dim .edge, .dim .carry, .dim .node { opacity: .12; } .dim .on { opacity: 1; } .node { cursor: pointer; outline: none; }
.node:focus-visible circle { stroke-width: 3; } #about { min-height: 1.6em; }
.curve { fill: none; stroke-width: 2; } .axis { stroke: #8888; }
.curves text { font: 12px system-ui; fill: currentColor; }
"""

SCRIPT = """
const graph = document.querySelector('.graph'), about = document.getElementById('about');
const links = [...graph.querySelectorAll('[data-source]')], nodes = [...graph.querySelectorAll('.node')];
let pinned = null;
function show(node) {
  const parts = [...links, ...nodes];
  parts.forEach(part => part.classList.remove('on'));
  graph.classList.toggle('dim', !!node);
  about.textContent = node ? node.querySelector('title').textContent : about.dataset.hint;
  if (!node) return;
  const near = new Set([node.dataset.name]);
  for (const link of links) {
    if (link.dataset.source === node.dataset.name || link.dataset.target === node.dataset.name) {
      link.classList.add('on'); near.add(link.dataset.source); near.add(link.dataset.target);
    }
  }
  nodes.filter(other => near.has(other.dataset.name)).forEach(other => other.classList.add('on'));
}
for (const node of nodes) {
  node.addEventListener('mouseenter', () => pinned || show(node));
  node.addEventListener('mouseleave', () => pinned || show(null));
  node.addEventListener('focus', () => show(node));
  node.addEventListener('blur', () => show(pinned));
  node.addEventListener('click', () => { pinned = pinned === node ? null : node; show(pinned); });
}
document.addEventListener('keydown', event => { if (event.key === 'Escape') { pinned = null; show(null); } });
show(null);
"""


def write_page(view: dict[str, Any], path: Path) -> Path:
    """Write the page of a view-model, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(page(view), encoding="utf-8")
    return path


def page(view: dict[str, Any]) -> str:
    """Return the page of a view-model as HTML that needs nothing else."""
    summary = view["summary"]
    lead = (
        f"{summary['n_node']} nodes of {summary['n_node_total']:,} and {summary['n_edge']} edges of a model with "
        f"{view['model']['n_layer']} layers"
    )
    hint = "Hover or tab to a node to see its edges, click to pin it, Escape to let go."
    sections = [
        f'<div class="scroll">{draw_graph(view)}</div><p id="about" data-hint="{hint}"></p>',
        "<p>Blue edges have positive weights, red ones negative; dashed lines are channels that the residual stream "
        "carries from a write to a later read. The fuller a node, the more its removal costs.</p>",
        _examples(view),
        _report(view),
        _curves(view),
        _refinement(view),
        _provenance(view),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(view["title"])}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f'<h1>{escape(view["title"])}</h1><p class="lead">{lead}</p>{"".join(sections)}'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _table(rows: list[list[str]], head: list[str]) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells}</tr>{body}</table></div>'


def _examples(view: dict[str, Any]) -> str:
    shown = "".join(
        f"<pre>{escape(side['prompt'])}<b>{escape(side['answer'].replace(chr(10), '⏎'))}</b></pre>"
        for side in view["task"].get("example", [])
    )
    return f"<h2>One pair of the task</h2>{shown}" if shown else ""


def _report(view: dict[str, Any]) -> str:
    report = view["report"]
    if report is None:
        return "<h2>Not verified yet</h2><p>Run <code>sparse-circuits verify</code> on this circuit.</p>"

    def loss(estimate: dict[str, Any]) -> str:
        ends = "" if estimate["low"] is None else f" [{estimate['low']:.3f}, {estimate['high']:.3f}]"
        return f"{estimate['value']:.3f}{ends}"

    rows = [
        [
            split,
            str(found["model"]["loss"]["n_pair"]),
            loss(found["model"]["loss"]),
            loss(found["circuit"]["loss"]),
            f"{found['circuit_uncalibrated']['loss']['value']:.3f}",
            loss(found["sealed"]["loss"]),
            f"{found['model']['accuracy']:.3f}",
            f"{found['circuit']['accuracy']:.3f}",
        ]
        for split, found in report["sufficiency"].items()
    ]
    head = ["split", "pairs", "model", "circuit", "uncalibrated", "sealed", "accuracy: model", "circuit"]
    need, sets, card = report["necessity"], report["random_sets"], report["card"]
    facts = [
        ["model without the circuit, refitted", f"loss {loss(need['loss'])}, AUROC {need['auroc']:.3f}"],
        [
            f"{sets['n_set']} random sets outside it, alike in location and activity",
            f"refitted: mean {sets['loss_mean']:.3f}, worst {sets['loss_worst']:.3f}; as they come: mean "
            f"{sets['loss_mean_before_refit']:.3f}, worst {sets['loss_worst_before_refit']:.3f}; "
            f"model {sets['model_loss']:.3f}",
        ],
        ["nodes alive on the task", f"{report['n_node_alive']:,} of {report['n_node_total']:,}"],
        ["nodes of the circuit that never change", str(report["n_node_constant"])],
        [
            "edges with embedding and unembedding",
            f"{report['n_embedding_edge']['embedding']:,} and {report['n_embedding_edge']['unembedding']:,}",
        ],
        [
            "calibration",
            f"scale {report['calibration']['scale']:.2f}, shift {report['calibration']['shift']:+.2f}",
        ],
        ["accuracy with every node ablated", f"{card['all_ablated']['accuracy']:.3f}"],
        ["accuracy of a table of the last two tokens", f"{card['last_two_tokens']['accuracy']:.3f}"],
        ["accuracy of a bag of tokens", f"{card['bag_of_tokens']['accuracy']:.3f}"],
        ["probability of the two answers", f"{card['answer_mass']:.3f}"],
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in report["notes"])
    return (
        "<h2>Verification</h2><p>Losses in nats a side with 95 % intervals; chance is 0.693. Sealed is the strict "
        f"reading: every weight that is not an edge carries a constant.</p>{_table(rows, head)}<br>"
        f"{_table(facts, ['', ''])}<ul>{notes}</ul>"
    )


def _curves(view: dict[str, Any]) -> str:
    history = view["history"]
    if not history:
        return ""
    losses = [record["loss"] for record in history]
    counts = [record["n_node"] for record in history]
    return (
        "<h2>Mask learning</h2>"
        + _curve(losses, "task loss, nats (smoothed over 10 steps)", "#1f6fb2", smooth=10)
        + _curve(counts, "nodes kept", "#c4472f")
    )


def _curve(values: list[float], title: str, colour: str, *, smooth: int = 1) -> str:
    width, height, left = 480, 150, 44
    means = [sum(values[max(0, i - smooth + 1) : i + 1]) / min(i + 1, smooth) for i in range(len(values))]
    top = max(means) or 1.0
    points = " ".join(
        f"{left + (width - left - 8) * i / max(1, len(means) - 1):.1f},{height - 22 - (height - 46) * v / top:.1f}"
        for i, v in enumerate(means)
    )
    return (
        f'<svg class="curves" viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(title)}">'
        f'<text x="{left}" y="14">{escape(title)}</text><text x="2" y="30">{_short(top)}</text>'
        f'<text x="2" y="{height - 20}">0</text><text x="{width - 8}" y="{height - 4}" text-anchor="end">'
        f'{len(values)} steps</text><line class="axis" x1="{left}" x2="{width - 8}" y1="{height - 22}" '
        f'y2="{height - 22}"/><polyline class="curve" stroke="{colour}" points="{points}"/></svg>'
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _refinement(view: dict[str, Any]) -> str:
    rows = []
    for record in view["removed"]:
        if "scan" in record:
            rows.append([f"size {record['scan']['size']} chosen by a scan", "", ""])
        else:
            names = record["removed"]
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            rows.append([f"{len(names)} removed: {shown}", str(record["n_node"]), f"{record['loss']:.3f}"])
    return f"<h2>Refinement</h2>{_table(rows, ['step', 'nodes left', 'loss on select'])}" if rows else ""


def _provenance(view: dict[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in view["settings"].items())
    rows = [
        ["model", view["model"]["hash"]],
        ["task", f"{view['task']['name']}, {view['task']['hash']}"],
        ["pruned with", settings],
    ]
    return f"<h2>Provenance</h2>{_table(rows, ['', ''])}"
