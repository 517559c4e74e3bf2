"""The release's circuit files: written from a circuit whose parts are known, read back, and run."""

import math

import pytest
import torch
from hand_built import NODES, A, hand_built_model, hand_built_task, random_model

import sparse_circuits as sc
from sparse_circuits.circuit import Circuit
from sparse_circuits.errors import FormatError, WrongModelError
from sparse_circuits.interop.viz_data import read_viz_data
from sparse_circuits.interop.viz_data_export import write_viz_data
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import CHANCE, all_logit_differences, task_loss


@pytest.fixture
def circuit():
    model, task = hand_built_model(), hand_built_task()
    space = NodeSpace.of(model.config)
    keep = torch.zeros(space.n_node, dtype=torch.bool)
    keep[[space.index(name) for name in NODES]] = True
    return Circuit.of_nodes(
        model,
        keep,
        values=torch.zeros(space.n_node),
        task={"name": task.name, "hash": task.hash, "seed": 0},
        effects={"0.attn.act_in:0 → 0.attn.v:0": 0.25},
        history=[{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.6}, {"step": 2, "loss": 0.1}],
        settings={"lr": 0.01, "beta2": 0.95, "seed": 3},
    )


@pytest.fixture
def path(circuit, tmp_path):
    pairs = hand_built_task().split("select")
    write_viz_data(circuit, tmp_path / "viz_data.pt", pairs=pairs, text=pairs.tokens.flatten(0, 1))
    return tmp_path / "viz_data.pt"


def test_the_file_has_the_releases_structure(path, circuit):
    data = torch.load(path, weights_only=True)
    assert set(data) == {
        "all_loss", "circuit_data", "is_kiter_bug_fixed", "num_total_nodes", "prune_config", "samples", "importances",
    }  # fmt: skip
    assert set(data["importances"]) == {
        "beeg_model_config", "loss", "interv_loss", "ch_interv_losses", "layer_interv_losses", "loc_interv_losses",
        "pair_data", "pair_data_connections", "task_samples", "task_samples_circuit",
    }  # fmt: skip
    assert list(data["circuit_data"]) == [*circuit.space.widths, "final_resid"]
    assert data["circuit_data"]["0.attn.v"].tolist() == [0]
    assert data["all_loss"] == [(0, 1.0), (1, 1.0), (2, 0.2)]
    assert data["num_total_nodes"] == circuit.n_node_total + 8
    assert {
        "heaviside_temp",
        "init_noise_bias",
        "init_noise_scale",
        "inv_beta2",
        "logk_coef",
        "lr",
        "seed",
        "wd",
    } <= set(data["prune_config"])
    ((channel, by_share),) = data["samples"]["0.attn.v"].items()
    assert (channel.ndim, int(channel)) == (0, 0)
    assert set(by_share) == {0.001, 0.01, 0.1, 0.5}
    tokens, activations, position = by_share[0.001][1][0]
    assert (int(tokens[position]), position) == (A, 0)  # value 0 is highest at the first token of a prompt of side 0
    assert activations[position] == activations.max()
    prompts, acts = data["importances"]["task_samples"]
    assert prompts.shape == (32, 7)
    assert acts["0.attn.v"][0].shape == (32, 7)


def test_edges_stand_source_by_target_with_the_biases_behind(path):
    data = torch.load(path, weights_only=True)["importances"]
    pairs = {pair[3]: pair for pair in data["pair_data_connections"]}
    matrix, sources, targets, _ = pairs["0.attn.act_in", "0.attn.v"]
    assert (matrix.tolist(), sources, targets) == ([[3.0], [0.0]], [0, "bias"], [0])
    matrix, sources, targets, _ = pairs["0.attn.v", "0.attn.resid_delta"]
    assert (matrix.tolist(), sources, targets) == ([[2.0], [0.0]], [0, "bias"], [3])
    assert len(pairs) == 6
    effects = {pair[3]: pair[0] for pair in data["pair_data"]}
    assert effects["0.attn.act_in", "0.attn.v"].tolist() == [[0.5], [0.0]]


def test_losses_are_twice_ours_in_the_file_and_ours_when_read(path, circuit):
    pairs = hand_built_task().split("select")
    stored = torch.load(path, weights_only=True)["importances"]
    ours = float(task_loss(all_logit_differences(circuit.model, pairs)[0]))
    assert stored["loss"] == pytest.approx(2 * ours)
    found = read_viz_data(path)
    assert found.loss == pytest.approx(ours)
    assert found.circuit_loss < 0.1 < CHANCE
    for name in NODES:  # without any of the three nothing is known of the first token
        assert found.node_losses[name] == pytest.approx(CHANCE, abs=1e-4)
    assert found.layer_losses["0.attn"] == pytest.approx(CHANCE, abs=1e-4)
    assert found.layer_losses["0.mlp"] == pytest.approx(found.circuit_loss)
    assert found.location_losses["0.attn.q"] == pytest.approx(found.circuit_loss)
    assert found.curve[-1] == (2, pytest.approx(0.1))


def test_what_is_read_makes_the_same_circuit_and_it_runs(path, circuit):
    found = read_viz_data(path)
    assert found.edges == {"0.attn.act_in:0 → 0.attn.v:0": 3.0, "0.attn.v:0 → 0.attn.resid_delta:3": 2.0}
    made = found.circuit(circuit.model, task="first_token", means=circuit.values)
    assert torch.equal(made.keep, circuit.keep)
    assert all(torch.equal(made.edges[name], circuit.edges[name]) for name in circuit.edges)
    tokens = torch.tensor([[A, 2, 2]])
    assert torch.equal(made.run(tokens), circuit.run(tokens))
    assert made.effects["0.attn.act_in:0 → 0.attn.v:0"] == pytest.approx(0.25)
    assert made.settings["lacks"][:2] == list(found.lacks[:2])


def test_what_was_imported_is_exported_and_imported_again(path, circuit, tmp_path):
    pairs = hand_built_task().split("select")
    first = read_viz_data(path)
    made = first.circuit(circuit.model, means=circuit.values)
    write_viz_data(made, tmp_path / "again.pt", pairs=pairs, text=pairs.tokens.flatten(0, 1))
    second = read_viz_data(tmp_path / "again.pt")
    again = second.circuit(circuit.model, means=circuit.values)
    assert torch.equal(again.keep, circuit.keep)
    assert all(torch.equal(again.edges[name], circuit.edges[name]) for name in circuit.edges)
    assert again.task["seed"] == made.task["seed"] == 3
    assert first.settings.items() <= second.settings.items()


def test_a_file_without_a_seed_makes_a_circuit_of_seed_0(circuit, tmp_path):
    circuit.settings = {}
    pairs = hand_built_task().split("select")
    write_viz_data(circuit, tmp_path / "v.pt", pairs=pairs, text=pairs.tokens.flatten(0, 1))
    found = read_viz_data(tmp_path / "v.pt")
    assert (found.settings["seed"], found.seed) == (None, 0)
    assert found.circuit(circuit.model, means=circuit.values).task["seed"] == 0


def test_an_edge_that_the_file_lacks_is_cut(circuit, tmp_path):
    circuit.edges["0.attn.out"] = torch.zeros_like(circuit.edges["0.attn.out"])
    pairs = hand_built_task().split("select")
    write_viz_data(circuit, tmp_path / "v.pt", pairs=pairs, text=pairs.tokens.flatten(0, 1))
    made = read_viz_data(tmp_path / "v.pt").circuit(circuit.model, means=circuit.values)
    assert made.n_edge == 1


def test_a_circuit_without_edges_comes_back_without_any(circuit, tmp_path):
    circuit.edges = {name: torch.zeros_like(edges) for name, edges in circuit.edges.items()}
    pairs = hand_built_task().split("select")
    write_viz_data(circuit, tmp_path / "v.pt", pairs=pairs, text=pairs.tokens.flatten(0, 1))
    found = read_viz_data(tmp_path / "v.pt")
    assert found.edges == {}
    assert found.circuit(circuit.model, means=circuit.values).n_edge == 0


@pytest.mark.parametrize("kept", ["absent", [], [[], []]])
def test_a_file_that_says_nothing_of_edges_keeps_all_between_its_nodes(kept, path, circuit):
    data = torch.load(path, weights_only=True)
    data["importances"]["pair_data_connections"] = kept
    if kept == "absent":
        del data["importances"]["pair_data_connections"]
    torch.save(data, path)
    found = read_viz_data(path)
    assert found.edges is None
    assert found.circuit(circuit.model, means=circuit.values).n_edge == circuit.n_edge == 2


def test_means_are_computed_over_the_text_that_is_given(path, circuit):
    tokens = torch.tensor([[A, 2, 2, 2]])
    made = read_viz_data(path).circuit(circuit.model, tokens=tokens)
    with torch.no_grad(), sc.reading(circuit.model, "0.mlp.post_act") as seen:
        circuit.model(tokens)
    values = made.space.split(made.values)["0.mlp.post_act"]
    torch.testing.assert_close(values, seen["0.mlp.post_act"].mean((0, 1)))
    assert made.settings["means"] == "corpus"
    assert read_viz_data(path).circuit(circuit.model).settings["means"] == "prompts"


def test_padding_goes_and_prompts_stay(path):
    found, pairs = read_viz_data(path), hand_built_task().split("select")
    # Token 0 is A: only a prompt that ends in A on both sides would be cut short, and none does.
    assert torch.equal(found.lengths, pairs.length[:16])
    for i in range(16):
        n = int(found.lengths[i])
        assert torch.equal(found.prompts[i, :, :n], pairs.tokens[i, :, :n])
        assert not found.prompts[i, :, n:].any()


def test_the_file_says_what_it_lacks(path):
    found = read_viz_data(path)
    assert [what.split()[1] for what in found.lacks] == ["mean", "calibration"]
    assert "mean activations" in found.lacks[0]


def test_lists_of_each_process_are_joined_as_the_release_does(path):
    data = torch.load(path, weights_only=True)
    for name in ("pair_data", "pair_data_connections"):
        data["importances"][name] = [data["importances"][name][:2], data["importances"][name][2:]]
    before = read_viz_data(path).edges
    torch.save(data, path)
    assert read_viz_data(path).edges == before


def test_another_model_is_refused(path, circuit):
    with pytest.raises(WrongModelError, match="of a model with n_layer 1, this one has 2"):
        read_viz_data(path).circuit(random_model())
    with torch.no_grad():
        circuit.model.linears()["0.attn.out"].weight[3, 0] = 9.0
    with pytest.raises(WrongModelError, match="1 of the circuit's 2 edges have another weight"):
        read_viz_data(path).circuit(circuit.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("importances"), "KeyError: 'importances'"),
        (lambda d: d["importances"].update(loss="low"), "ValueError"),
        (lambda d: d["importances"].update(pair_data_connections=[[torch.ones(2, 2), [0], [0], ("a", "b")]]), "shape"),
        (lambda d: d["importances"].update(task_samples=(torch.ones(3, 4), {})), "even number of rows"),
        (lambda d: d["circuit_data"].update({"0.attn.v": None}), "TypeError"),
        (lambda d: d["prune_config"].update(seed="three"), "ValueError"),
    ],
)
def test_another_structure_is_refused_by_name(change, message, path):
    data = torch.load(path, weights_only=True)
    change(data)
    torch.save(data, path)
    with pytest.raises(FormatError, match=message) as caught:
        read_viz_data(path)
    assert "viz_data.pt" in str(caught.value)


def test_a_channel_that_the_model_lacks_is_refused(path, circuit):
    data = torch.load(path, weights_only=True)
    data["circuit_data"]["0.attn.v"] = torch.tensor([99])
    data["importances"]["ch_interv_losses"]["0.attn.v"] = [math.log(2)]
    torch.save(data, path)
    with pytest.raises(WrongModelError, match=r"no 0.attn.v with channels up to 99"):
        read_viz_data(path).circuit(circuit.model)
