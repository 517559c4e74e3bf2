"""Each picture shows all of what it is given, and is written whole."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hand_built import NODES, hand_built_model
from test_circuit import circuit_of

import sparse_circuits as sc
from sparse_circuits.errors import TapError


@pytest.fixture
def circuit():
    return circuit_of(hand_built_model(), NODES, effects={"0.attn.v:0": 0.5})


def texts_of(figure):
    return [text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()]]


def test_a_circuit_is_drawn_with_every_node_and_edge(circuit, tmp_path):
    figure = sc.draw(circuit, tmp_path / "a.svg")
    (axes,) = figure.axes
    assert len(axes.lines) == len(NODES)
    assert len(axes.patches) == circuit.n_edge
    assert "v 0.0" in texts_of(figure)
    assert "layer 0  attention writes" in texts_of(figure)
    ET.parse(tmp_path / "a.svg")


def test_the_node_whose_removal_costs_most_is_largest(circuit):
    sizes = [float(line.get_markersize()) for line in sc.draw(circuit).axes[0].lines]
    assert max(sizes) == sizes[1]


def test_an_empty_circuit_has_an_empty_picture():
    assert not sc.draw(circuit_of(hand_built_model(), [])).axes[0].lines


def test_attention_in_the_picture_is_attention_and_the_sink_fills_each_row(tmp_path):
    circuit = sc.Circuit.load(sc.example("circuits/single_double_quote"))
    figure = sc.draw_attention(circuit, "x = $1", 1, 1, tmp_path / "a.png")
    found = sc.explain(circuit, "x = $1")
    for axes, trace in zip(figure.axes, (found.model, found.circuit), strict=True):
        shown = np.asarray(axes.images[0].get_array())
        np.testing.assert_allclose(shown.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(shown[:, :-1], trace.attention["1.attn"][1].numpy(), atol=1e-6)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(TapError, match="no head 9 in layer 1: 2 layers with 4 heads"):
        sc.draw_attention(circuit, "x", 1, 9)


def test_curves_are_drawn_in_order_of_size():
    axes = sc.draw_curves({"a": [(100, 0.1), (1, 0.6)], "b": [(1, 0.5)]}, target_loss=0.15).axes[0]
    assert list(axes.lines[0].get_xdata()) == [1, 100]
    assert axes.get_xscale() == "log"
    with pytest.raises(ValueError, match="at least one curve"):
        sc.draw_curves({"a": []})


def test_ratios_stand_with_their_intervals_in_the_order_given():
    axes = sc.draw_ratios({"first": (2.0, 1.5, 3.0), "second": (0.9, 0.5, 1.2)}, label="dense / sparse").axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["second", "first"]
    assert list(axes.lines[3].get_xdata()) == [1.5, 3.0]
    assert axes.lines[3].get_color() != axes.lines[1].get_color()


@pytest.mark.parametrize("ratio", [(1.0, 0.0, 2.0), (3.0, 1.0, 2.0)])
def test_ratios_that_can_not_be_are_refused(ratio):
    with pytest.raises(ValueError, match="expected 0 < low"):
        sc.draw_ratios({"a": ratio})


def test_a_file_of_an_unknown_kind_is_refused_and_nothing_is_written(circuit, tmp_path):
    with pytest.raises(ValueError, match="take svg, pdf or png"):
        sc.draw(circuit, tmp_path / "a.docx")
    assert list(tmp_path.iterdir()) == []
