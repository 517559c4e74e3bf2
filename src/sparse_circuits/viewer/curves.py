"""Loss against circuit size as SVG: the tasks of a model, or models side by side (the paper's Figure 2)."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from sparse_circuits.scoring import CHANCE

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 420, 60, 48, 18, 190
"""The picture and the margins around its axes, in pixels."""

STYLE = """
.curves { --ink: #1c2430; --faint: #8a94a3; --line: #d9dee6; --mean: #1f6fb2; --paper: #fff;
  --c0: #1f6fb2; --c1: #c8553d; --c2: #4f8a3c; --c3: #8a5aa8; --c4: #b5862a; --c5: #3c8a8a;
  font: 12px system-ui, sans-serif; background: var(--paper); }
@media (prefers-color-scheme: dark) { .curves { --ink: #e8ecf2; --faint: #8591a3; --line: #333c49; --mean: #62aef0;
  --c0: #62aef0; --c1: #f08a72; --c2: #8fca7a; --c3: #c39be0; --c4: #e0b85c; --c5: #6fc7c7; --paper: #12161c; } }
.curves text { fill: var(--ink); } .curves .faint { fill: var(--faint); } .curves .axis { stroke: var(--line); }
.curves path { fill: none; stroke: var(--faint); stroke-width: 1; opacity: .55; }
.curves path.mean { stroke: var(--mean); stroke-width: 3; opacity: 1; }
.curves path:hover { stroke: var(--ink); stroke-width: 2.5; opacity: 1; }
.curves path.model { stroke-width: 2.5; opacity: 1; }
.curves path.band, .curves path.band:hover { stroke: none; opacity: .18; }
.curves .target { stroke: var(--mean); stroke-dasharray: 4 4; }
"""

N_COLOUR = 6
"""Colours of models, used again after the last."""

Curve = Sequence[tuple[int, float]]
"""Sizes and losses."""


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean loss at each size; all curves are at the same sizes."""
    sizes = [size for size, _ in curves[0]]
    return [(size, sum(curve[i][1] for curve in curves) / len(curves)) for i, size in enumerate(sizes)]


def draw_curves(curves: dict[str, Curve], *, target_loss: float) -> str:
    """Return an SVG picture of one model: a thin line a task, whose name shows on hover, and their mean.

    Args:
        curves: Loss at each number of nodes, by task; all at the same sizes.
        target_loss: Drawn as a dashed line, in nats.
    """
    axes = _Axes(list(curves.values()), target_loss, f"{len(curves)} tasks")
    parts = axes.drawn()
    for name, curve in [*curves.items(), ("mean", mean_curve(list(curves.values())))]:
        kind = ' class="mean"' if name == "mean" else ""
        parts.append(f'<path{kind} d="M {axes.line(curve)}"><title>{escape(name)}</title></path>')
    parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{HEIGHT - BOTTOM}">bold: mean of {len(curves)} tasks</text>')
    return "\n".join([*parts, "</svg>"])


def draw_models(models: Mapping[str, Sequence[Curve]], *, target_loss: float) -> str:
    """Return an SVG picture of several models: a line each, with a band from the lowest to the highest of its seeds.

    Args:
        models: By name, one curve a seed; those of a model are at the same sizes.
        target_loss: Drawn as a dashed line, in nats.
    """
    axes = _Axes([curve for seeds in models.values() for curve in seeds], target_loss, f"{len(models)} models")
    parts = axes.drawn()
    for i, (name, seeds) in enumerate(models.items()):
        colour = f"var(--c{i % N_COLOUR})"
        if len(seeds) > 1:
            columns = [(points[0][0], [loss for _, loss in points]) for points in zip(*seeds, strict=True)]
            highest = axes.line([(size, max(losses)) for size, losses in columns])
            lowest = axes.line([(size, min(losses)) for size, losses in reversed(columns)])
            parts.append(f'<path class="band" style="fill:{colour}" d="M {highest} L {lowest} Z"/>')
        line = axes.line(mean_curve(seeds))
        parts.append(
            f'<path class="model" style="stroke:{colour}" d="M {line}"><title>{escape(name)}</title></path>'
            f'<text x="{WIDTH - RIGHT + 8}" y="{axes.y(0.6) + 16 * i:.1f}" style="fill:{colour}">{escape(name)}'
            f"{f', {len(seeds)} seeds' if len(seeds) > 1 else ''}</text>"
        )
    return "\n".join([*parts, "</svg>"])


class _Axes:
    """Sizes in log from 1, losses from 0, both wide enough for all curves."""

    def __init__(self, curves: Sequence[Curve], target_loss: float, what: str) -> None:
        self.largest = max(size for curve in curves for size, _ in curve)
        self.highest = max(CHANCE, *(loss for curve in curves for _, loss in curve)) * 1.05
        self.target_loss, self.what = target_loss, what

    def x(self, size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(size) / math.log(self.largest)

    def y(self, loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - loss / self.highest)

    def line(self, curve: Curve) -> str:
        return " ".join(f"{self.x(size):.1f},{self.y(loss):.1f}" for size, loss in curve)

    def drawn(self) -> list[str]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = [
            f'<svg class="curves" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="Loss against the number of nodes, {self.what}">',
            f"<style>{STYLE}</style>",
        ]
        for power in range(int(math.log10(self.largest)) + 1):
            at = self.x(10**power)
            parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
            parts.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{10**power:,}</text>')
        for tenth in range(0, int(self.highest * 10) + 1, 2):
            at = self.y(tenth / 10)
            parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
        at = self.y(self.target_loss)
        parts.append(f'<line class="target" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{right + 8}" y="{at + 4:.1f}">target {self.target_loss:g}</text>')
        parts.append(f'<text class="faint" x="{right + 8}" y="{self.y(CHANCE) + 4:.1f}">chance</text>')
        middle = (LEFT + right) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">nodes kept, best-ranked first</text>')
        parts.append(f'<text x="{LEFT}" y="{TOP - 5}">loss, nats a side</text>')
        return parts
