"""Nodes that the model can't be without are in the circuit, whether or not it is enough without them."""

import pytest
import torch
import torch.nn.functional as F
from hand_built import NODES, hand_built_model, hand_built_task, random_model, random_pairs

from sparse_circuits.attribution import effect_by_prompt
from sparse_circuits.candidates import Evaluator
from sparse_circuits.completeness import needed_nodes
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import ConfigError
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.pruning import prune
from sparse_circuits.refinement import Goal, refine, scan_sizes
from sparse_circuits.scoring import CHANCE, task_loss
from sparse_circuits.taps import replacing


def evaluator_of(model, pairs):
    values = torch.zeros(NodeSpace.of(model.config).n_node)
    return Evaluator(model=model, pairs=pairs, values=values, may_shift=True)


def test_the_needed_nodes_of_the_hand_built_model_are_its_circuit():
    model, task = hand_built_model(), hand_built_task()
    needed = needed_nodes(evaluator_of(model, task.split("select")), 0.5 * CHANCE)
    assert NodeSpace.of(model.config).names(needed) == NODES


def test_needed_nodes_are_those_whose_removal_one_by_one_costs_more_than_the_limit():
    evaluator = evaluator_of(random_model(), random_pairs())
    whole = torch.ones(evaluator.n_node, dtype=torch.bool)
    loss = task_loss(evaluator.differences(whole[None]))
    without = [whole.index_fill(0, torch.tensor([i]), False) for i in range(evaluator.n_node)]
    rises = torch.cat([task_loss(evaluator.differences(keep[None])) - loss for keep in without])
    limit = float(rises.median()) + 1e-3
    assert torch.equal(needed_nodes(evaluator, limit), rises > limit)
    assert 0 < int((rises > limit).sum()) < evaluator.n_node


def test_effects_by_prompt_are_the_mean_magnitude_of_each_prompts_own_gradient():
    model, pairs = random_model(), random_pairs(4)
    space = NodeSpace.of(model.config)
    values = torch.linspace(-1, 1, space.n_node)
    slow = torch.zeros(space.n_node)
    for tokens, length, (first, second) in zip(pairs.tokens, pairs.length, pairs.answers, strict=True):
        for side, sign in enumerate((1, -1)):
            mask = torch.ones(space.n_node, requires_grad=True)
            edits = {
                name: lambda x, part=part: values[part] + mask[part] * (x - values[part])
                for name, part in space.slices()
            }
            with replacing(model, edits):
                logits = model(tokens[side : side + 1, :length])[0, -1]
            loss = F.softplus(-sign * (logits[first] - logits[second]))
            slow += torch.autograd.grad(loss, mask)[0].abs() / 8
    torch.testing.assert_close(effect_by_prompt(model, pairs, values, n_pair=3), slow, rtol=1e-4, atol=1e-6)


def test_a_needed_node_stays_though_the_circuit_is_enough_without_it():
    model, task = hand_built_model(), hand_built_task()
    evaluator = evaluator_of(model, task.split("select"))
    space = NodeSpace.of(model.config)
    needed = space.marked(["0.mlp.post_act:2"])
    goal = Goal(evaluator=evaluator, without=evaluator, target_loss=0.1, max_auroc=0.6, needed=needed)
    keep, curve = scan_sizes(goal, space.marked(NODES).float() - 0.5)
    assert space.names(keep) == [*NODES, "0.mlp.post_act:2"]
    assert min(point["n_node"] for point in curve) >= 1
    refined = refine(goal, torch.ones(evaluator.n_node, dtype=torch.bool))
    assert space.names(refined.keep) == [*NODES, "0.mlp.post_act:2"]
    assert refined.effects["0.mlp.post_act:2"] == pytest.approx(0, abs=1e-6)


def test_pruning_keeps_what_is_needed_but_not_what_is_excluded():
    model, task = hand_built_model(), hand_built_task()
    quick = PruneConfig(ablation="zero", n_step=80, n_pair=8, lr=3e-2, target_loss=0.1)
    assert prune(model, task, quick, needed_loss=0.3).node_names() == NODES
    told = prune(model, task, quick, needed_loss=0.3, exclude=("0.mlp.post_act:2",)).node_names()
    assert told == NODES


def test_a_limit_that_is_not_above_zero_is_refused():
    with pytest.raises(ConfigError, match="needed_loss is 0, expected above 0"):
        PruneConfig(needed_loss=0)
