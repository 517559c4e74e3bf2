"""Circuits in other tools' formats: the numbers in them are the circuit's, and each file is what its tool reads."""

import csv
import dataclasses
import json
import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hand_built import FILLER, NODES, A, B, X, Y, hand_built_model, hand_built_task

import sparse_circuits as sc
from sparse_circuits import cli
from sparse_circuits.circuit import Circuit
from sparse_circuits.errors import ConfigError, FormatError, OutputExistsError, TaskError
from sparse_circuits.interop import graphs, mib
from sparse_circuits.interop.neuronpedia import attribution_graph
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.taps import reading


@pytest.fixture
def circuit():
    model = hand_built_model()
    space = NodeSpace.of(model.config)
    keep = torch.zeros(space.n_node, dtype=torch.bool)
    keep[[space.index(name) for name in NODES]] = True
    effects = {NODES[0]: 0.5, NODES[1]: 0.25, f"{NODES[0]} → {NODES[1]}": 0.125}
    values = torch.zeros(space.n_node)
    return Circuit.of_nodes(model, keep, values=values, task={"name": "first_token", "seed": 0}, effects=effects)


@pytest.fixture(scope="module")
def example():
    return Circuit.load(sc.example("circuits/single_double_quote"))


EDGES = [(NODES[0], NODES[1], 3.0), (NODES[1], NODES[2], 2.0)]


def test_tables_have_every_node_and_edge(circuit):
    nodes, edges = graphs.tables(circuit)
    assert [node["name"] for node in nodes] == NODES
    assert [node["effect"] for node in nodes] == [0.5, 0.25, None]
    assert (nodes[1]["head"], nodes[1]["channel_in_head"], nodes[0]["head"]) == (0, 0, None)
    assert [(e["source"], e["target"], e["weight"]) for e in edges] == EDGES
    assert [edge["effect"] for edge in edges] == [0.125, None]


def test_csv_and_parquet_hold_the_tables(circuit, tmp_path):
    sc.export(circuit, tmp_path / "c", "csv")
    with (tmp_path / "c/nodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == NODES
    assert [row["effect"] for row in rows] == ["0.5", "0.25", ""]
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra graphs")
    sc.export(circuit, tmp_path / "p", "parquet")
    nodes, edges = graphs.tables(circuit)
    assert parquet.read_table(tmp_path / "p/nodes.parquet").to_pylist() == nodes
    assert parquet.read_table(tmp_path / "p/edges.parquet").to_pylist() == edges


def test_graphml_is_read_back_with_its_types(circuit, tmp_path):
    root = ElementTree.parse(sc.export(circuit, tmp_path / "c.graphml", "graphml")).getroot()
    space = {"g": "http://graphml.graphdrawing.org/xmlns"}
    keys = {key.get("id"): key.get("attr.type") for key in root.findall("g:key", space)}
    assert (keys["node.layer"], keys["edge.weight"], keys["node.name"]) == ("int", "double", "string")
    edges = root.findall("g:graph/g:edge", space)
    assert [(edge.get("source"), edge.get("target")) for edge in edges] == [edge[:2] for edge in EDGES]
    networkx = pytest.importorskip("networkx", reason="needs the extra graphs")
    read = networkx.read_graphml(tmp_path / "c.graphml")
    assert read.edges[NODES[0], NODES[1]]["weight"] == 3.0
    assert read.nodes[NODES[1]]["head"] == 0


def test_networkx_gets_the_same_graph_directly_and_from_the_file(example, tmp_path):
    networkx = pytest.importorskip("networkx", reason="needs the extra graphs")
    direct = graphs.to_networkx(example)
    data = json.loads(sc.export(example, tmp_path / "c.json", "networkx").read_text())
    from_file = networkx.node_link_graph(data, edges="edges")
    assert direct.nodes == from_file.nodes
    for source, target, attributes in direct.edges(data=True):
        assert attributes.items() <= from_file.edges[source, target].items()
    assert direct.number_of_nodes() == example.n_node
    assert sum(kind == "weight" for *_, kind in direct.edges(data="kind")) == example.n_edge


def test_mib_gets_heads_and_the_channels_that_they_write(circuit):
    found = mib.mib_graph(circuit)
    assert found["cfg"] == {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 8}
    nodes = found["nodes"]
    assert {name: node["in_graph"] for name, node in nodes.items()} == {
        "input": True, "a0.h0": True, "m0": False, "logits": True,
    }  # fmt: skip
    assert nodes["a0.h0"]["score"] == 0.25  # of the value; reads belong to no component
    assert [i for i, written in enumerate(nodes["a0.h0"]["neurons"]) if written] == [3]
    assert [i for i, written in enumerate(nodes["input"]["neurons"]) if written] == [0]
    assert set(found["edges"]) == {"input->a0.h0<v>", "input->logits", "a0.h0->logits"}


def test_mib_components_stand_for_every_query_key_value_and_neuron(example):
    nodes = mib.mib_graph(example)["nodes"]
    kept = {name.split(":")[0] for name in example.node_names()}
    for layer in range(2):
        heads = any(nodes[f"a{layer}.h{h}"]["in_graph"] for h in range(4))
        assert heads == any(f"{layer}.attn.{x}" in kept for x in "qkv")
        assert nodes[f"m{layer}"]["in_graph"] == any(f"{layer}.mlp.{x}" in kept for x in ("post_act", "resid_delta"))


def links_into(graph, target):
    return {link["source"]: link["weight"] for link in graph["links"] if link["target"] == target}


def test_links_of_a_prompt_are_its_contributions(circuit):
    """By hand: attention is uniform over three positions; the stream has one 1 or −1 of eight, so its norm is √8."""
    tokens = [A, FILLER, FILLER]
    graph = attribution_graph(circuit, tokens, [X, Y])
    space = circuit.space
    read, value, write = (space.index(name) for name in NODES)
    root = 8**0.5
    assert links_into(graph, f"0_{read}_0") == {f"E_{A}_0": pytest.approx(root)}
    assert links_into(graph, f"1_{value}_0") == {f"0_{read}_0": pytest.approx(3 * root)}
    assert links_into(graph, f"2_{write}_2") == {f"1_{value}_0": pytest.approx(2 * 3 * root / 3)}
    with torch.no_grad(), circuit.applied(), reading(circuit.model, "final_norm_scale") as seen:
        logits = circuit.model(torch.tensor([tokens]))[0, -1]
    (into,) = [links_into(graph, node["node_id"]) for node in graph["nodes"] if node.get("is_target_logit")]
    assert sum(into.values()) == pytest.approx(float(logits[X]), rel=1e-5)
    assert seen["final_norm_scale"].shape == (1, 3, 1)
    assert B != A


def test_links_into_a_node_of_a_trained_circuit_add_up_to_its_value(example):
    tokens = example.model.tokenizer.encode(example.task["example"][0]["prompt"])
    graph = attribution_graph(example, tokens, [])
    names = {node["clerp"]: node["node_id"].rsplit("_", 1)[0] for node in graph["nodes"]}
    space, values = example.space, example.space.split(example.values)
    with torch.no_grad(), example.applied(), reading(example.model, "1.attn.v.before_topk", "1.attn.act_in") as seen:
        example.model(torch.tensor([tokens]))
    kept = space.split(example.keep)["1.attn.act_in"]
    linear = example.model.linears()["1.attn.qkv"]
    for name in [name for name in example.node_names() if name.startswith("1.attn.v:")]:
        channel = int(name.split(":")[1])
        row = 2 * example.model.config.d_attn + channel
        weight, edges = linear.weight.detach()[row], example.edges["1.attn.qkv"][row]
        constant = float((weight * ~edges) @ values["1.attn.act_in"]) + float(linear.bias.detach()[row])
        assert not (edges & ~kept).any()
        for p in range(len(tokens)):
            total = sum(links_into(graph, f"{names[name]}_{p}").values()) if name in names else 0.0
            if links_into(graph, f"{names[name]}_{p}"):
                assert total + constant == pytest.approx(float(seen["1.attn.v.before_topk"][0, p, channel]), abs=1e-4)


KINDS = {
    "metadata": {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str},
    "node": {
        "node_id": str,
        "feature": int,
        "layer": str,
        "ctx_idx": int,
        "feature_type": str,
        "jsNodeId": str,
        "clerp": str,
    },
    "link": {"source": str, "target": str, "weight": float},
}
"""What Neuronpedia's schema asks for."""


def test_a_prompt_beyond_the_context_and_a_stream_that_is_no_sum_are_refused(example, tmp_path):
    with pytest.raises(FormatError, match=r"the prompt has \d+ tokens, the model's context 64"):
        sc.export(example, tmp_path / "g.json", "neuronpedia", prompt="value = 1\n" * 60)
    config = dataclasses.replace(example.model.config, residual_activation="relu")
    bent = sc.Transformer(config, example.model.tokenizer)
    circuit = sc.Circuit.of_nodes(bent, example.keep, values=example.values, task=example.task)
    with pytest.raises(FormatError, match="the stream of this model passes a nonlinearity"):
        sc.export(circuit, tmp_path / "g.json", "neuronpedia")


def test_neuronpedia_gets_what_its_schema_asks_for(example, tmp_path):
    graph = json.loads(sc.export(example, tmp_path / "g.json", "neuronpedia").read_text())
    records = (
        [("metadata", graph["metadata"])]
        + [("node", n) for n in graph["nodes"]]
        + [("link", x) for x in graph["links"]]
    )
    for kind, record in records:
        assert {key: type(record[key]) for key in KINDS[kind]} == KINDS[kind]
    assert {"qParams", "nodes", "links", "metadata"} == set(graph)
    ids = [node["node_id"] for node in graph["nodes"]]
    assert len(set(ids)) == len(ids)
    assert {end for link in graph["links"] for end in (link["source"], link["target"])} <= set(ids)
    assert "".join(graph["metadata"]["prompt_tokens"]) == example.task["example"][0]["prompt"]
    schema = os.environ.get("NEURONPEDIA_GRAPH_SCHEMA")
    if schema is not None:
        pytest.importorskip("jsonschema").validate(graph, json.loads(Path(schema).read_text()))


def test_a_prompt_of_ones_own_may_be_shown(example, tmp_path):
    path = sc.export(example, tmp_path / "g.json", "neuronpedia", prompt='f("a', answers=('")\n',))
    graph = json.loads(path.read_text())
    assert [node["clerp"].split(" (")[0] for node in graph["nodes"] if node["feature_type"] == "logit"] == [
        "Logit: '\")\\n'"
    ]
    for settings, message in (
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "a", "answers": ("no such token",)}, "not one token each"),
    ):
        with pytest.raises(FormatError, match=message):
            sc.export(example, tmp_path / "h.json", "neuronpedia", **settings)


def test_a_prompt_whose_characters_are_split_over_tokens_is_written_as_it_is(example, tmp_path):
    prompt = 'print("日本 é🙂'
    metadata = json.loads(sc.export(example, tmp_path / "g.json", "neuronpedia", prompt=prompt).read_text())["metadata"]
    assert metadata["prompt"] == prompt
    assert "\ufffd" in "".join(metadata["prompt_tokens"])
    assert len(metadata["prompt_tokens"]) == len(example.model.tokenizer.encode(prompt))


def test_viz_data_is_drawn_from_the_task_again_and_the_commands_bring_it_out_and_in(example, tmp_path, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sparse-circuits", *map(str, arguments)])
        cli.main()

    path = tmp_path / "viz_data.pt"
    run("export", sc.example("circuits/single_double_quote"), path, "--to", "viz_data")
    run("import", path, "--model", sc.example(), "--out", tmp_path / "circuit", "--task", "single_double_quote")
    assert Circuit.load(tmp_path / "circuit").node_names() == example.node_names()
    made = sc.read_viz_data(path).circuit(example.model, means=example.values)
    assert torch.equal(made.keep, example.keep)
    assert all(torch.equal(made.edges[name], example.edges[name]) for name in example.edges)


def test_wrong_requests_are_told_what_would_be_right(circuit, tmp_path):
    with pytest.raises(ConfigError, match="no format is called 'graphlm'; did you mean graphml"):
        sc.export(circuit, tmp_path / "x", "graphlm")
    with pytest.raises(ConfigError, match="neuronpedia has no setting 'promt'; did you mean prompt"):
        sc.export(circuit, tmp_path / "x", "neuronpedia", promt="a")
    with pytest.raises(ConfigError, match=r"mib has no setting 'prompt'$"):
        sc.export(circuit, tmp_path / "x", "mib", prompt="a")
    with pytest.raises(FormatError, match="the model has no tokenizer"):
        sc.export(circuit, tmp_path / "x", "neuronpedia")
    with pytest.raises(TaskError, match=r"can't be drawn again .*; give pairs"):
        sc.export(circuit, tmp_path / "x", "viz_data")
    (tmp_path / "there").touch()
    with pytest.raises(OutputExistsError, match="there is there already"):
        sc.export(circuit, tmp_path / "there", "mib")
    (tmp_path / "table").mkdir()
    (tmp_path / "table/edges.csv").touch()
    with pytest.raises(OutputExistsError, match=r"edges\.csv is there already"):
        sc.export(circuit, tmp_path / "table", "csv")
    with pytest.raises(OutputExistsError, match="mib writes one file"):
        sc.export(circuit, tmp_path, "mib")
    pairs = hand_built_task().split("select")
    sc.export(circuit, tmp_path / "v.pt", "viz_data", pairs=pairs)
    assert sc.read_viz_data(tmp_path / "v.pt").nodes["0.attn.v"] == [0]
