"""The commands of bridges: one thing each, and every bad input is one clear line."""

import dataclasses
import itertools
import json
import shutil

import pytest
import torch

from sparse_circuits.ablation import run_of
from sparse_circuits.bridges.maps import Bridge
from sparse_circuits.bridges.paths import _some_windows, held_out, measure, transition
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import TrainConfig
from sparse_circuits.examples import example
from sparse_circuits.loading import load
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.runlog import read_records
from sparse_circuits.training import train


@pytest.fixture(scope="module")
def runs(untrained_run, tmp_path_factory):
    """A sparse and a dense run of two steps on one corpus, wide enough for a null band."""
    folder = tmp_path_factory.mktemp("runs")
    config, corpus = run_of(untrained_run)
    sparse = dataclasses.replace(config, model=dataclasses.replace(config.model, d_model=64))
    free = dataclasses.replace(
        sparse.sparsity, matrix_density=1.0, embedding_density=1.0, bias_density=1.0, n_alive=0, anneal="none"
    )
    dense = dataclasses.replace(sparse, model=dataclasses.replace(sparse.model, act_density=None), sparsity=free)
    for name, run in (("sparse", sparse), ("dense", dense)):
        train(run, corpus=corpus, out=folder / name)
    return folder


@pytest.fixture(scope="module")
def quick(runs):
    """A quick bridge between them."""
    from sparse_circuits.bridges.ridge import quick_bridge
    from sparse_circuits.configs import BridgeConfig

    found = quick_bridge(BridgeConfig(n_ridge_token=2_000), dense=runs / "dense", sparse=runs / "sparse")
    found.save(runs / "quick")
    return runs / "quick"


def test_bridge_starts_from_a_run_says_what_it_wrote_and_groups_of_hybrids_learn_the_same(command, runs, tmp_path):
    settings = ["--sparse", runs / "sparse", "--n-token", 6 * 2 * 64, "--batch-size", 2, "--n-ridge-token", 2_000]
    code, out, err = command("bridge", runs / "dense", "--out", tmp_path / "whole", *settings, "--json")
    assert code == 0, code
    assert json.loads(out)["step"] == 5
    assert f"wrote {tmp_path / 'whole'}" in err
    assert "KL" in err
    code, out, _ = command("bridge", runs / "dense", "--out", tmp_path / "whole", *settings)
    assert "already holds a finished run" in str(code)
    code, out, _ = command("bridge", runs / "dense", "--out", tmp_path / "again", *settings, "--hybrids-at-once", 1)
    assert code == 0, code
    assert "bridges at 3 sites, trained; sparse stream 64 wide, dense 64" in out
    whole, again = (read_records(tmp_path / name / "metrics.jsonl") for name in ("whole", "again"))
    # The same gradients, summed in another order.
    assert [r["loss"] for r in again] == pytest.approx([r["loss"] for r in whole], rel=1e-4)


def test_a_quick_bridge_is_reported_as_such(command, runs, tmp_path):
    arguments = ["bridge", runs / "dense", "--quick", "--out", tmp_path / "q", "--n-ridge-token", 2_000]
    code, _, _ = command(*arguments)
    assert "name the sparse one, --sparse RUN" in str(code)
    code, _, _ = command(*arguments, "--sparse", runs / "sparse", "--train", runs / "sparse/config.json")
    assert "--train has no effect" in str(code)
    code, out, _ = command(*arguments, "--sparse", runs / "sparse")
    assert code == 0, code
    assert "ridge regression on recorded streams; no model was trained" in out
    code, _, _ = command(*arguments, "--sparse", runs / "nothing")
    assert "already holds a finished bridge" in str(code)  # said before anything is opened


def test_hybrids_prints_every_transition_beside_its_anchors(command, quick, runs, tmp_path):
    code, out, _ = command("hybrids", quick, "--n-token", 512, "--beside", runs / "sparse", "--out", tmp_path / "h")
    assert code == 0, code
    found = json.loads((tmp_path / "h/hybrids.json").read_text())
    by_key = {(r["site"], r["to"], r["kind"]): r for r in found["transitions"]}
    assert len(by_key) == 3 * 2 * 2  # the bridge is a ridge bridge itself, and the mean-ablated streams
    bridge = Bridge.load(quick)
    windows = held_out(run_of(runs / "sparse")[1], run_of(runs / "sparse")[0], n_token=512, n_ctx=64)
    own = measure({"own": transition(bridge, 1, to_sparse=True)}, bridge.dense, windows)["own"]
    assert (by_key[1, "sparse", "ridge"]["ce"], by_key[1, "sparse", "ridge"]["kl"]) == pytest.approx(own)
    anchors = {a["name"]: a for a in found["anchors"]}
    assert anchors["dense model"]["kl"] == pytest.approx(0, abs=1e-5)
    assert anchors[str(runs / "sparse")]["kl"] == pytest.approx(anchors["sparse model alone"]["kl"], rel=1e-5)
    assert "untrained" in out
    assert "bigram table" in out
    for path in found["random_paths_untrained"]:
        changes = sum(a != b for a, b in itertools.pairwise(path["path"]))
        assert changes >= 2, "single transitions are trained, and stand in a table of their own"
    assert "<svg" in (tmp_path / "h/hybrids.svg").read_text()
    assert all(len(p["path"]) == 4 for p in found["random_paths_untrained"])


def test_held_out_text_keeps_its_shares_where_a_source_is_short():
    class Text:
        def windows(self, source, split, *, context, n_token):
            n_there = {"short": 9, "long": 1000}[source]
            return torch.full((min(n_there, n_token // context), context), len(source))

    config = TrainConfig(n_token=10_000, shares={"short": 0.6, "long": 0.4}, context=8)
    windows = held_out(Text(), config, n_token=8 * 100, n_ctx=64)  # pyright: ignore
    assert windows[:, 0].tolist() == [5] * 9 + [4] * 6
    some = _some_windows(windows, 8 * 5)
    assert some[:, 0].tolist() == [5, 5, 5, 4, 4]
    assert len(_some_windows(windows, 10_000)) == 15


def test_steer_writes_a_table_a_picture_and_a_file(command, quick, tmp_path):
    sizes = ["--n-pair", 8, "--n-null-pair", 1, "--n-null-row", 100, "--n-select-pair", 4, "--n-try", 2]
    sizes += [
        "--n-neutral-token",
        128,
        "--n-ridge-token",
        1_000,
        "--other-tasks",
        "with_as",
        "final_kwarg",
        "--strengths",
        0,
        1,
    ]
    code, out, err = command("steer", quick, "single_double_quote", "--find", "--out", tmp_path / "s", *sizes)
    assert code == 0, code
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"steer.json", "steer.svg"}
    assert "null band of 100 rows at equal norm on 1 pairs" in out
    assert "accuracy on with_as" in out
    assert "left out: task final_kwarg: only 0 of" in out
    assert "wrote" in err
    found = json.loads((tmp_path / "s/steer.json").read_text())
    assert len(found["candidates"]) == 2
    assert found["split"] == "test"


def test_what_steer_refuses(command, quick, tmp_path):
    steer = ["steer", quick, "single_double_quote", "--out", tmp_path / "s"]
    for arguments, message in (
        ([], "name a node with --node, or say --find"),
        (["--find", "--node", "0.attn.act_in:1"], "not both"),
        (["--node", "0.attn.q:1"], "the nearest that are: 0.attn.act_in and 0.mlp.act_in, channels 0 to 63"),
        (["--find", "--strengths", "0", "nan", "1"], "strength nan is not a finite number"),
    ):
        code, _, _ = command(*steer, *arguments)
        assert message in str(code)
    code, _, _ = command(*steer, "--find", "--strengths", "0", "1", "0.5")
    assert "strengths 0 1 0.5 must rise" in str(code)
    code, _, err = command(*steer, "--find", "--strengths", "0", "much", "1")
    assert code != 0
    assert "much" in err
    assert not (tmp_path / "s").exists()


def test_transfer_carries_a_circuit_of_this_sparse_model_alone(command, quick, runs, tmp_path):
    model = load(runs / "sparse")
    keep = NodeSpace.of(model.config)
    chosen = torch.zeros(keep.n_node, dtype=torch.bool)
    chosen[[keep.index("0.attn.act_in:3"), keep.index("0.mlp.act_in:5")]] = True
    edges = {name: torch.zeros_like(linear.weight, dtype=torch.bool) for name, linear in model.linears().items()}
    circuit = Circuit(
        model=model,
        keep=chosen,
        edges=edges,
        values=torch.zeros(keep.n_node),
        task={"name": "with_as", "seed": 0, "hash": ""},
    )
    circuit.save(tmp_path / "c")
    code, _, _ = command("transfer", quick, tmp_path / "c", "--n-set", 0)
    assert "n_set is 0, expected 1 or more" in str(code)
    code, out, _ = command("transfer", quick, tmp_path / "c", "--n-pair", 8, "--n-set", 2)
    assert code == 0, code
    circuit.task |= {"hash": "0" * 64}
    circuit.save(tmp_path / "other")
    code, _, _ = command("transfer", quick, tmp_path / "other")
    assert "the circuit was cut for with_as with other prompts (000000000000)" in str(code)
    assert [r["what"] for r in Circuit.load(tmp_path / "c", model).test_readings] == ["transfer"]
    rows = json.loads((tmp_path / "c/transfer.json").read_text())["rows"]
    assert [(row["location"], row["n_node"]) for row in rows] == [("0.attn.act_in", 1), ("0.mlp.act_in", 1)]
    assert "share of the dense model's logit difference that survives" in out
    code, _, _ = command("transfer", quick, example("circuits/single_double_quote"))
    assert "cut from model" in str(code)
    assert "this is model" in str(code)


@pytest.mark.parametrize("how", [["--quick"], ["--n-token", 256, "--batch-size", 2]])
def test_a_corpus_that_is_named_takes_the_place_of_the_runs_own(command, runs, tmp_path, how):
    alone = shutil.copytree(runs / "sparse", tmp_path / "alone/run")  # its corpus does not lie where it did
    corpus = ["--corpus", run_of(runs / "sparse")[1].folder]
    arguments = ["bridge", runs / "dense", "--sparse", alone, "--out", tmp_path / "b", "--n-ridge-token", 500, *how]
    code, _, _ = command(*arguments, *corpus)
    assert code == 0, code
    assert (tmp_path / "b/DONE").exists()


def test_models_of_other_depth_or_tokens_are_refused_by_the_command(command, runs, tmp_path):
    corpus = ["--corpus", run_of(runs / "sparse")[1].folder]
    arguments = ["--out", tmp_path / "b", "--n-ridge-token", 500, *corpus]
    code, _, _ = command("bridge", example(), "--sparse", runs / "sparse", *arguments)
    assert "the sparse model has 1 layers, the dense one 2: give a map in `sites`" in str(code)
    code, _, _ = command("bridge", example(), "--sparse", runs / "sparse", *arguments, "--sites", "0:0", "2:4")
    assert "another tokenizer" in str(code)
    assert "corpus --tokenizer" in str(code)
    code, _, _ = command("bridge", runs / "dense", "--sparse", tmp_path / "nothing", *arguments)
    assert "not a finished run" in str(code)
    assert not (tmp_path / "b").exists()


def test_a_bridge_whose_models_changed_is_refused_by_hash(command, quick, runs, tmp_path):
    described = json.loads((quick / "bridge.json").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("bridges.safetensors", "DONE"):
        (moved / name).write_bytes((quick / name).read_bytes())
    for entry in ("dense", "sparse"):
        described[entry]["path"] = str(runs / "sparse")
    (moved / "bridge.json").write_text(json.dumps(described))
    code, _, _ = command("hybrids", moved)
    assert f"its dense model is {described['dense']['hash'][:12]}" in str(code)


def test_a_bridge_file_that_lacks_a_field_or_has_another_kind_is_named(command, quick, tmp_path):
    described = json.loads((quick / "bridge.json").read_text())
    for name, value, message in (
        ("rms", None, "rms is None, expected a list"),
        ("sites", [[0]], "sites must be pairs"),
        ("sites", described["sites"][:1], "1 sites and 3 rms"),
        ("density", 2, "density is 2, expected a number in (0, 1] or null"),
        ("dense", {"path": 3, "hash": "x"}, "dense needs a hash, and a path or null"),
    ):
        (tmp_path / "bridge.json").write_text(json.dumps(described | {name: value}))
        code, _, _ = command("hybrids", tmp_path)
        assert f"bridge.json: {message}" in str(code)


def test_bridges_behind_the_last_sublayer_alone_have_no_node_to_steer_with(command, runs, tmp_path):
    settings = ["--sparse", runs / "sparse", "--quick", "--n-ridge-token", 500, "--sites", "2:2"]
    code, _, _ = command("bridge", runs / "dense", "--out", tmp_path / "b", *settings)
    assert code == 0, code
    for how in (["--find"], ["--node", "0.attn.act_in:1"]):
        code, _, _ = command("steer", tmp_path / "b", "with_as", "--out", tmp_path / "s", *how)
        assert "no bridge stands before a sublayer of both models (sites 2:2)" in str(code)


def test_a_corpus_is_cut_into_a_given_tokenizers_tokens(command, runs, tmp_path):
    tokenizer = runs / "dense/tokenizer.json"
    arguments = ["--sources", "idioms", "--max-token", 5_000, "--tokenizer", tokenizer]
    code, _, _ = command("corpus", "--out", tmp_path / "c", *arguments)
    assert code == 0, code
    assert (tmp_path / "c/tokenizer.json").read_bytes() == tokenizer.read_bytes()
    assert json.loads((tmp_path / "c/index.json").read_text())["config"]["n_vocab"] == 1024
