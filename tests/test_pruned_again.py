"""Checks that prune again: the model's second way is found, and a control that can't be pruned counts whole."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hand_built import NODES, hand_built_circuit, hand_built_model, hand_built_task
from known_circuits import FAKES, TRUE, circuit_of

from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import PruneConfig, VerifyConfig
from sparse_circuits.control_models import control_model
from sparse_circuits.errors import ConfigError, FormatError, TaskError
from sparse_circuits.faithfulness import controls as checks
from sparse_circuits.faithfulness import verify
from sparse_circuits.faithfulness.subject import Subject, of_task
from sparse_circuits.faithfulness.uniqueness import compare, uniqueness
from sparse_circuits.nodes import NodeSpace

QUICK = PruneConfig(n_step=60, n_pair=8, ablation="task_mean", lr=0.03, max_auroc=1.0, necessity_coefficient=0.0)


def test_a_model_with_a_backup_has_another_circuit_and_no_third(tmp_path: Path) -> None:
    circuit, task = circuit_of(FAKES["half of a backup"][0], 0)
    circuit.settings = QUICK.to_json()
    subject = Subject(circuit=circuit, task=task, n_pair=24)
    found = uniqueness(subject, VerifyConfig(n_seed=1, n_exclusion=3), cache=tmp_path)
    assert found.n_disjoint == 1
    assert found.exclusions[0].n_forbidden == 3
    assert found.exclusions[-1].n_node is None
    assert "no size meets target_loss" in (found.exclusions[-1].reason or "")
    assert 0 <= found.others[0].jaccard <= 1
    steps: list[str] = []  # what was pruned is not pruned again
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = uniqueness(subject, VerifyConfig(n_seed=1, n_exclusion=3), cache=tmp_path, on_step=steps.append)
    assert again == found
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == stamps


def test_what_missed_the_target_is_kept_for_the_same_settings_prompts_and_model_and_no_other_error_is_a_miss(
    tmp_path: Path,
) -> None:
    model, task = hand_built_model(), hand_built_task()
    hard = dataclasses.replace(QUICK, n_step=5, exclude=(NODES[1],))
    reason = checks.circuit_or_reason(model, task, tmp_path, hard, None)
    assert "no size meets target_loss" in str(reason)
    stamp = (tmp_path / "unreached.json").stat().st_mtime_ns
    assert checks.circuit_or_reason(model, task, tmp_path, hard, None) == reason
    assert (tmp_path / "unreached.json").stat().st_mtime_ns == stamp
    other_task, other_model = hand_built_task(n_pair=25), hand_built_model()
    with torch.no_grad():
        other_model.unembedding.weight.mul_(1.5)
    for others in ((model, other_task), (other_model, task)):
        held = json.loads((tmp_path / "unreached.json").read_text())
        checks.circuit_or_reason(*others, tmp_path, hard, None)
        new = json.loads((tmp_path / "unreached.json").read_text())
        assert (new["model_hash"], new["task_hash"]) != (held["model_hash"], held["task_hash"])
    with pytest.raises(ConfigError, match="ablation mean needs the corpus"):
        checks.circuit_or_reason(model, task, tmp_path / "new", dataclasses.replace(QUICK, ablation="mean"), None)
    assert not (tmp_path / "new/unreached.json").exists()
    (tmp_path / "unfinished.safetensors").unlink(missing_ok=True)
    found = checks.circuit_or_reason(model, task, tmp_path, QUICK, None)
    assert isinstance(found, Circuit)
    assert not (tmp_path / "unreached.json").exists()
    with pytest.raises(TaskError, match="was cut for first_token with other prompts"):
        checks.circuit_or_reason(model, other_task, tmp_path, QUICK, None)


def test_a_circuit_of_other_prompts_is_refused_where_prompts_are_chosen() -> None:
    model, task = hand_built_model(), hand_built_task()
    circuit = hand_built_circuit(model, task, NODES)
    assert of_task(circuit, task, n_pair=4).circuit is circuit
    with pytest.raises(TaskError, match="with other prompts"):
        of_task(circuit, dataclasses.replace(task, hash="0" * 64), n_pair=4)


def test_circuits_that_share_all_their_nodes_do_nothing_without_them() -> None:
    circuit, task = circuit_of(TRUE["quote copier"], 0)
    found = compare(Subject(circuit=circuit, task=task, n_pair=24), circuit, 1)
    assert (found.jaccard, found.r_squared) == (1, pytest.approx(1))
    assert found.loss_without_shared == pytest.approx(0.693, abs=1e-3)


def test_a_control_that_misses_the_target_counts_at_the_size_of_the_model(tmp_path: Path, monkeypatch) -> None:
    model, task = hand_built_model(), hand_built_task()
    space = NodeSpace.of(model.config)
    keep = space.marked(NODES)
    circuit = Circuit.of_nodes(model, keep, values=keep * 0.0, task={"name": task.name, "hash": task.hash, "seed": 0})
    circuit.settings = dataclasses.replace(QUICK, n_step=5).to_json()

    def made(trained, kind, folder, *, seed):
        if kind == "shuffled":
            raise FormatError("controls need the run folder of the model")
        return control_model(trained, kind, seed=seed)

    monkeypatch.setattr(checks, "control_run", made)
    asked = VerifyConfig(checks=("controls",), n_nonsense=1, n_set=1)
    report = verify(circuit, task, asked, cache=tmp_path)
    assert report.controls is not None
    (control,) = report.controls.controls
    assert (control.kind, control.is_reached, control.n_node) == ("random", False, circuit.n_node_total)
    assert control.ratio == pytest.approx(circuit.n_node_total / 3)
    assert report.controls.ratio is not None
    assert report.controls.ratio.low is None  # one control has no interval
    assert report.controls.left_out.keys() == {"nonsense nonsense_single_double_quote", "shuffled 0"}
    assert any("count at the size of the model: random seed 0" in note for note in report.notes)
    assert {found.check: found.status for found in report.verdict}["controls"] == "passed"
