"""Pruning finds a circuit that is known by construction, and leaves the model as it was."""

import dataclasses

import pytest
import torch
from hand_built import NODES, A, B, X, Y, hand_built_model, hand_built_task

from sparse_circuits.ablation import ablation_values, task_means
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import ConfigError, PruneError
from sparse_circuits.masks import LearnedMasks
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.pruning import FAR, LEARNED_SHARES, Pruning, deciding_pairs, prune
from sparse_circuits.scoring import all_logit_differences, logit_difference, task_loss
from sparse_circuits.taps import reading, replacing
from sparse_circuits.tasks.pairs import hash_splits

QUICK = PruneConfig(ablation="zero", n_step=80, n_pair=8, lr=3e-2, target_loss=0.1)


def test_pruning_finds_the_known_circuit_and_nothing_else():
    circuit = prune(hand_built_model(), hand_built_task(), QUICK)
    assert circuit.node_names() == NODES
    assert circuit.n_edge == 2
    assert circuit.losses["circuit"] <= 0.1
    assert min(circuit.effects.values()) > 0.3


def test_pruning_with_task_means_finds_it_too():
    circuit = prune(hand_built_model(), hand_built_task(), QUICK, ablation="task_mean")
    assert circuit.node_names() == NODES


def test_no_limit_on_auroc_is_set_where_the_last_token_alone_tells_the_answer():
    model, task = hand_built_model(), hand_built_task()
    with torch.no_grad():  # the answer stands in the last token too, and its embedding alone says which
        model.unembedding.weight[[X, Y], 0] = torch.tensor([2.0, -2.0])
    splits = {}
    for name, pairs in task.splits.items():
        tokens = pairs.tokens.clone()
        tokens[torch.arange(len(pairs)), :, pairs.length - 1] = torch.tensor([A, B])
        splits[name] = dataclasses.replace(pairs, tokens=tokens)
    task = dataclasses.replace(task, splits=splits, hash=hash_splits(splits))
    assert Pruning(model, task, QUICK).max_auroc == 1
    assert Pruning(model, hand_built_task(), QUICK).max_auroc == QUICK.max_auroc


def test_what_decides_is_select_and_as_many_pairs_of_fit_with_a_margin():
    task = hand_built_task()
    decides, fit, select = deciding_pairs(task), task.split("fit"), task.split("select")
    assert len(decides) == 2 * len(select)
    assert torch.equal(decides.length[: len(select)], select.length)
    assert decides.templates[: len(select)] == select.templates
    assert set(decides.templates[len(select) :]) == set(fit.templates)
    assert not set(decides.templates) & set(task.split("test").templates)
    config = dataclasses.replace(QUICK, target_loss=0.2, margin=0.25)
    assert Pruning(hand_built_model(), task, config).goal(1.0).target_loss == pytest.approx(0.15)


def test_needed_nodes_and_runs_that_failed_do_not_make_a_good_mask_look_failed():
    model, task = hand_built_model(), hand_built_task()
    space = NodeSpace.of(model.config)
    marked = space.marked(NODES)
    good = torch.where(marked, 1.0, -1 - torch.arange(space.n_node) / space.n_node)
    record = {"step": 0, "loss": 0.1, "n_node": len(NODES), "price": 0.0, "scale": 1.0}
    pruning = Pruning(model, task, QUICK)
    pruning.needed = torch.arange(space.n_node) >= space.n_node - 5 * FAR * len(NODES)
    keep, _, _ = pruning.choose_size(LearnedMasks(tau=good[None], history=[[record]]), takes_far=False)
    assert torch.equal(keep, marked | pruning.needed)
    # One that lost its nodes and needs far more than it learned, beside a good one that is larger than that.
    failed = torch.where(marked, -1 - 25 / space.n_node, good)
    failed[0] = 0.5
    large = torch.where(torch.arange(space.n_node) < 40, 0.1, good).masked_fill(marked, 0.05)
    both = LearnedMasks(tau=torch.stack((failed, large)), history=[[record], [record]])
    pruning = Pruning(model, task, QUICK)
    _, scanned, _ = pruning.choose_size(both)
    assert (scanned["scan"]["run"], scanned["scan"]["size"] > 25) == (1, True)
    _, scanned, _ = pruning.choose_size(LearnedMasks(tau=failed[None], history=[[record]]))
    assert FAR < scanned["scan"]["size"] < 40


def test_masks_are_learned_again_where_only_a_size_far_above_the_learned_one_passes(monkeypatch):
    model, task = hand_built_model(), hand_built_task()
    space = NodeSpace.of(model.config)
    tau = -1 - torch.arange(space.n_node) / space.n_node
    tau[space.marked(NODES)] = -1.9  # the nodes that do the task were dropped first
    tau[0] = 0.5
    failed = LearnedMasks(tau=tau[None], history=[[{"step": 0, "loss": 0.3, "n_node": 1, "price": 0.0, "scale": 1.0}]])
    with pytest.raises(PruneError, match=r"no size near what was learned meets target_loss .* 1 nodes at loss 0\.300"):
        Pruning(model, task, QUICK).choose_size(failed, takes_far=False)
    keep, _, _ = Pruning(model, task, QUICK).choose_size(failed)
    assert int(keep.sum()) > FAR
    learn, shares = Pruning.learn, []

    def fails_first(self, configs, *, share):
        shares.append(share)
        return failed if len(shares) == 1 else learn(self, configs, share=share)

    monkeypatch.setattr(Pruning, "learn", fails_first)
    assert prune(model, task, QUICK).node_names() == NODES
    assert shares == list(LEARNED_SHARES[:2])


def test_an_unreachable_target_is_said_with_the_models_own_loss():
    with pytest.raises(PruneError, match=r"the full model's calibrated loss on first_token \(select and fit\) is 0\.0"):
        prune(hand_built_model(), hand_built_task(), QUICK, target_loss=1e-9)


def test_a_model_whose_answers_are_not_finite_is_refused_by_that_name():
    model = hand_built_model()
    with torch.no_grad():
        model.unembedding.weight[X, 3] = torch.nan
    for task in (hand_built_task(), dataclasses.replace(hand_built_task(), is_control=True)):
        with pytest.raises(PruneError, match="the full model's loss on first_token is NaN"):
            prune(model, task, QUICK)


def test_a_circuit_of_no_node_at_all_is_refused():
    model = hand_built_model()
    space = NodeSpace.of(model.config)
    every = tuple(space.names(torch.ones(space.n_node, dtype=torch.bool)))
    with pytest.raises(ConfigError, match=rf"exclude names every node of the model \({space.n_node}\)"):
        prune(model, hand_built_task(), QUICK, exclude=every)
    # Query and key are one parameter, so naming all queries leaves no key either.
    tied = tuple(name for name in every if not name.startswith("0.attn.k:"))
    with pytest.raises(ConfigError, match="exclude names every node"):
        prune(model, hand_built_task(), QUICK, exclude=tied, ties_query_and_key=True)


def test_corpus_means_of_a_model_without_a_corpus_are_refused():
    with pytest.raises(ConfigError, match="comes from no run folder"):
        prune(hand_built_model(), hand_built_task(), QUICK, ablation="mean")


def test_pruning_leaves_the_model_as_it_was():
    model = hand_built_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    prune(model, hand_built_task(), QUICK)
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in model.named_parameters())
    assert all(not tap.edits and not tap.readers for tap in model.taps().values())


def test_task_means_are_means_of_recorded_activations_without_padding():
    model, pairs = hand_built_model(), hand_built_task().split("fit")
    total, n_token = torch.zeros(8), 0
    for i in range(len(pairs)):
        with torch.no_grad(), reading(model, "0.attn.act_in") as seen:
            model(pairs.tokens[i, :, : pairs.length[i]])
        total += seen["0.attn.act_in"].sum((0, 1))
        n_token += 2 * int(pairs.length[i])
    means = NodeSpace.of(model.config).split(task_means(model, pairs))["0.attn.act_in"]
    torch.testing.assert_close(means, total / n_token)
    assert not ablation_values(model, "zero", fit=pairs, n_token=1).any()


def test_the_loss_of_a_node_set_is_that_of_the_edited_model():
    model, pairs = hand_built_model(), hand_built_task().split("select")
    space = NodeSpace.of(model.config)
    keep = torch.rand(1, space.n_node) < 0.5
    with replacing(model, space.masks(keep, torch.zeros(space.n_node))):
        slow = torch.cat([logit_difference(model, pairs.take(torch.tensor([i])))[0] for i in range(len(pairs))])
        fast = all_logit_differences(model, pairs)[0]
    torch.testing.assert_close(fast, slow)
    assert task_loss(fast).shape == ()
