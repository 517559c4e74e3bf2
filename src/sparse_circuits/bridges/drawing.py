"""Pictures of bridges as SVG: steering curves as in the paper's Figure 9, and the KL of hybrids by site."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from sparse_circuits.viewer.curves import STYLE

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 420, 64, 50, 30, 230
"""The picture and the margins around its axes, in pixels."""

Points = Sequence[tuple[float, float]]
"""Places and values."""


class Chart:
    """Axes with a linear x and a logarithmic y, and what is drawn on them.

    Args:
        x: First and last place.
        y: Lowest and highest value, above 0; values outside are drawn at the edge.
        title: Above the axes.
        x_title: Below them.
    """

    def __init__(self, x: tuple[float, float], y: tuple[float, float], *, title: str, x_title: str) -> None:
        self.first, self.last = x
        self.low, self.high = y
        self.labels: list[tuple[float, str, str]] = []
        self.parts = [
            f'<svg class="curves" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" style="fill:var(--paper)"/>',
            f'<text x="{LEFT}" y="{TOP - 12}">{escape(title)}</text>',
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_title)}</text>',
        ]
        for power in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1):
            at = self.y(10**power)
            self.parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            self.parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10**power:g}</text>')

    def x(self, place: float) -> float:
        """Return a place in pixels."""
        return LEFT + (WIDTH - LEFT - RIGHT) * (place - self.first) / max(self.last - self.first, 1e-9)

    def y(self, value: float) -> float:
        """Return a value in pixels."""
        value = min(max(value, self.low), self.high)
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    def ticks(self, places: Sequence[tuple[float, str]]) -> None:
        """Write marks below the axis."""
        for place, text in places:
            at = self.x(place)
            self.parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
            self.parts.append(
                f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(text)}</text>'
            )

    def band(self, low: Points, high: Points, colour: str) -> None:
        """Fill between two lines."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in [*high, *reversed(low)])
        self.parts.append(f'<path class="band" style="fill:var(--{colour})" d="M {path} Z"/>')

    def line(self, points: Points, colour: str, label: str, *, is_dashed: bool = False) -> None:
        """Draw a line; its label stands right of the axes, level with its end where there is room."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        style = f"stroke:var(--{colour})" + (";stroke-dasharray:5 4" if is_dashed else "")
        self.parts.append(f'<path class="model" style="{style}" d="M {path}"><title>{escape(label)}</title></path>')
        self.labels.append((self.y(points[-1][1]), label, colour))

    def level(self, value: float, colour: str, label: str) -> None:
        """Draw a horizontal line."""
        self.line([(self.first, value), (self.last, value)], colour, label, is_dashed=True)

    def dot(self, place: float, value: float, colour: str, label: str) -> None:
        """Draw a point."""
        self.parts.append(
            f'<circle cx="{self.x(place):.1f}" cy="{self.y(value):.1f}" r="3.5" style="fill:var(--{colour})">'
            f"<title>{escape(label)}</title></circle>"
        )

    def svg(self) -> str:
        """Return the picture."""
        last = -math.inf
        for at, label, colour in sorted(self.labels):
            last = max(at, last + 15)
            self.parts.append(
                f'<text x="{WIDTH - RIGHT + 8}" y="{last + 4:.1f}" style="fill:var(--{colour})">{escape(label)}</text>'
            )
        return "\n".join([*self.parts, "</svg>"])


def draw_steering(found: dict[str, Any]) -> str:
    """Draw both answers' probability against strength, log axis, with intervals, the null band, and controls.

    Source: paper Figure 9; intervals and controls are ours.
    """
    strengths = found["strengths"]
    title = f"{found['task']} steered by {found['node']}: probability in the dense model"
    chart = Chart(
        (min(strengths), max(strengths)), (1e-4, 1.0), title=title, x_title="strength; 1 is the formula's value"
    )
    chart.ticks([(s / 5, f"{s / 5:g}") for s in range(math.ceil(min(strengths) * 5), int(max(strengths) * 5) + 1)])
    null = [(band["strength"], band["low"], band["high"]) for band in found["null"]["strengths"]]
    start = found["rows"][0]["p_other"][0]["value"]
    chart.band(
        [(0.0, start), *((s, low) for s, low, _ in null)], [(0.0, start), *((s, high) for s, _, high in null)], "faint"
    )
    chart.labels.append((chart.y(null[-1][2]), f"95 % of {found['null']['n_row']} other rows", "faint"))
    names = {"bridged node": "c0", "ridge bridge": "c4", "difference of means (skyline)": "c2"}
    for row in found["rows"]:
        other = row["p_other"]
        if row["name"] in names:
            colour = names[row["name"]]
            lines = {
                key: [(s, e[key]) for s, e in zip(row["strengths"], other, strict=True) if e[key] is not None]
                for key in ("low", "value", "high")
            }
            if row["name"] == "bridged node":
                if lines["low"]:  # of one template there is no interval
                    chart.band(lines["low"], lines["high"], colour)
                own = [(s, e["value"]) for s, e in zip(row["strengths"], row["p_own"], strict=True)]
                chart.line(own, "c1", "right answer, bridged node", is_dashed=True)
            chart.line(lines["value"], colour, f"other answer, {row['name'].partition(' (')[0]}")
        elif row["strengths"][-1] == 1.0:
            chart.dot(1.0, other[-1]["value"], "c3", f"{row['name']}: {other[-1]['value']:.3f}")
            chart.labels.append(
                (chart.y(other[-1]["value"]), f"· {row['name'].partition(',')[0].partition(' of ')[0]}", "c3")
            )
    return chart.svg()


def draw_hybrids(found: dict[str, Any]) -> str:
    """Draw the KL of every single transition by site, trained and ridge, with the anchors as levels."""
    sites = [row["site"] for row in found["transitions"] if row["kind"] == found["bridge"] and row["to"] == "sparse"]
    kl = [row["kl"] for row in found["transitions"]]
    chart = Chart(
        (min(sites), max(sites)),
        (min(1e-2, max(1e-4, min(kl))), max(10.0, 1.1 * max(kl))),
        title="KL(dense ‖ hybrid) of a single transition",
        x_title="site of the sparse model",
    )
    chart.ticks([(site, str(site)) for site in sites])
    kinds = list(dict.fromkeys(row["kind"] for row in found["transitions"]))
    for kind in kinds:
        for to, colour in (("sparse", "c0"), ("dense", "c1")):
            points = [(r["site"], r["kl"]) for r in found["transitions"] if r["kind"] == kind and r["to"] == to]
            if points:
                chart.line(points, colour, f"to {to}, {kind}", is_dashed=kind != found["bridge"])
    for anchor in found["anchors"]:
        if anchor["kl"] > 0:
            chart.level(anchor["kl"], "faint", anchor["name"])
    return chart.svg()
