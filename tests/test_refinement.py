"""Refinement leaves what is needed and nothing else; its shortcuts give what whole runs give."""

import dataclasses
import weakref

import pytest
import torch
from hand_built import (
    NODES,
    evaluator_of,
    hand_built_model,
    hand_built_task,
    kept_nodes,
    random_model,
    random_pairs,
)

from sparse_circuits.candidates import KNOWN_BYTES, N_PAIR, Evaluator
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import PruneConfig
from sparse_circuits.edges import EdgeSpace, edges_between
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.pruning import prune
from sparse_circuits.refinement import Goal, Refined, _ranked, eliminate, keep_top, refine, scan_sizes
from sparse_circuits.scoring import CHANCE, fit_calibration, task_loss

QUICK = PruneConfig(ablation="zero", n_step=80, n_pair=8, lr=3e-2, target_loss=0.1)


def test_candidates_side_by_side_have_the_losses_of_each_alone():
    model, task = hand_built_model(), hand_built_task()
    space = NodeSpace.of(model.config)
    evaluator = Evaluator(model=model, pairs=task.split("select"), values=torch.randn(space.n_node), may_shift=True)
    keep = torch.rand(11, space.n_node) < 0.6
    together = evaluator.losses(keep)
    alone = torch.cat([evaluator.losses(one[None]) for one in keep])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("known_bytes", [KNOWN_BYTES, 0])
def test_streams_that_are_remembered_give_the_differences_of_a_fresh_start(monkeypatch, known_bytes):
    monkeypatch.setattr("sparse_circuits.candidates.KNOWN_BYTES", known_bytes)
    model, pairs = random_model(), random_pairs(40)
    n_node = NodeSpace.of(model.config).n_node
    generator = torch.Generator().manual_seed(1)
    fresh = Evaluator(model=model, pairs=pairs, values=torch.randn(n_node, generator=generator), may_shift=True)
    keep = torch.rand(n_node, generator=generator) < 0.7
    space = EdgeSpace.of(edges_between(model, keep))
    fresh = dataclasses.replace(fresh, edges=space)
    keep = torch.cat((keep, torch.ones(space.n_edge, dtype=torch.bool)))
    remembering = dataclasses.replace(fresh)
    items = fresh.removable(keep).nonzero().flatten()
    base = keep
    for step in range(12):  # one alone, then some at once, from bases that were candidates before, and from others
        chosen = items[torch.randperm(len(items), generator=generator)[:3]]
        candidates = fresh.without_each(base, chosen)
        asked = candidates[:1] if step % 2 else candidates
        expected = torch.cat([dataclasses.replace(fresh).differences(one[None]) for one in asked])
        torch.testing.assert_close(remembering.differences(asked, base=base), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(remembering.differences(asked[:1]), expected[:1], rtol=1e-4, atol=1e-5)
        base = candidates[0] if step % 3 else keep


@pytest.mark.parametrize("n_candidate", [1, 3])
def test_streams_that_would_take_too_much_are_held_for_one_part_at_a_time(monkeypatch, n_candidate):
    monkeypatch.setattr("sparse_circuits.candidates.KNOWN_BYTES", 0)
    model, pairs = random_model(), random_pairs(10 * N_PAIR)
    held, most, run = [], [], type(model).run

    def counted(self, *given, **settings):
        out = run(self, *given, **settings)
        held.append(weakref.ref(out))
        most.append(sum(ref() is not None for ref in held))
        return out

    monkeypatch.setattr(type(model), "run", counted)
    n_node = NodeSpace.of(model.config).n_node
    evaluator = Evaluator(model=model, pairs=pairs, values=torch.zeros(n_node), may_shift=True)
    base = torch.ones(n_node, dtype=torch.bool)
    evaluator.differences(evaluator.without_each(base, torch.arange(n_node - n_candidate, n_node)), base=base)
    n_sublayer = 2 * model.config.n_layer
    assert len(held) >= 10 * (n_sublayer - 1)
    assert max(most) <= 2 * n_sublayer + 1, "those of the base and the candidate, of one part or two that overlap"


def goal_of(evaluator, max_auroc=0.6):
    needed = torch.zeros(evaluator.n_node, dtype=torch.bool)
    return Goal(evaluator=evaluator, without=evaluator, target_loss=0.1, max_auroc=max_auroc, needed=needed)


def test_elimination_never_leaves_the_goal_and_only_removes():
    model, task = hand_built_model(), hand_built_task()
    space = NodeSpace.of(model.config)
    goal = goal_of(evaluator_of(model, task))
    whole = torch.ones(space.n_node, dtype=torch.bool)
    rounds = []
    keep = eliminate(goal, whole, whole, on_round=lambda _, record: rounds.append(record))
    assert space.names(keep) == NODES
    assert all(record["loss"] <= 0.1 for record in rounds)
    assert [record["n_node"] for record in rounds] == sorted((r["n_node"] for r in rounds), reverse=True)


def test_refinement_leaves_the_known_nodes_and_edges_and_nothing_of_them_can_go():
    model, task = hand_built_model(), hand_built_task()
    evaluator = evaluator_of(model, task)
    goal = goal_of(evaluator)
    refined = refine(goal, torch.ones(evaluator.n_node, dtype=torch.bool))
    assert NodeSpace.of(model.config).names(refined.keep) == NODES
    assert sum(int(mask.sum()) for mask in refined.edges.values()) == 2
    assert list(refined.effects) == [*NODES, f"{NODES[0]} → {NODES[1]}", f"{NODES[1]} → {NODES[2]}"]
    # Without any one of them nothing is known of the answer: the loss rises to chance.
    loss = float(evaluator.losses(refined.keep[None]))
    assert list(refined.effects.values()) == pytest.approx([CHANCE - loss] * 5, abs=1e-5)


@pytest.mark.parametrize("cuts_edges", [False, True])
def test_of_what_is_left_nothing_can_go_alone_though_a_part_speaks_for_all(monkeypatch, cuts_edges):
    monkeypatch.setattr("sparse_circuits.refinement.HOPELESS", -0.9)  # the part says of nearly all that it can't go
    model, pairs = random_model(), random_pairs(60)
    space = NodeSpace.of(model.config)
    evaluator = Evaluator(model=model, pairs=pairs, values=torch.zeros(space.n_node), may_shift=True)
    every = torch.ones(space.n_node, dtype=torch.bool)
    whole = float(evaluator.losses(every[None]))
    goal = dataclasses.replace(goal_of(evaluator, max_auroc=1.0), target_loss=(whole + CHANCE) / 2)
    refined = refine(goal, every, cuts_edges=cuts_edges)
    circuit = Circuit(model=model, keep=refined.keep, edges=refined.edges, values=evaluator.values, task={})
    edges = EdgeSpace.of(edges_between(model, refined.keep))
    exact = dataclasses.replace(goal, evaluator=dataclasses.replace(evaluator, edges=edges))
    live = torch.cat([refined.edges[name][tuple(ends.T)] for name, ends in edges.ends.items()])
    items = torch.cat((refined.keep, live))
    loss, passed = exact.judge(items[None])
    assert passed
    difference = circuit.logit_difference(pairs, calibrated=False)
    fitted = fit_calibration(difference, may_shift=True)
    assert float(loss) == pytest.approx(float(task_loss(fitted(difference))), rel=1e-4)
    for item in exact.removable(items).nonzero().flatten().tolist():
        loss, passed = exact.judge(exact.evaluator.without(items, torch.tensor([item]))[None])
        assert not passed, exact.evaluator.names(torch.arange(len(items)) == item)


def test_refinement_ends_as_small_as_the_smallest_subset_that_reaches_the_goal():
    model, task = hand_built_model(), hand_built_task()
    evaluator = evaluator_of(model, task)
    extra = [
        "0.attn.act_in:1",
        "0.attn.v:1",
        "0.attn.resid_delta:4",
        "0.mlp.act_in:1",
        "0.mlp.post_act:2",
        "0.attn.k:0",
    ]
    candidates = torch.tensor([NodeSpace.of(model.config).index(name) for name in [*NODES, *extra]])
    subsets = torch.zeros(2 ** len(candidates), evaluator.n_node, dtype=torch.bool)
    for bit, node in enumerate(candidates.tolist()):
        subsets[:, node] = (torch.arange(len(subsets)) >> bit) % 2 == 1
    goal = goal_of(evaluator)
    _, passed = goal.judge(subsets)
    smallest = int(subsets[passed].sum(1).min())
    refined = refine(goal, kept_nodes(model, [*NODES, *extra]))
    assert int(refined.keep.sum()) == smallest == 3


def test_every_start_and_order_of_removal_ends_at_the_known_circuit_and_is_recorded():
    circuit = prune(hand_built_model(), hand_built_task(), QUICK, n_order=3, n_start=3)
    size = circuit.removed[0]["scan"]["size"]
    starts = [start for start in (size, 2 * size, 4 * size) for _ in range(3)]
    assert circuit.removed[0]["orders"] == [{"n_node_start": start, "n_node": 3, "n_edge": 2} for start in starts]
    assert circuit.node_names() == NODES


def test_the_smallest_circuit_of_all_starts_and_orders_is_kept(monkeypatch):
    ends = iter((5, 3, 4, 3))

    def ends_at(_, goal, keep, order, way):
        first = torch.arange(len(keep)) < next(ends)
        return Refined(keep=first, edges=edges_between(goal.evaluator.model, first), rounds=[], effects={})

    monkeypatch.setattr("sparse_circuits.pruning.Pruning._refine", ends_at)
    circuit = prune(hand_built_model(), hand_built_task(), QUICK, n_order=4)
    assert [way["n_node"] for way in circuit.removed[0]["orders"]] == [5, 3, 4, 3]
    assert circuit.n_node == 3


def test_a_shuffled_ranking_has_all_that_can_go_in_an_order_that_still_follows_what_is_missed():
    items, missed = torch.arange(80), torch.cat((torch.linspace(0.8, 1, 40), torch.linspace(2, 7, 40)))
    is_loose = missed <= 1
    assert _ranked(items, missed, is_loose, None).tolist() == list(range(40))
    orders = [_ranked(items, missed, is_loose, torch.Generator().manual_seed(seed)) for seed in range(1, 30)]
    assert all(order.sort().values.tolist() == list(range(40)) for order in orders)
    places = torch.stack([order.argsort() for order in orders]).double()
    agreement = torch.corrcoef(torch.cat((torch.arange(40.0).double()[None], places)))[0, 1:]
    assert 0.5 < float(agreement.mean()) < 0.9, "noise as wide as the spread of what can go: 1 / sqrt(2), about"
    nothing = torch.zeros(80, dtype=torch.bool)
    assert len(_ranked(items, missed, nothing, torch.Generator().manual_seed(1))) == 0


def test_sizes_that_reach_the_target_are_found_though_the_part_that_is_tried_first_is_harder(monkeypatch):
    evaluator = evaluator_of(hand_built_model(), hand_built_task())
    goal = goal_of(evaluator, max_auroc=1.0)
    tau = torch.where(kept_nodes(evaluator.model, NODES), 1.0, -1.0)
    losses = evaluator.losses(keep_top(tau, torch.tensor([len(NODES)])))
    hard = dataclasses.replace(evaluator.on(torch.arange(4)), values=evaluator.values + 0.3)
    part_losses = hard.losses(keep_top(tau, torch.tensor([len(NODES)])))
    goal = dataclasses.replace(goal, target_loss=float(losses + part_losses) / 2)
    assert float(losses) < goal.target_loss < float(part_losses)
    monkeypatch.setattr(Evaluator, "on_part", lambda self, _: hard)
    keep, _ = scan_sizes(goal, tau)
    assert keep is not None
    assert float(evaluator.losses(keep[None])) <= goal.target_loss


def test_an_edge_that_says_nothing_of_the_answer_is_cut_though_its_nodes_stay():
    model, task = hand_built_model(), hand_built_task()
    with torch.no_grad():
        model.linears()["0.attn.qkv"].weight[8 + 0, 1] = 0.3  # the fillers reach the value that carries the mark
    keep = kept_nodes(model, [*NODES, "0.attn.act_in:1"])
    evaluator = evaluator_of(model, task)
    goal = goal_of(evaluator, max_auroc=1.0)
    items = torch.cat((keep, torch.ones(3, dtype=torch.bool)))
    edges = EdgeSpace.of(edges_between(model, keep))
    evaluator = dataclasses.replace(goal.evaluator, edges=edges)
    with_edges = dataclasses.replace(goal, evaluator=evaluator)
    is_edge = torch.arange(len(items)) >= len(keep)
    rounds = []
    left = eliminate(with_edges, items, is_edge, on_round=lambda _, record: rounds.append(record))
    assert edges.names(left[len(keep) :]) == [f"{NODES[0]} → {NODES[1]}", f"{NODES[1]} → {NODES[2]}"]
    assert [record["removed"] for record in rounds] == [["0.attn.act_in:1 → 0.attn.v:0"]]


def test_refinement_goes_on_from_every_round_of_nodes_and_of_edges():
    model, task = hand_built_model(), hand_built_task()
    with torch.no_grad():
        model.linears()["0.attn.qkv"].weight[8 + 0, 1] = 0.3
    kept = kept_nodes(model, [*NODES, "0.attn.act_in:1"])
    goal = dataclasses.replace(goal_of(evaluator_of(model, task), max_auroc=1.0), needed=kept)
    whole, states = torch.ones_like(kept), []
    at_once = refine(goal, whole, on_round=states.append)
    assert {state.stage for state in states} == {"nodes", "edges"}
    for state in states:
        again = refine(goal, whole, begun=state)
        assert torch.equal(again.keep, at_once.keep)
        assert again.edges.keys() == at_once.edges.keys()
        assert all(torch.equal(again.edges[name], edges) for name, edges in at_once.edges.items())
        assert again.rounds[: len(state.rounds)] == state.rounds


@pytest.mark.parametrize("seed", range(3))
def test_candidates_from_a_shared_stream_have_the_losses_of_whole_runs(seed):
    torch.manual_seed(seed)
    model, pairs = random_model(), random_pairs()
    n_node = NodeSpace.of(model.config).n_node
    base = torch.rand(n_node) < 0.7
    edges = EdgeSpace.of(edges_between(model, base))
    base = torch.cat((base, torch.ones(edges.n_edge, dtype=torch.bool)))
    evaluator = Evaluator(model=model, pairs=pairs, values=torch.randn(n_node), may_shift=True, edges=edges)
    gone = torch.randperm(len(base))[:40]
    keep = torch.cat((evaluator.without_each(base, gone), base[None]))
    torch.testing.assert_close(
        evaluator.differences(keep, base=base), evaluator.differences(keep), rtol=1e-5, atol=1e-5
    )


def test_candidates_with_cut_edges_are_the_circuits_with_these_edges():
    torch.manual_seed(0)
    model, pairs = random_model(), random_pairs()
    n_node = NodeSpace.of(model.config).n_node
    keep, values = torch.rand(n_node) < 0.7, torch.randn(n_node)
    edges = EdgeSpace.of(edges_between(model, keep))
    cut = torch.rand(3, edges.n_edge) < 0.5
    evaluator = Evaluator(model=model, pairs=pairs, values=values, may_shift=True, edges=edges)
    together = evaluator.differences(torch.cat((keep.expand(3, -1), cut), 1))
    for run in range(3):
        circuit = Circuit(model=model, keep=keep, edges=edges.masks(cut[run]), values=values, task={})
        torch.testing.assert_close(together[run], circuit.logit_difference(pairs), rtol=1e-5, atol=1e-5)


def test_a_node_that_goes_takes_its_edges_along_uncut():
    model = random_model()
    keep = torch.ones(NodeSpace.of(model.config).n_node, dtype=torch.bool)
    edges = EdgeSpace.of(edges_between(model, keep))
    evaluator = Evaluator(model=model, pairs=random_pairs(), values=torch.zeros(len(keep)), may_shift=True, edges=edges)
    items = torch.cat((keep, torch.zeros(edges.n_edge, dtype=torch.bool)))
    node = int(edges.node_ends(NodeSpace.of(model.config))[0, 0])
    left = evaluator.without(items, torch.tensor([node]))
    touched = edges.names(left[len(keep) :])
    name = NodeSpace.of(model.config).names(torch.arange(len(keep)) == node)[0]
    assert touched == [
        edge for edge in edges.names(torch.ones(edges.n_edge, dtype=torch.bool)) if name in edge.split(" → ")
    ]
    assert not evaluator.removable(left)[len(keep) :].any()


def test_what_a_weak_edge_does_is_estimated_to_first_order():
    model, pairs = random_model(), random_pairs(40)
    generator = torch.Generator().manual_seed(3)
    n_node = NodeSpace.of(model.config).n_node
    keep = torch.rand(n_node, generator=generator) < 0.8
    space = EdgeSpace.of(edges_between(model, keep))
    weak = torch.randperm(space.n_edge, generator=generator)[:12]
    with torch.no_grad():
        for name, part in space.slices():
            for edge in weak[(weak >= part.start) & (weak < part.stop)] - part.start:
                model.linears()[name].weight[tuple(space.ends[name][edge])] *= 0.03
    evaluator = Evaluator(
        model=model, pairs=pairs, values=torch.randn(n_node, generator=generator), may_shift=True, edges=space
    )
    keep = torch.cat((keep, torch.ones(space.n_edge, dtype=torch.bool)))
    losses = evaluator.losses(evaluator.without_each(keep, n_node + weak), base=keep)
    found = evaluator.estimated_effects(keep).mean(0)
    torch.testing.assert_close(found[n_node + weak], losses - evaluator.losses(keep[None]), rtol=0.1, atol=3e-6)
    assert not found[~evaluator.removable(keep)].any()


@pytest.mark.parametrize("removes", ["nodes", "edges"])
def test_many_items_ranked_to_first_order_end_at_the_known_circuit(monkeypatch, removes):
    monkeypatch.setattr("sparse_circuits.refinement.N_MEASURED", 2)
    model, task = hand_built_model(), hand_built_task()
    evaluator = evaluator_of(model, task)
    if removes == "nodes":
        refined = refine(goal_of(evaluator), torch.ones(evaluator.n_node, dtype=torch.bool))
    else:
        with torch.no_grad():  # every channel that attention reads reaches the value that carries the mark
            model.linears()["0.attn.qkv"].weight[8 + 0, :4] += torch.tensor([0.0, 0.3, 0.2, 0.1])
        keep = kept_nodes(model, [*NODES, "0.attn.act_in:1", "0.attn.act_in:2", "0.attn.act_in:3"])
        refined = refine(goal_of(evaluator, max_auroc=1.0), keep)
    assert NodeSpace.of(model.config).names(refined.keep) == NODES
    assert refined.n_edge == 2


def test_the_best_ranked_nodes_are_kept_with_ties_to_the_lower_index():
    keep = keep_top(torch.tensor([0.1, 0.5, 0.5, -1.0]), torch.tensor([1, 2, 3]))
    assert keep.tolist() == [[False, True, False, False], [False, True, True, False], [True, True, True, False]]
