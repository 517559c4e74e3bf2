"""Loss against circuit size as SVG: one line a task, and their mean (the paper's Figure 2)."""

import math
from collections.abc import Sequence
from html import escape

from sparse_circuits.scoring import CHANCE

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 420, 60, 48, 18, 190
"""The picture and the margins around its axes, in pixels."""

STYLE = """
.curves { --ink: #1c2430; --faint: #8a94a3; --line: #d9dee6; --mean: #1f6fb2; --paper: #fff;
  font: 12px system-ui, sans-serif; background: var(--paper); }
@media (prefers-color-scheme: dark) { .curves { --ink: #e8ecf2; --faint: #8591a3; --line: #333c49; --mean: #62aef0;
  --paper: #12161c; } }
.curves text { fill: var(--ink); } .curves .faint { fill: var(--faint); } .curves .axis { stroke: var(--line); }
.curves path { fill: none; stroke: var(--faint); stroke-width: 1; opacity: .55; }
.curves path.mean { stroke: var(--mean); stroke-width: 3; opacity: 1; }
.curves path:hover { stroke: var(--ink); stroke-width: 2.5; opacity: 1; }
.curves .target { stroke: var(--mean); stroke-dasharray: 4 4; }
"""

Curve = Sequence[tuple[int, float]]
"""Sizes and losses."""


def draw_curves(curves: dict[str, Curve], *, target_loss: float) -> str:
    """Return an SVG picture; a task's name shows on hover.

    Args:
        curves: Loss at each number of nodes, by task; all at the same sizes.
        target_loss: Drawn as a dashed line, in nats.
    """
    sizes = [size for size, _ in next(iter(curves.values()))]
    mean = [(size, sum(curve[i][1] for curve in curves.values()) / len(curves)) for i, size in enumerate(sizes)]
    highest = max(CHANCE, *(loss for curve in curves.values() for _, loss in curve)) * 1.05
    parts = [
        f'<svg class="curves" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Loss against the number of nodes, {len(curves)} tasks">',
        f"<style>{STYLE}</style>",
    ]

    def x(size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(size) / math.log(max(sizes))

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - loss / highest)

    for power in range(int(math.log10(max(sizes))) + 1):
        at = x(10**power)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{10**power:,}</text>')
    for tenth in range(0, int(highest * 10) + 1, 2):
        parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tenth / 10):.1f}" y2="{y(tenth / 10):.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{y(tenth / 10) + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
    at = y(target_loss)
    parts.append(f'<line class="target" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{at + 4:.1f}">target {target_loss:g}</text>')
    at = y(CHANCE)
    parts.append(f'<text class="faint" x="{WIDTH - RIGHT + 8}" y="{at + 4:.1f}">chance</text>')
    for name, curve in [*curves.items(), ("mean", mean)]:
        line = " ".join(f"{x(size):.1f},{y(loss):.1f}" for size, loss in curve)
        kind = ' class="mean"' if name == "mean" else ""
        parts.append(f'<path{kind} d="M {line}"><title>{escape(name)}</title></path>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">nodes kept, best-ranked first</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 5}">loss, nats a side</text>')
    parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{HEIGHT - BOTTOM}">bold: mean of {len(curves)} tasks</text>')
    return "\n".join([*parts, "</svg>"])
