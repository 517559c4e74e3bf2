"""Circuits of several seeds: what they share, and what is left of the behaviour with only that."""

import dataclasses
import json

import pytest
import torch
from hand_built import NODES, hand_built_model, hand_built_task, kept_nodes

from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import PruneConfig
from sparse_circuits.ensemble import jaccard, prune_seeds, table
from sparse_circuits.errors import ConfigError, TaskError
from sparse_circuits.scoring import CHANCE


def test_seeds_that_find_the_one_circuit_agree_wholly_and_go_on_where_they_stopped(tmp_path):
    config = PruneConfig(ablation="zero", n_step=80, n_pair=8, lr=3e-2, target_loss=0.1)
    model, task = hand_built_model(), hand_built_task()
    found = prune_seeds(model, task, tmp_path, config, n_seed=3)
    assert found["n_node"] == [len(NODES)] * 3
    assert found["n_edge"] == [2, 2, 2]
    assert found["jaccard"] == [1.0, 1.0, 1.0]
    assert [part["n_node"] for part in found["common"]] == [3, 3, 3]
    assert all(part["loss"] < 0.1 for part in found["common"])
    assert json.loads((tmp_path / "ensemble.json").read_text()) == found
    before = (tmp_path / "seed-1/masks.safetensors").stat().st_mtime_ns
    assert prune_seeds(model, task, tmp_path, config, n_seed=3) == found
    assert (tmp_path / "seed-1/masks.safetensors").stat().st_mtime_ns == before
    assert "Jaccard of two circuits: mean 1.00, least 1.00" in table(found)
    assert found["seeds"] == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"seed-0 was cut out with other settings \(target_loss 0.1\)"):
        prune_seeds(model, task, tmp_path, dataclasses.replace(config, target_loss=0.2), n_seed=3)
    with pytest.raises(TaskError, match="seed-0: the circuit there was cut for first_token with other prompts"):
        prune_seeds(model, hand_built_task(n_pair=25), tmp_path, config, n_seed=3)


def test_what_seeds_share_by_hand(tmp_path):
    model, task = hand_built_model(), hand_built_task()
    config = PruneConfig(ablation="zero", target_loss=0.1)
    sets = [NODES, [*NODES, "0.mlp.act_in:1"], [*NODES[:2], "0.mlp.act_in:1"]]
    for seed, nodes in enumerate(sets):
        keep = kept_nodes(model, nodes)
        settings = dataclasses.replace(config, seed=seed).to_json()
        told = {"name": task.name, "hash": task.hash, "seed": 0, "max_token": None, "path": None}
        circuit = Circuit.of_nodes(model, keep, values=torch.zeros(len(keep)), task=told, settings=settings)
        circuit.save(tmp_path / f"seed-{seed}")
    found = prune_seeds(model, task, tmp_path, config, n_seed=3)
    assert found["n_node"] == [3, 4, 3]
    assert found["jaccard"] == pytest.approx([3 / 4, 2 / 4, 3 / 4])
    assert [(part["k"], part["n_node"]) for part in found["common"]] == [(1, 4), (2, 4), (3, 2)]
    losses = [part["loss"] for part in found["common"]]
    assert max(losses[:2]) < 0.1
    assert losses[2] == pytest.approx(CHANCE, abs=1e-3), "what all three have writes nothing"


def test_an_ensemble_needs_a_seed(tmp_path):
    with pytest.raises(ConfigError, match="n_seed is 0, expected 1 or more"):
        prune_seeds(hand_built_model(), hand_built_task(), tmp_path, n_seed=0)


def test_jaccard_is_shared_over_all():
    one, other = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 1, 1, 0]).bool()
    assert jaccard(one, other) == pytest.approx(1 / 3)
    assert jaccard(one, one) == 1
    assert jaccard(one & False, other & False) == 1
