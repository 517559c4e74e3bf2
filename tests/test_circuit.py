"""A circuit runs, seals, counts, saves, loads, and refuses another model."""

import dataclasses

import numpy as np
import pytest
import torch
from hand_built import NODES, hand_built_model, hand_built_task

from sparse_circuits.checkpoint import load_arrays, save_arrays
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import ModelConfig
from sparse_circuits.edges import edges_between
from sparse_circuits.errors import FormatError, OutputExistsError, TapError, WrongModelError
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import Calibration


def circuit_of(model, names, **fields):
    space = NodeSpace.of(model.config)
    keep = torch.zeros(space.n_node, dtype=torch.bool)
    keep[[space.index(name) for name in names]] = True
    values = fields.pop("values", torch.zeros(space.n_node))
    return Circuit.of_nodes(
        model, keep, values=values, calibration=Calibration(), task={"name": "t", "hash": "h", "seed": 0}, **fields
    )


def random_model(seed=0, **settings):
    torch.manual_seed(seed)
    shape = {"n_vocab": 11, "n_ctx": 9, "n_layer": 2, "d_model": 12, "n_head": 2, "d_head": 3, "d_mlp": 10}
    model = Transformer(ModelConfig(**{**shape, "act_density": 0.5, **settings}))
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.6)
    return model.eval()


def test_the_known_circuit_has_three_nodes_and_two_edges():
    circuit = circuit_of(hand_built_model(), NODES)
    assert (circuit.n_node, circuit.n_edge) == (3, 2)
    assert circuit.node_names() == NODES
    # The mark's channel is read of two tokens, the written one read by two answers.
    assert circuit.n_embedding_edge() == {"embedding": 2, "unembedding": 2}


def test_one_neuron_with_its_read_and_its_write_is_three_nodes_and_two_edges():
    # The paper's own example of counting (footnote 3).
    circuit = circuit_of(hand_built_model(), ["0.mlp.act_in:1", "0.mlp.post_act:2", "0.mlp.resid_delta:5"])
    assert (circuit.n_node, circuit.n_edge) == (3, 2)


def test_the_known_circuit_answers_exactly_as_the_model_also_sealed():
    model, pairs = hand_built_model(), hand_built_task().split("test")
    whole = circuit_of(model, NodeSpace.of(model.config).names(torch.ones(48, dtype=torch.bool)))
    circuit = circuit_of(model, NODES)
    expected = whole.logit_difference(pairs)
    assert float(expected.abs().min()) > 1
    # The other write is gone from the last norm's denominator, so differences may only grow, with the same sign ...
    assert torch.equal(circuit.logit_difference(pairs).sign(), expected.sign())
    # ... and with the model's own norms they are the model's.
    torch.testing.assert_close(circuit.logit_difference(pairs, sealed=True), expected)


def test_a_circuit_of_all_nodes_is_the_model_bit_for_bit():
    model = random_model()
    space = NodeSpace.of(model.config)
    circuit = circuit_of(model, space.names(torch.ones(space.n_node, dtype=torch.bool)))
    tokens = torch.randint(11, (3, 9))
    with torch.no_grad():
        expected = model(tokens)
    assert torch.equal(circuit.run(tokens), expected)
    torch.testing.assert_close(circuit.run(tokens, sealed=True), expected)


def test_removing_every_edge_of_a_node_is_removing_what_it_says():
    model = random_model(act_density=None)
    space, tokens = NodeSpace.of(model.config), torch.randint(11, (2, 9))
    keep = torch.rand(space.n_node) < 0.7
    values = torch.randn(space.n_node)
    node = int(space.split(keep)["1.mlp.post_act"].nonzero()[0])
    base = circuit_of(model, space.names(keep), values=values)
    edges = {name: e.clone() for name, e in base.edges.items()}
    edges["1.mlp.fc_out"][:, node] = False
    cut = dataclasses.replace(base, edges=edges)
    without = keep.clone()
    without[space.index(f"1.mlp.post_act:{node}")] = False
    # Weights into writes outside the circuit don't matter: those are at their ablation values anyway.
    torch.testing.assert_close(cut.run(tokens), circuit_of(model, space.names(without), values=values).run(tokens))


def test_every_edge_is_a_nonzero_weight_between_two_kept_nodes():
    model = random_model()
    space = NodeSpace.of(model.config)
    keep = torch.rand(space.n_node) < 0.5
    keeps, n_edge = space.split(keep), 0
    for layer, block in enumerate(model.blocks):
        attn, mlp = block.attn, block.mlp
        for i, site in enumerate(("q", "k", "v")):
            weight = attn.qkv.weight[6 * i : 6 * i + 6]
            n_edge += int((weight[keeps[f"{layer}.attn.{site}"]][:, keeps[f"{layer}.attn.act_in"]] != 0).sum())
        v, write = keeps[f"{layer}.attn.v"], keeps[f"{layer}.attn.resid_delta"]
        n_edge += int((attn.out.weight[write][:, v] != 0).sum())
        neuron = keeps[f"{layer}.mlp.post_act"]
        n_edge += int((mlp.fc_in.weight[neuron][:, keeps[f"{layer}.mlp.act_in"]] != 0).sum())
        n_edge += int((mlp.fc_out.weight[keeps[f"{layer}.mlp.resid_delta"]][:, neuron] != 0).sum())
    assert sum(int(e.sum()) for e in edges_between(model, keep).values()) == n_edge > 0


def test_a_circuit_that_was_saved_and_loaded_gives_the_same_numbers(tmp_path):
    model = random_model()
    space = NodeSpace.of(model.config)
    saved = circuit_of(
        model,
        space.names(torch.rand(space.n_node) < 0.4),
        values=torch.randn(space.n_node),
        history=[{"step": 0, "loss": 1.0, "n_node": 3.0}],
        effects={"0.attn.q:1": 0.25},
    )
    saved.calibration = Calibration(scale=2.0, shift=-0.5)
    saved.save(tmp_path / "circuit")
    loaded = Circuit.load(tmp_path / "circuit", model)
    tokens = torch.randint(11, (2, 9))
    for sealed in (False, True):
        assert torch.equal(loaded.run(tokens, sealed=sealed), saved.run(tokens, sealed=sealed))
    assert loaded.calibration == saved.calibration
    assert (loaded.history, loaded.effects, loaded.n_edge) == (saved.history, saved.effects, saved.n_edge)


def test_another_model_is_refused_by_name(tmp_path):
    circuit_of(hand_built_model(), NODES).save(tmp_path / "circuit")
    other = hand_built_model()
    other.unembedding.weight.data[0, 0] = 1
    with pytest.raises(WrongModelError, match=r"cut from model [0-9a-f]{12} .* this is model [0-9a-f]{12}"):
        Circuit.load(tmp_path / "circuit", other)


def test_a_finished_circuit_is_not_written_over(tmp_path):
    circuit_of(hand_built_model(), NODES).save(tmp_path / "circuit")
    with pytest.raises(OutputExistsError, match="already holds a finished circuit"):
        circuit_of(hand_built_model(), NODES[:1]).save(tmp_path / "circuit")
    assert Circuit.load(tmp_path / "circuit", hand_built_model()).n_node == 3


def test_a_circuit_that_is_not_whole_is_refused(tmp_path):
    folder = tmp_path / "circuit"
    circuit_of(hand_built_model(), NODES).save(folder)
    (folder / "DONE").unlink()
    with pytest.raises(FormatError, match="not written to its end"):
        Circuit.load(folder, hand_built_model())
    (folder / "DONE").touch()
    data = (folder / "masks.safetensors").read_bytes()
    (folder / "masks.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match=r"masks\.safetensors: truncated"):
        Circuit.load(folder, hand_built_model())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({}, "task.name is None, expected str"),
        ({"name": "t"}, "task.hash is None, expected str"),
        ({"name": "t", "hash": "0"}, "task.seed is None, expected int"),
        ({"name": "t", "hash": "0", "seed": 0, "path": 3}, r"task.path is 3, expected str \| None"),
        ({"name": "t", "hash": "", "seed": 0, "max_token": "long"}, r"task.max_token is 'long', expected int \| None"),
    ],
)
def test_a_task_that_is_not_described_is_refused_by_name(task, message, tmp_path):
    circuit = circuit_of(hand_built_model(), NODES)
    circuit.task = task
    circuit.save(tmp_path / "circuit")
    with pytest.raises(FormatError, match=rf"circuit\.json: {message}"):
        Circuit.load(tmp_path / "circuit", hand_built_model())


@pytest.mark.parametrize("name", ["keep", "values", "edges.0.attn.qkv.values"])
def test_masks_of_another_type_are_refused_by_name(name, tmp_path):
    circuit_of(hand_built_model(), NODES).save(tmp_path / "circuit")
    path = tmp_path / "circuit/masks.safetensors"
    header, arrays = load_arrays(path, "sparse-circuits circuit", 1)
    save_arrays(path, {**arrays, name: arrays[name].astype(np.int32)}, header)
    with pytest.raises(FormatError, match=rf"masks\.safetensors: {name} holds int32, expected"):
        Circuit.load(tmp_path / "circuit", hand_built_model())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b'{"a": "\xff"}\n'), "can't be read"),
        (lambda path: (path.unlink(), path.mkdir()), "can't be read"),
        (lambda path: path.write_text('{"step": 0}\n[1]\n'), "line 2 is a list, expected an object"),
    ],
)
def test_a_circuit_whose_history_is_damaged_is_refused_by_name(damage, message, tmp_path):
    circuit_of(hand_built_model(), NODES, history=[{"step": 0, "loss": 1.0}]).save(tmp_path / "circuit")
    damage(tmp_path / "circuit/history.jsonl")
    with pytest.raises(FormatError, match=rf"history\.jsonl: {message}"):
        Circuit.load(tmp_path / "circuit", hand_built_model())


def test_a_history_whose_last_line_is_cut_short_is_read_up_to_it(tmp_path):
    circuit_of(hand_built_model(), NODES, history=[{"step": 0, "loss": 1.0}]).save(tmp_path / "circuit")
    with (tmp_path / "circuit/history.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    assert Circuit.load(tmp_path / "circuit", hand_built_model()).history == [{"step": 0, "loss": 1.0}]


def test_a_circuit_without_a_recorded_model_asks_for_it(tmp_path):
    circuit_of(hand_built_model(), NODES).save(tmp_path / "circuit")
    with pytest.raises(FormatError, match=r"pass the model"):
        Circuit.load(tmp_path / "circuit")


@pytest.mark.parametrize("name", ["0.attn.act_in:8", "0.attn.act_in:", "0.attn.act:1", "nothing"])
def test_a_name_that_is_no_node_is_refused(name):
    with pytest.raises(TapError, match=r"is not a node|no location is called"):
        NodeSpace.of(hand_built_model().config).index(name)
