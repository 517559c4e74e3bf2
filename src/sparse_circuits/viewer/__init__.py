"""Pictures of circuits: what is shown (`data`), and where (`page`, `server`, `widget`)."""

from sparse_circuits.viewer.data import view_model
from sparse_circuits.viewer.page import write_page
from sparse_circuits.viewer.views import view, view_of

__all__ = ["view", "view_model", "view_of", "write_page"]
