"""All circuits of a model in one folder: what is solved is pruned, what is not is named, and a second call goes on."""

import dataclasses
import json
import shutil
import xml.etree.ElementTree as ET
from functools import partial

import pytest
from hand_built import hand_built_model

import sparse_circuits as sc
from sparse_circuits import survey
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import ConfigError, PruneError
from sparse_circuits.pruning import Pruning
from sparse_circuits.survey import geometric_mean, mean_count, table
from sparse_circuits.tasks import sampling
from sparse_circuits.tasks.sampling import SplitSizes
from sparse_circuits.viewer.curves import draw_curves, draw_models


@pytest.fixture(scope="module", autouse=True)
def fewer_pairs():
    """A fifth of the pairs of each split: what is tested is the survey, not how well it knows a loss."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "SplitSizes", partial(SplitSizes, fit=200, select=80, test=80, hard=8))
        yield


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory):
    model, out = sc.load(sc.example()), tmp_path_factory.mktemp("survey")
    config = PruneConfig(n_step=60, cuts_edges=False, target_loss=0.3, max_auroc=1.0, n_mean_token=1)
    names = ["single_double_quote", "var_swap", "not_a_task"]
    return model, out, config, names, sc.prune_all(model, out, config, names=names)


def test_a_solved_task_is_pruned_and_the_others_are_skipped_with_the_reason(surveyed):
    _, out, _, _, summary = surveyed
    assert list(summary["tasks"]) == ["single_double_quote"]
    row = summary["tasks"]["single_double_quote"]
    assert row["model_loss"] < 0.1
    assert row["circuit_loss"] < 0.4
    assert row["n_node"] < 60
    assert (row["is_control"], row["is_bigram_solvable"]) == (False, False)
    assert "does not solve it: loss" in summary["skipped"]["var_swap"]
    assert "no task is called 'not_a_task'" in summary["skipped"]["not_a_task"]
    assert summary["geometric_means"]["n_node"] == pytest.approx(row["n_node"])
    assert json.loads((out / "summary.json").read_text())["tasks"].keys() == summary["tasks"].keys()
    told = table(summary)
    assert "skipped var_swap" in told
    assert "geometric means" in told


def test_a_second_call_keeps_the_circuits_that_are_there_solved_or_not(surveyed, monkeypatch):
    model, out, config, names, summary = surveyed
    monkeypatch.setattr(survey, "SOLVED", 0.0)
    before = (out / "single_double_quote/masks.safetensors").stat().st_mtime_ns
    again = sc.prune_all(model, out, config, names=names)
    assert (out / "single_double_quote/masks.safetensors").stat().st_mtime_ns == before
    assert (
        again["tasks"]["single_double_quote"]["circuit_loss"] == summary["tasks"]["single_double_quote"]["circuit_loss"]
    )
    assert summary["tasks"]["single_double_quote"]["seconds"] > 0
    assert again["tasks"]["single_double_quote"]["seconds"] is None
    assert again["tasks"]["single_double_quote"]["other_settings"] == {}
    marked = sc.prune_all(model, out, dataclasses.replace(config, target_loss=0.35), names=names[:1])
    assert marked["tasks"]["single_double_quote"]["other_settings"] == {"target_loss": 0.3}
    assert "single_double_quote was there already, cut out with other settings: target_loss 0.3" in table(marked)
    with_other_prompts = sc.prune_all(model, out, dataclasses.replace(config, seed=1), names=names[:1])
    assert with_other_prompts["tasks"] == {}
    assert "was cut for single_double_quote with other prompts" in with_other_prompts["skipped"]["single_double_quote"]
    sc.prune_all(model, out, config, names=names)


def test_what_a_bigram_table_solves_and_what_is_a_control_is_in_no_mean(surveyed):
    *_, summary = surveyed
    (row,) = summary["tasks"].values()
    rankings = {"learned": 10, "gradient": 40, "integrated_gradients": 30}
    real = row | {"size_by_ranking": rankings}
    others = {
        "easy": real | {"is_bigram_solvable": True, "size_by_ranking": dict.fromkeys(rankings, 1)},
        "control": real | {"is_control": True, "size_by_ranking": dict.fromkeys(rankings, 1)},
    }
    told = table({**summary, "tasks": {"real": real, **others}})
    assert "nodes ranked by gradient: 4.0 times as many" in told
    assert "nodes ranked by integrated gradients: 3.0 times as many" in told


def test_a_folder_with_the_beginning_of_another_pruning_is_skipped_and_the_others_are_not(tmp_path, monkeypatch):
    model, names = sc.load(sc.example()), ["single_double_quote", "bracket_counting"]
    config = PruneConfig(n_step=40, cuts_edges=False, target_loss=0.5, max_auroc=1.0, n_mean_token=1)
    monkeypatch.setattr(survey, "SOLVED", 0.6)
    cut_out = Pruning.cut_out

    def stops(self, *given, **settings):
        if self.task.name == names[0]:
            self.unfinished.begin(given[0])
            raise KeyboardInterrupt
        return cut_out(self, *given, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Pruning, "cut_out", stops)
        with pytest.raises(KeyboardInterrupt):
            sc.prune_all(model, tmp_path, config, names=names)
    found = sc.prune_all(model, tmp_path, dataclasses.replace(config, target_loss=0.55), names=names)
    assert "the pruning begun there has another settings" in found["skipped"][names[0]]
    assert list(found["tasks"]) == names[1:]
    assert found["tasks"][names[1]]["seconds"] > 0
    found = sc.prune_all(model, tmp_path, config, names=names[:1])
    assert found["tasks"][names[0]]["seconds"] is None, "an earlier call took a part of the time"


def test_more_seeds_are_pruned_beside_the_circuit_and_compared_with_it(tmp_path):
    model, name = sc.load(sc.example()), "single_double_quote"
    config = PruneConfig(n_step=40, cuts_edges=False, target_loss=0.5, max_auroc=1.0, n_mean_token=1)
    found = sc.prune_all(model, tmp_path, config, names=[name], n_seed=2)
    row = found["tasks"][name]
    assert row["seeds"] == json.loads((tmp_path / name / "seeds/ensemble.json").read_text())
    assert row["seeds"]["n_node"][0] == row["n_node"]
    assert sorted(path.name for path in (tmp_path / name / "seeds").iterdir() if path.is_dir()) == ["seed-1"]
    assert f"{name}: 2 seeds, {min(row['seeds']['n_node'])} to {max(row['seeds']['n_node'])} nodes" in table(found)
    marked = sc.prune_all(model, tmp_path, dataclasses.replace(config, target_loss=0.55), names=[name], n_seed=2)
    assert "was cut out with other settings (target_loss 0.5)" in marked["tasks"][name]["seeds"]["refused"]


def test_tasks_that_a_bigram_table_solves_are_in_no_curve(surveyed, tmp_path):
    model, out, config, names, _ = surveyed
    shutil.copytree(out / names[0], tmp_path / names[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "BIGRAM_SOLVABLE", 0.0)
        sc.prune_all(model, tmp_path, config, names=names[:1])
    assert not (tmp_path / "curves.svg").exists()


def test_a_circuit_that_pruning_did_not_make_is_measured_without_a_curve(surveyed, tmp_path):
    model, out, config, names, summary = surveyed
    circuit = Circuit.load(out / names[0], model)
    told = dataclasses.replace(circuit, removed=[], task=circuit.task | {"hash": ""})
    told.save(tmp_path / names[0])
    row = sc.prune_all(model, tmp_path, config, names=names[:1])["tasks"][names[0]]
    assert row["circuit_loss"] == summary["tasks"][names[0]]["circuit_loss"]
    assert row["curve"] == []
    assert row["size_by_ranking"]["learned"] is None
    assert not (tmp_path / "curves.svg").exists()


def test_all_rankings_are_measured_on_the_same_pairs_so_all_nodes_together_have_one_loss(surveyed, monkeypatch):
    model, out, config, names, _ = surveyed
    measured, loss_at_sizes = [], survey.loss_at_sizes
    monkeypatch.setattr(survey, "loss_at_sizes", lambda *given: measured.append(loss_at_sizes(*given)) or measured[-1])
    row = sc.prune_all(model, out, config, names=names[:1])["tasks"][names[0]]
    assert len(measured) == 2, "gradient, integrated gradients"
    for curve in measured:
        last = (curve[-1]["n_node"], curve[-1]["loss"])
        assert last == pytest.approx(tuple(row["curve"][-1]), rel=1e-4)


def test_rankings_are_measured_by_the_loss_that_the_circuit_was_cut_for(tmp_path):
    model, name = sc.load(sc.example()), "single_double_quote"
    measured, loss_at_sizes = [], survey.loss_at_sizes
    config = PruneConfig(n_step=40, cuts_edges=False, target_loss=0.6, max_auroc=1.0, goal="model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "loss_at_sizes", lambda *given: measured.append(loss_at_sizes(*given)) or measured[-1])
        row = sc.prune_all(model, tmp_path, config, names=[name])["tasks"][name]
    for loss in [curve[-1]["loss"] for curve in measured] + [row["curve"][-1][1]]:
        assert loss == pytest.approx(0, abs=1e-5), "all nodes together are the model, which is what had to be matched"


def test_controls_are_pruned_with_the_same_budget_and_count_whole_where_no_size_reaches_the_target(
    tmp_path, untrained_run, monkeypatch
):
    monkeypatch.setattr(survey, "SOLVED", 1.0)  # an untrained model stands for one that solved the task
    (nonsense,) = (name for name in survey.CONTROLS if "if_equals" in name)
    monkeypatch.setattr(survey, "CONTROLS", {nonsense: survey.CONTROLS[nonsense]})
    model = sc.load(untrained_run)
    made = sc.task("bracket_brace", model.tokenizer)
    easy = PruneConfig(n_step=2, n_pair=2, target_loss=0.72, margin=0, max_auroc=1.0, n_mean_token=1, cuts_edges=False)
    found = survey.prune_all(model, tmp_path / "easy", easy, names=["bracket_brace"], controls=True)
    n_real = found["tasks"]["bracket_brace"]["n_node"]
    assert found["tasks"][nonsense]["is_control"]
    assert found["control_ratio"] == pytest.approx(found["tasks"][nonsense]["n_node"] / n_real)
    for kind in ("random", "shuffled"):
        control = found["control_models"][kind]
        assert control["ratio"] == pytest.approx(control["n_node"]["bracket_brace"] / n_real)
        assert (tmp_path / f"easy/{kind}-model/circuits/bracket_brace/circuit.json").exists()
    described = tmp_path / "easy/random-model/circuits/bracket_brace/circuit.json"
    described.write_text(described.read_text().replace(made.hash, "0" * 64))
    control = sc.load(tmp_path / "easy/random-model")
    folder = tmp_path / "easy/random-model/circuits"
    again = survey._sizes_in_control(control, "random", {"bracket_brace": n_real}, folder, easy, None)
    assert (again["n_node"], again["ratio"]) == ({}, None)
    assert "with other prompts (000000000000)" in again["skipped"]["bracket_brace"]
    hard = dataclasses.replace(easy, target_loss=0.01)
    found = survey.prune_all(model, tmp_path / "hard", hard, names=["bracket_brace"], controls=True)
    assert "bracket_brace" in found["skipped"], "a real task that the model can't do is named, not counted"
    row = found["tasks"][nonsense]
    assert (row["is_reached"], row["n_node"]) == (False, sum(model.config.node_widths().values()))
    reason = json.loads((tmp_path / "hard" / nonsense / "unreached.json").read_text())["reason"]
    assert "no size meets target_loss 0.01" in reason
    told = survey.table(found)
    assert f"nonsense controls: {row['n_node']:.1f} nodes" in told


def test_the_circuit_of_a_file_of_pairs_has_a_folder_of_the_files_stem(tmp_path, monkeypatch):
    sides = {"prompt_a": 'say("text', "prompt_b": "say('text", "answer_a": '")\n', "answer_b": "')\n"}
    rows = [{name: text.replace("(", f"({n}, ") for name, text in sides.items()} for n in range(40)]
    path, folders = tmp_path / "pairs/quotes.jsonl", []
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def no_circuit(model, task, folder, *_):
        folders.append(folder)
        raise PruneError("not pruned")

    model, out = sc.load(sc.example()), tmp_path / "out"
    monkeypatch.setattr(survey, "_row", no_circuit)
    assert survey.prune_all(model, out, names=[str(path)])["skipped"] == {str(path): "not pruned"}
    monkeypatch.setattr(survey, "_circuit", lambda *given: folders.append(given[2]))
    survey._sizes_in_control(model, "random", {str(path): 3}, out / "circuits", PruneConfig(), None)
    assert folders == [out / "quotes", out / "circuits/quotes"]


def test_controls_need_a_run_folder_and_say_so_before_anything_is_pruned(tmp_path):
    with pytest.raises(ConfigError, match="controls need models like this one that never learned"):
        survey.prune_all(hand_built_model(), tmp_path / "x", names=["with_as"], controls=True)
    assert not (tmp_path / "x").exists()


def test_the_curve_ends_at_the_whole_model_and_is_drawn(surveyed):
    _, out, _, _, summary = surveyed
    curve = summary["tasks"]["single_double_quote"]["curve"]
    sizes = [size for size, _ in curve]
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, 1408)
    assert curve[-1][1] < 0.05 < curve[0][1]
    root = ET.fromstring((out / "curves.svg").read_text())
    assert root.tag.endswith("svg")


def test_the_bold_line_is_the_mean_of_the_others():
    svg = draw_curves({"<a>": [(1, 0.6), (100, 0.2)], "b": [(1, 0.4), (100, 0.0)]}, target_loss=0.15)
    root = ET.fromstring(svg)
    paths = [p.get("d").split(" ")[1:] for p in root.iter() if p.tag.endswith("path")]
    heights = [[float(point.split(",")[1]) for point in path] for path in paths]
    assert heights[2] == pytest.approx([(a + b) / 2 for a, b in zip(*heights[:2], strict=True)], abs=0.06)
    titles = [t.text for t in root.iter() if t.tag.endswith("title")]
    assert titles == ["<a>", "b", "mean"]


def test_a_models_line_is_the_mean_of_its_seeds_and_its_band_reaches_from_lowest_to_highest():
    seeds = [[(1, 0.6), (100, 0.2)], [(1, 0.4), (100, 0.0)]]
    root = ET.fromstring(draw_models({"<a>": seeds, "b": [[(1, 0.5), (100, 0.1)]]}, target_loss=0.15))
    band, line, other = (p for p in root.iter() if p.tag.endswith("path"))
    points = [point for point in band.get("d").split() if "," in point]
    heights = [float(point.split(",")[1]) for point in points]
    middle = [float(point.split(",")[1]) for point in line.get("d").split()[1:]]
    assert heights[0] < middle[0] < heights[3], "a higher loss stands higher"
    assert middle == pytest.approx([(heights[0] + heights[3]) / 2, (heights[1] + heights[2]) / 2], abs=0.06)
    assert line.get("d") == other.get("d")
    assert "<a>, 2 seeds" in [text.text for text in root.iter() if text.tag.endswith("text")]


def test_the_geometric_mean_of_a_half_and_two_is_one():
    assert geometric_mean([0.5, 2]) == pytest.approx(1)
    assert geometric_mean([2, 8]) == pytest.approx(4)
    assert geometric_mean([]) is None


def test_a_count_of_zero_is_averaged_as_one():
    assert mean_count([0, 9]) == pytest.approx(3)
    assert mean_count([]) is None
