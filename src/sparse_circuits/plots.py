"""Pictures for papers with matplotlib, the extra `plot`: circuits, attention, curves, ratios with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_circuits.circuit import Circuit
from sparse_circuits.errors import ConfigError, TapError
from sparse_circuits.explaining import explain
from sparse_circuits.scoring import CHANCE
from sparse_circuits.viewer import graph
from sparse_circuits.viewer.drawing import LEFT, TITLES, places, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLUS, MINUS, INK, SOFT = "#1f63b5", "#c2452d", "#1d2127", "#626973"
"""One accent for each sign, ink, and what stands back."""

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
"""Small type, few lines, text that stays text in SVG and PDF."""


def draw(circuit: Circuit, out: Path | str | None = None, *, labels: bool = True, width: float = 6.5) -> "Figure":
    """Draw a circuit: locations are rows, edges by sign and weight, what the stream carries dotted.

    Args:
        circuit: The circuit; a node's size grows with what its removal costs.
        out: A file to write, of the kind that its ending names, such as `quote.svg` or `quote.pdf`.
        labels: Whether nodes have their channel below them.
        width: Of the figure, in inches.

    Raises:
        ConfigError: The extra `plot` is not installed.
    """
    view = {
        "nodes": graph.nodes(circuit),
        "edges": graph.edges(circuit),
        "carries": graph.carries(circuit),
    }
    rows = rows_of(view)
    place, across = places(rows, view)
    height = max(1.2, 0.55 * len(rows) + 0.3)
    figure, axes = _figure(width, height)
    heights = {row: i for i, row in enumerate(rows)}
    at = {name: ((x - LEFT) / (across - LEFT), _height_of(name, heights)) for name, (x, _) in place.items()}
    largest = max((abs(edge["weight"]) for edge in view["edges"]), default=1.0)
    for carry in view["carries"]:
        _link(axes, at[carry["source"]], at[carry["target"]], edgecolor=SOFT, linestyle=":", linewidth=0.8)
    for edge in view["edges"]:
        share = abs(edge["weight"]) / largest
        colour = PLUS if edge["weight"] > 0 else MINUS
        ends = at[edge["source"]], at[edge["target"]]
        _link(axes, *ends, edgecolor=colour, linewidth=0.4 + 1.8 * share, alpha=0.35 + 0.6 * share)
    most = max((node.get("effect", 0.0) for node in view["nodes"]), default=0.0)
    for node in view["nodes"]:
        share = max(0.0, node.get("effect", 0.0) / most) ** 0.5 if most > 0 else 0.0
        x, y = at[node["name"]]
        axes.plot(x, y, "o", markersize=3 + 4.5 * share, markerfacecolor=str(0.96 - 0.8 * share), markeredgecolor=INK,
                  markeredgewidth=0.7, zorder=3)  # fmt: skip
        if labels:
            text = axes.annotate(
                _label(node), (x, y), (0, -6), textcoords="offset points", ha="center", va="top", fontsize=5.5
            )
            text.set_path_effects([_paper()])
    axes.set_yticks(range(len(rows)), [f"layer {layer}  {TITLES[site]}" for layer, site in rows])
    axes.set_xticks([])
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return _saved(figure, out)


def draw_attention(
    circuit: Circuit, prompt: str, layer: int, head: int, out: Path | str | None = None, *, width: float = 6.5
) -> "Figure":
    """Draw a head's pattern on a prompt, full model beside circuit; the last column is what the sink takes.

    Args:
        circuit: Its model needs a tokenizer.
        prompt: Text.
        layer: From 0.
        head: From 0.
        out: A file to write.
        width: Of the figure, in inches.

    Raises:
        TapError: There is no such layer or head.
        ConfigError: The extra `plot` is not installed.
        TaskError: The prompt doesn't fit.
    """
    config = circuit.model.config
    if not (0 <= layer < config.n_layer and 0 <= head < config.n_head):
        raise TapError(f"no head {head} in layer {layer}: {config.n_layer} layers with {config.n_head} heads each")
    found = explain(circuit, prompt)
    figure, both = _figure(width, width * 0.52, n_column=2)
    tokens = [token.replace("\n", "\\n").replace(" ", "␣") for token in found.tokens]
    for axes, (title, trace) in zip(both, (("full model", found.model), ("circuit", found.circuit)), strict=True):
        pattern = trace.attention[f"{layer}.attn"][head].numpy()
        whole = [[*row, 1 - row.sum()] for row in pattern]
        axes.imshow(whole, cmap="Greys", vmin=0, vmax=1, aspect="equal")
        axes.axvline(len(tokens) - 0.5, color=SOFT, linewidth=0.5)
        axes.set_title(f"{title}, head {layer}.{head}", fontsize=8)
        axes.set_xticks(range(len(tokens) + 1), [*map(_plain, tokens), "sink"], rotation=90, fontsize=5)
        axes.set_yticks(range(len(tokens)), map(_plain, tokens), fontsize=5)
    return _saved(figure, out)


def draw_curves(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    out: Path | str | None = None,
    *,
    target_loss: float | None = None,
    width: float = 4.5,
) -> "Figure":
    """Draw loss against size, a line each.

    Args:
        curves: Sizes and losses in nats, by name.
        out: A file to write.
        target_loss: Drawn as a dashed line.
        width: Of the figure, in inches.

    Raises:
        ValueError: There is no curve, or one is empty.
        ConfigError: The extra `plot` is not installed.
    """
    if not curves or not all(curves.values()):
        raise ValueError("curves needs at least one curve, each with a size and its loss")
    figure, axes = _figure(width, width * 0.62)
    for i, (name, curve) in enumerate(curves.items()):
        sizes, losses = zip(*sorted(curve), strict=True)
        axes.plot(sizes, losses, label=_plain(name), linewidth=1.2, color=(INK, PLUS, MINUS)[i] if i < 3 else None)
    axes.axhline(CHANCE, color=SOFT, linewidth=0.6)
    axes.annotate("chance", (1, CHANCE), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha="right", color=SOFT, fontsize=7)  # fmt: skip
    if target_loss is not None:
        axes.axhline(target_loss, color=SOFT, linewidth=0.6, linestyle="--")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("nodes kept")
    axes.set_ylabel("loss, nats a side")
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=7)
    return _saved(figure, out)


def draw_ratios(
    ratios: Mapping[str, tuple[float, float, float]],
    out: Path | str | None = None,
    *,
    label: str = "ratio",
    width: float = 4.5,
) -> "Figure":
    """Draw ratios with their intervals as a forest plot, on a log axis with a line at 1.

    Args:
        ratios: Value, lower and upper end, all above 0, by name.
        out: A file to write.
        label: What they are ratios of.
        width: Of the figure, in inches.

    Raises:
        ValueError: There is none, one is not above 0, or an interval does not hold its value.
        ConfigError: The extra `plot` is not installed.
    """
    if not ratios:
        raise ValueError("ratios is empty, expected at least one")
    for name, (value, low, high) in ratios.items():
        if not 0 < low <= value <= high:
            raise ValueError(f"the ratio of {name} is {value} in [{low}, {high}]; expected 0 < low ≤ value ≤ high")
    figure, axes = _figure(width, 0.24 * len(ratios) + 0.7)
    axes.axvline(1, color=SOFT, linewidth=0.6, linestyle="--")
    for i, (value, low, high) in enumerate(reversed(list(ratios.values()))):
        colour = PLUS if low > 1 else MINUS if high < 1 else INK
        axes.plot((low, high), (i, i), color=colour, linewidth=1.2)
        axes.plot(value, i, "o", color=colour, markersize=4)
    axes.set_xscale("log")
    axes.set_yticks(range(len(ratios)), [_plain(name) for name in reversed(list(ratios))])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-0.6, len(ratios) - 0.4)
    axes.set_xlabel(label)
    return _saved(figure, out)


def _figure(width: float, height: float, *, n_column: int = 1) -> Any:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("pictures need matplotlib: pip install sparse-circuits[plot]") from None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(1, n_column)


def _saved(figure: "Figure", out: Path | str | None) -> "Figure":
    """Write the figure, whole or not at all, and return it."""
    if out is not None:
        import matplotlib as mpl

        from sparse_circuits.files import written_whole

        path = Path(out)
        kind = path.suffix.lstrip(".")
        if kind not in figure.canvas.get_supported_filetypes():
            raise ValueError(f"{path}: no picture of the kind {kind!r} can be written; take svg, pdf or png")
        with mpl.rc_context(STYLE), written_whole(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=200)
    return figure


def _link(axes: "Axes", source: tuple[float, float], target: tuple[float, float], **look: Any) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    (x1, y1), (x2, y2) = source, target
    bend = (y2 - y1) / 2
    points = [(x1, y1), (x1, y1 + bend), (x2, y2 - bend), (x2, y2)]
    axes.add_patch(PathPatch(Curve(points, [Curve.MOVETO] + [Curve.CURVE4] * 3), facecolor="none", **look))


def _paper() -> Any:
    """Return the outline that keeps a label legible on lines."""
    from matplotlib.patheffects import withStroke

    return withStroke(linewidth=1.6, foreground="white")


def _label(node: dict[str, Any]) -> str:
    return f"{node['site'][-1]} {node['head']}.{node['channel_in_head']}" if "head" in node else str(node["channel"])


def _height_of(name: str, heights: dict[tuple[int, str], int]) -> int:
    layer, site = name.partition(":")[0].split(".", 1)
    return heights[int(layer), "attn.qkv" if site in ("attn.q", "attn.k", "attn.v") else site]


def _plain(text: str) -> str:
    """Write what matplotlib would take for mathematics or could not show as it is."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text).replace("$", r"\$")
