"""The viewer in a notebook cell: Jupyter, VS Code, Colab and marimo, through anywidget."""

from pathlib import Path
from typing import Any

from sparse_circuits.circuit import Circuit
from sparse_circuits.errors import ConfigError
from sparse_circuits.tasks.pairs import Task
from sparse_circuits.viewer.notes import checked
from sparse_circuits.viewer.page import front_end, styles
from sparse_circuits.viewer.views import view_of

ADAPTER = """
export default {
  render({ model, el }) {
    const root = document.createElement("div");
    root.style.height = `${model.get("height")}px`;
    root.dataset.lmSuppressShortcuts = "true"; // else JupyterLab's keys act on the cell: 1 makes a heading of it
    el.append(root);
    const theme = { true: "light", false: "dark" }[document.body.dataset.jpThemeLight] ?? "system"; // JupyterLab's own
    const app = mount(root, { views: model.get("views"), is_live: false, widget: model, theme });
    return () => app?.store.close();
  },
};
"""
"""What a notebook calls: draw into the cell's element, notes through the widget's trait."""


def show(
    circuit: Circuit | Path | str,
    *,
    beside: Circuit | Path | str | None = None,
    task: Task | None = None,
    height: int = 640,
) -> Any:
    """Return a widget that shows a circuit in a notebook cell.

    Its trait `notes` has what is written in it, and what is set there is shown; `views` has the view-models.

    Args:
        circuit: A circuit, or the folder of one.
        beside: Another to compare with.
        task: The circuit's task; drawn again if left out.
        height: Of the cell, in pixels.

    Raises:
        ConfigError: The extra `notebook` is not installed.
    """
    views = [view_of(circuit, task=task)]
    if beside is not None:
        views.append(view_of(beside))
    return widget_of(views, height=height)


def widget_of(views: list[dict[str, Any]], *, height: int = 640) -> Any:
    """Return a widget of view-models; see `show`."""
    try:
        import anywidget
        import traitlets
    except ImportError:
        raise ConfigError("a notebook's viewer needs anywidget: pip install sparse-circuits[notebook]") from None

    class CircuitWidget(anywidget.AnyWidget):
        """A circuit in a cell."""

        _esm = front_end() + ADAPTER
        _css = styles()
        views = traitlets.List().tag(sync=True)
        notes = traitlets.Dict(allow_none=True).tag(sync=True)
        height = traitlets.Int().tag(sync=True)

        @traitlets.validate("notes")
        def _check_notes(self, proposal: Any) -> Any:
            return None if proposal["value"] is None else checked(proposal["value"], where="the widget's notes")

    return CircuitWidget(views=views, notes=views[0]["notes"], height=height)
