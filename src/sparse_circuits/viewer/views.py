"""From a circuit or its folder to a page, with what belongs to it found by itself: the task, the report, the notes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparse_circuits.circuit import Circuit
from sparse_circuits.errors import TaskError
from sparse_circuits.tasks.pairs import Task
from sparse_circuits.viewer.data import task_of, view_model, without_paths
from sparse_circuits.viewer.page import write_page


def view(
    circuit: Circuit | Path | str,
    out: Path | str | None = None,
    *,
    beside: Circuit | Path | str | None = None,
    task: Task | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the page of a circuit: one HTML file that needs no network.

    Args:
        circuit: A circuit, or the folder of one.
        out: The file; `circuit.html` in the circuit's folder if left out.
        beside: Another circuit, or its folder, to compare with in the same page.
        task: The circuit's task; drawn again if left out.
        on_step: Called with a sentence before each step.

    Returns:
        Where it was written.

    Raises:
        ValueError: `circuit` is not a folder, and `out` is left out.
    """
    if isinstance(circuit, Circuit):
        if out is None:
            raise ValueError("out is needed for a circuit that is not opened from a folder")
        path = Path(out)
    else:
        path = Path(circuit) / "circuit.html" if out is None else Path(out)
    views = [view_of(circuit, task=task, on_step=on_step)]
    if beside is not None:
        views.append(view_of(beside, on_step=on_step))
    return write_page(views, path)


def view_of(
    circuit: Circuit | Path | str, *, task: Task | None = None, on_step: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Return the view-model of a circuit, or of the folder of one, with its task's prompts if they can be drawn."""
    opened = circuit if isinstance(circuit, Circuit) else Circuit.load(circuit)
    folder = None if isinstance(circuit, Circuit) else Path(circuit)
    why = ""
    if task is None:
        on_step("drawing the task's prompts")
        try:
            task = task_of(opened)
        except TaskError as error:
            why = without_paths(str(error), opened)
    found = view_model(opened, folder=folder, task=task, on_step=on_step)
    if why:
        found["missing"]["prompts"] = why
    return found
