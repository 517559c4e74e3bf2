"""Verification tells the known circuit from wrong ones, and its parts do what they say."""

import dataclasses
import json

import pytest
import torch
from hand_built import NODES, hand_built_circuit, hand_built_model, hand_built_task

from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import VerifyConfig
from sparse_circuits.errors import TaskError
from sparse_circuits.faithfulness import necessity, verify
from sparse_circuits.faithfulness.necessity import matched_sets
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import CHANCE, fit_calibration, task_loss


def test_verification_gives_the_exact_answer_on_the_known_circuit():
    model, task = hand_built_model(), hand_built_task()
    report = verify(hand_built_circuit(model, task, NODES), task)
    found = report.sufficiency["test"]
    assert found.model.accuracy == found.circuit.accuracy == found.sealed.accuracy == 1.0
    assert found.sealed_uncalibrated.loss.value == pytest.approx(found.model.loss.value, abs=1e-6)
    assert report.necessity.loss.value == pytest.approx(CHANCE, abs=1e-6)
    assert report.necessity.auroc == 0.5
    # Nothing outside the circuit bears on the answer, but for the norm's denominator.
    assert report.random_sets.loss_worst == pytest.approx(report.random_sets.model_loss, abs=0.02)
    assert report.card.all_ablated.accuracy == 0.5
    assert not report.card.is_bigram_solvable
    assert "3 nodes of 48" in str(report)


def test_verification_fails_a_planted_wrong_circuit():
    model, task = hand_built_model(), hand_built_task()
    wrong = ["0.attn.act_in:1", "0.attn.v:1", "0.attn.resid_delta:4"]
    report = verify(hand_built_circuit(model, task, wrong), task)
    assert report.sufficiency["test"].circuit.loss.value == pytest.approx(CHANCE, abs=1e-6)
    assert report.sufficiency["test"].circuit.accuracy == 0.5
    assert report.necessity.loss.value < 0.2
    assert report.necessity.auroc == 1.0


def test_a_circuit_with_one_node_missing_fails_too():
    model, task = hand_built_model(), hand_built_task()
    for missing in NODES:
        report = verify(hand_built_circuit(model, task, [name for name in NODES if name != missing]), task, n_set=2)
        assert report.sufficiency["test"].circuit.accuracy == 0.5


def test_verification_writes_a_report_and_notes_that_test_was_read(tmp_path):
    model, task = hand_built_model(), hand_built_task()
    circuit = hand_built_circuit(model, task, NODES)
    circuit.save(tmp_path)
    verify(circuit, task, folder=tmp_path, n_set=3)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["n_node"] == 3
    assert report["random_sets"]["n_set"] == 3
    assert json.loads((tmp_path / "circuit.json").read_text())["test_readings"][0]["what"] == "verify"


def test_noting_that_test_was_read_changes_nothing_else_in_the_file(tmp_path):
    model, task = hand_built_model(), hand_built_task()
    hand_built_circuit(model, task, NODES).save(tmp_path)
    path = tmp_path / "circuit.json"
    before = json.loads(path.read_text()) | {"a field of a later version": [1]}
    before["model"]["path"] = "../model"
    path.write_text(json.dumps(before))
    circuit = Circuit.load(tmp_path, model)
    circuit.keep[:] = True
    circuit.log_test_reading(tmp_path, "verify")
    after = json.loads(path.read_text())
    assert [reading["what"] for reading in after.pop("test_readings")] == ["verify"]
    assert after == {name: value for name, value in before.items() if name != "test_readings"}


def test_another_tasks_prompts_are_refused():
    with pytest.raises(TaskError, match="with other prompts"):
        verify(hand_built_circuit(hand_built_model(), hand_built_task(), NODES), hand_built_task(n_pair=30))


def test_a_circuit_that_does_not_say_its_prompts_is_tested_with_a_calibration_of_its_own():
    model, task = hand_built_model(), hand_built_task()
    circuit = hand_built_circuit(model, task, NODES)
    circuit.task["hash"] = ""
    bare = circuit.logit_difference(task.split("select"), calibrated=False)
    fitted = fit_calibration(bare, may_shift=True)
    report = verify(circuit, task, VerifyConfig.quick(), n_set=5)
    assert report.calibration == dataclasses.asdict(fitted) != dataclasses.asdict(circuit.calibration)
    assert any(note.startswith("imported") for note in report.notes)


def test_the_worst_random_set_is_the_worst_on_the_larger_number_of_pairs(monkeypatch):
    model, task = hand_built_model(), hand_built_task()
    circuit = hand_built_circuit(model, task, NODES)
    select, pairs = task.split("select"), task.split("test")
    monkeypatch.setattr(necessity, "N_SET_PAIR", 2)
    monkeypatch.setattr(necessity, "N_AGAIN", 3)
    found = necessity.random_sets(circuit, pairs, select=select, may_shift=True, n_set=6)
    assert (found.n_pair, found.n_again_pair) == (2, len(pairs))
    assert 3 <= found.n_again <= 6, "three drawn first, and the three highest, some of them the same"
    losses = []
    for keep in ~matched_sets(circuit.keep, necessity.activity(circuit, select), circuit.space, n_set=6):
        without = Circuit.of_nodes(model, keep, values=circuit.values, task={}, settings={})
        fitted = fit_calibration(without.logit_difference(select, calibrated=False), may_shift=True)
        losses.append(float(task_loss(fitted(without.logit_difference(pairs, calibrated=False)))))
    assert found.loss_mean == pytest.approx(sum(losses[:3]) / 3, abs=1e-5)
    assert max(losses[:3]) - 1e-5 <= found.loss_worst <= max(losses) + 1e-5
    monkeypatch.setattr(necessity, "N_AGAIN", 6)
    found = necessity.random_sets(circuit, pairs, select=select, may_shift=True, n_set=6)
    assert found.loss_worst == pytest.approx(max(losses), abs=1e-5)


def test_the_model_beside_random_sets_is_refitted_as_they_are():
    model, task = hand_built_model(), hand_built_task()
    circuit = hand_built_circuit(model, task, NODES)
    with torch.no_grad():  # right, but far from sure
        model.unembedding.weight *= 0.01
    found = necessity.random_sets(circuit, task.split("test"), select=task.split("select"), may_shift=True, n_set=3)
    whole = Circuit.of_nodes(model, torch.ones_like(circuit.keep), values=circuit.values, task={}, settings={})
    on_select, on_test = (whole.logit_difference(task.split(name), calibrated=False) for name in ("select", "test"))
    refitted = float(task_loss(fit_calibration(on_select, may_shift=True)(on_test)))
    assert found.model_loss == pytest.approx(refitted, rel=1e-5)
    assert refitted < 0.9 * float(task_loss(on_test))


def test_matched_sets_lie_outside_with_as_many_nodes_at_each_location():
    model = hand_built_model()
    space = NodeSpace.of(model.config)
    keep = torch.zeros(space.n_node, dtype=torch.bool)
    keep[[space.index(name) for name in NODES]] = True
    sets = matched_sets(keep, torch.rand(space.n_node), space, n_set=20)
    assert not (sets & keep).any()
    for _, part in space.slices():
        assert (sets[:, part].sum(1) == keep[part].sum()).all()
    assert len({tuple(row.tolist()) for row in sets}) > 1
