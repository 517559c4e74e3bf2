"""The notebook's widget holds the same view-model and front end, and its notes are checked."""

import pytest
from hand_built import NODES, hand_built_model
from test_circuit import circuit_of

from sparse_circuits.errors import FormatError
from sparse_circuits.viewer.data import view_model
from sparse_circuits.viewer.page import front_end
from sparse_circuits.viewer.widget import widget_of


@pytest.fixture
def widget():
    view = view_model(circuit_of(hand_built_model(), NODES), n_token=0)
    made = widget_of([view], height=500)
    yield made
    made.close()


def test_the_widget_carries_the_view_model_and_the_same_front_end(widget):
    assert [node["name"] for node in widget.views[0]["nodes"]] == NODES
    assert front_end() in str(widget._esm)
    assert "export default" in str(widget._esm)
    assert (widget.height, widget.notes) == (500, None)


def test_notes_of_another_form_are_refused(widget):
    notes = {"notes": {"0.attn.v:0": "a"}, "names": {}, "groups": [], "pinned": []}
    widget.notes = notes
    assert widget.notes["notes"] == {"0.attn.v:0": "a"}
    with pytest.raises(FormatError, match="pinned"):
        widget.notes = notes | {"pinned": [3]}
