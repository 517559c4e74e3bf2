"""The view-model says what the circuit is; the page shows all of it and needs nothing else."""

import re
import xml.etree.ElementTree as ET

import pytest
from hand_built import NODES, hand_built_model, hand_built_task
from test_circuit import circuit_of

from sparse_circuits.faithfulness import verify
from sparse_circuits.viewer import view, view_model, write_page
from sparse_circuits.viewer.drawing import draw_graph
from sparse_circuits.viewer.page import page


@pytest.fixture
def circuit():
    made = circuit_of(
        hand_built_model(),
        NODES,
        effects={"0.attn.v:0": 0.5},
        history=[{"step": i, "loss": 1 / (i + 1), "n_node": 48.0 - i} for i in range(5)],
    )
    made.task |= {"example": [{"prompt": 'a < b & "c', "answer": '")\n'}]}
    return made


def test_the_view_model_has_nodes_and_edges_with_their_weights(circuit):
    shown = view_model(circuit)
    assert [node["name"] for node in shown["nodes"]] == NODES
    assert shown["nodes"][1] | {} == {
        "name": "0.attn.v:0",
        "layer": 0,
        "site": "attn.v",
        "channel": 0,
        "head": 0,
        "channel_in_head": 0,
        "effect": 0.5,
    }
    assert shown["edges"] == [
        {"source": "0.attn.act_in:0", "target": "0.attn.v:0", "weight": 3.0},
        {"source": "0.attn.v:0", "target": "0.attn.resid_delta:3", "weight": 2.0},
    ]
    assert shown["carries"] == []


def test_a_later_read_of_a_written_channel_is_carried_by_the_stream():
    circuit = circuit_of(hand_built_model(), ["0.attn.resid_delta:3", "0.mlp.act_in:3", "0.attn.act_in:3"])
    assert view_model(circuit)["carries"] == [{"source": "0.attn.resid_delta:3", "target": "0.mlp.act_in:3"}]


def test_the_drawing_is_well_formed_and_draws_everything_once(circuit):
    svg = ET.fromstring(draw_graph(view_model(circuit)))
    titles = [title.text for title in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert sum("→" in title for title in titles) == 2
    for name in NODES:
        assert sum(title.startswith(name) and "→" not in title for title in titles) == 1
    assert "0.attn.v:0 (head 0, channel 0); without it the loss is +0.500 nats higher" in titles


def test_no_two_nodes_of_a_row_lie_on_each_other():
    model = hand_built_model()
    circuit = circuit_of(
        model, [f"0.mlp.{site}:{i}" for site in ("act_in", "post_act", "resid_delta") for i in range(4)]
    )
    places = re.findall(r'<circle cx="([\d.]+)" cy="(\d+)"', draw_graph(view_model(circuit)))
    assert len(set(places)) == len(places) == 12


def test_the_page_needs_no_network_and_escapes_code(circuit):
    text = page(view_model(circuit))
    assert not re.search(r"(src|href)=|@import|url\(", text)
    assert "https://" not in text
    assert "a &lt; b &amp; &quot;c" in text
    assert "Not verified yet" in text
    assert text.count("<svg") == 3


def test_the_page_of_a_verified_circuit_has_the_reports_numbers(circuit, tmp_path):
    task = hand_built_task()
    circuit.task |= {"name": task.name, "hash": task.hash}
    circuit.save(tmp_path)
    report = verify(circuit, task, folder=tmp_path, n_set=3)
    path = write_page(view_model(circuit, folder=tmp_path), tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert f"loss {report.necessity.loss.value:.3f}" in text
    assert "AUROC 0.500" in text
    assert "3 random sets" in text


def test_a_circuit_without_a_folder_needs_a_place_for_its_page(circuit, tmp_path):
    with pytest.raises(ValueError, match="out is needed"):
        view(circuit)
    assert view(circuit, tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_an_empty_circuit_still_has_a_page():
    assert "0 nodes of 48" in page(view_model(circuit_of(hand_built_model(), [])))
