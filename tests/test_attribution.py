"""Gradient rankings: agreement with finite differences, completeness, and a circuit that is known."""

import pytest
import torch
from hand_built import NODES, hand_built_model, hand_built_task, random_model, random_pairs

from sparse_circuits.attribution import gradient_ranking, integrated_ranking, mask_gradient
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import logit_difference, task_loss
from sparse_circuits.taps import replacing


def loss_at(model, pairs, values, mask):
    space = NodeSpace.of(model.config)
    masks, split = space.split(mask), space.split(values)
    edits = {}
    for name in space.widths:

        def dim(x, m=masks[name], v=split[name]):
            return m * x + (1 - m) * v

        dim.acts_at_each_position = True
        edits[name] = dim
    with torch.no_grad(), replacing(model, edits):
        return float(task_loss(logit_difference(model, pairs)[0]))


def test_the_gradient_is_the_slope_of_the_loss():
    model, task = hand_built_model().double(), hand_built_task()
    pairs = task.split("fit")
    space = NodeSpace.of(model.config)
    values = torch.randn(space.n_node, generator=torch.Generator().manual_seed(0)).double() * 0.1
    torch.set_default_dtype(torch.float64)
    try:
        found = mask_gradient(model, pairs, values, at=0.7)
        for name in [*NODES, "0.mlp.post_act:2", "0.attn.q:1"]:
            node = space.index(name)
            mask = torch.full((space.n_node,), 0.7)
            up, down = mask.clone(), mask.clone()
            up[node] += 1e-5
            down[node] -= 1e-5
            slope = (loss_at(model, pairs, values, up) - loss_at(model, pairs, values, down)) / 2e-5
            assert float(found[node]) == pytest.approx(slope, abs=1e-7)
    finally:
        torch.set_default_dtype(torch.float32)


def test_integrated_gradients_add_up_to_what_all_nodes_do_together():
    model, pairs = hand_built_model(), hand_built_task().split("fit").part(64)
    space = NodeSpace.of(model.config)
    values = torch.zeros(space.n_node)
    scores = integrated_ranking(model, pairs, values, n_step=64)
    ends = [loss_at(model, pairs, values, torch.full((space.n_node,), at)) for at in (0.0, 1.0)]
    assert float(scores.sum()) == pytest.approx(ends[0] - ends[1], rel=1e-2)


def test_both_rank_the_known_circuit_first():
    model, pairs = hand_built_model(), hand_built_task().split("fit")
    space = NodeSpace.of(model.config)
    for ranking in (gradient_ranking, integrated_ranking):
        top = ranking(model, pairs, torch.zeros(space.n_node)).topk(len(NODES)).indices
        mask = torch.zeros(space.n_node, dtype=torch.bool).index_fill(0, top, True)
        assert space.names(mask) == NODES


def test_the_size_of_a_pass_changes_nothing_and_weights_get_no_gradient():
    model, pairs = random_model(), random_pairs()
    values = torch.zeros(NodeSpace.of(model.config).n_node)
    one, other = (mask_gradient(model, pairs, values, n_pair=n) for n in (2, 9))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())
