"""Predicted beside measured along a family of prompts, as SVG (after the paper's figures 5 and 8)."""

from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, GAP = 440, 250, 56, 46, 62
"""One panel and the margins around it, in pixels."""

STYLE = """
.families { --ink: #1c2430; --faint: #8a94a3; --line: #d9dee6; --circuit: #1f6fb2; --model: #c8553d; --paper: #fff;
  font: 12px system-ui, sans-serif; background: var(--paper); }
@media (prefers-color-scheme: dark) { .families { --ink: #e8ecf2; --faint: #8591a3; --line: #333c49;
  --circuit: #62aef0; --model: #f08a72; --paper: #12161c; } }
.families text { fill: var(--ink); } .families .faint { fill: var(--faint); } .families .axis { stroke: var(--line); }
.families path { fill: none; stroke-width: 2; } .families .predicted { stroke: var(--circuit); stroke-dasharray: 5 3; }
.families .measured { stroke: var(--model); } .families .end { stroke-width: 1; opacity: .6; }
.families circle { stroke: none; } .families circle.predicted { fill: var(--circuit); }
.families circle.measured { fill: var(--model); }
"""

KINDS = {"predicted": "circuit, predicted", "measured": "model, measured"}
"""Lines of a panel."""


def draw_families(predictions: dict[str, Any]) -> str:
    """Return an SVG picture: a row of two panels a family, accuracy on either side with its interval.

    Args:
        predictions: `Predictions.to_json()`.
    """
    families = predictions["families"]
    width, row = 2 * WIDTH + 2 * LEFT, HEIGHT + TOP + GAP
    height = row * len(families) + 34
    parts = [
        f'<svg class="families" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Accuracy along families of prompts, predicted and measured">',
        f"<style>{STYLE}</style>",
    ]
    for i, name in enumerate(KINDS):
        x = LEFT + 180 * i
        parts.append(f'<path class="{name}" d="M {x} 16 H {x + 30}"/><text x="{x + 38}" y="20">{KINDS[name]}</text>')
    for i, family in enumerate(families):
        for side in (0, 1):
            parts += _panel(family, side, LEFT + side * (WIDTH + LEFT), 34 + i * row + TOP)
    return "\n".join([*parts, "</svg>"])


def _panel(family: dict[str, Any], side: int, left: float, top: float) -> list[str]:
    points, right = family["points"], left + WIDTH - 20
    inset = 6 if all(isinstance(point["x"], float) for point in points) else (right - left) / (2 * len(points))
    step = (right - left - 2 * inset) / max(len(points) - 1, 1)
    xs = [left + inset + step * i for i in range(len(points))]

    def y(share: float) -> float:
        return top + HEIGHT * (1 - min(max(share, 0.0), 1.0))

    parts = [f'<text x="{left}" y="{top - 14}">{escape(family["name"])}: share right on side {side}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:g}</text>')
    for x, point in zip(xs, points, strict=True):
        label = f"{point['x']:g}" if isinstance(point["x"], float) else escape(str(point["x"]))
        parts.append(f'<text x="{x:.1f}" y="{top + HEIGHT + 20}" text-anchor="middle">{label}</text>')
    for kind, shift in (("predicted", -2), ("measured", 2)):
        found = [point[kind]["accuracy"][side] for point in points]
        line = " L ".join(f"{x + shift:.1f},{y(one['value']):.1f}" for x, one in zip(xs, found, strict=True))
        parts.append(f'<path class="{kind}" d="M {line}"/>')
        for x, one in zip(xs, found, strict=True):
            title = f"<title>{KINDS[kind]}: {one['value']:.3f}</title>"
            parts.append(
                f'<circle class="{kind}" cx="{x + shift:.1f}" cy="{y(one["value"]):.1f}" r="3">{title}</circle>'
            )
            if one["low"] is not None:
                ends = f"M {x + shift:.1f},{y(one['low']):.1f} V {y(one['high']):.1f}"
                parts.append(f'<path class="{kind} end" style="stroke-dasharray:none" d="{ends}"/>')
    return parts
