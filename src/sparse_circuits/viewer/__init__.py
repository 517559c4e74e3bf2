"""Pictures of circuits: what is shown (`data`), and how (`page`)."""

from pathlib import Path

from sparse_circuits.circuit import Circuit
from sparse_circuits.viewer.data import view_model
from sparse_circuits.viewer.page import write_page

__all__ = ["view", "view_model", "write_page"]


def view(circuit: Circuit | Path | str, out: Path | str | None = None) -> Path:
    """Write the page of a circuit: one HTML file that needs no network.

    Args:
        circuit: A circuit, or the folder of one.
        out: The file; `circuit.html` in the circuit's folder if left out.

    Returns:
        Where it was written.
    """
    if isinstance(circuit, Circuit):
        if out is None:
            raise ValueError("out is needed for a circuit that is not opened from a folder")
        return write_page(view_model(circuit), Path(out))
    folder = Path(circuit)
    path = Path(out) if out is not None else folder / "circuit.html"
    return write_page(view_model(Circuit.load(folder), folder=folder), path)
