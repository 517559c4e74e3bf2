"""Pruning finds a circuit that is known by construction; verification tells it from a wrong one."""

import dataclasses
import json
import math

import pytest
import torch
from hand_built import NODES, hand_built_model, hand_built_task, random_model, random_pairs
from test_circuit import circuit_of

from sparse_circuits import kernels
from sparse_circuits.ablation import ablation_values, task_means
from sparse_circuits.candidates import Evaluator
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import PruneConfig
from sparse_circuits.edges import EdgeSpace, edges_between
from sparse_circuits.errors import ConfigError, PruneError, TapError, TaskError
from sparse_circuits.faithfulness import necessity, verify
from sparse_circuits.faithfulness.intervals import estimate
from sparse_circuits.faithfulness.necessity import matched_sets
from sparse_circuits.mask_runs import PRICE_AT_START, MaskParameters, MaskRun, step_gates, surrogate_derivative
from sparse_circuits.masks import PROMOTION, bytes_of_run, information_left, learn_masks
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.pruning import LEARNED_SHARES, Pruning, prune
from sparse_circuits.refinement import Goal, eliminate, keep_top, refine
from sparse_circuits.scoring import CHANCE, all_logit_differences, fit_calibration, logit_difference, task_loss
from sparse_circuits.taps import Gate, reading, replacing

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


def test_an_unreachable_target_is_said_with_the_models_own_loss():
    with pytest.raises(PruneError, match=r"the full model's calibrated loss on first_token \(select\) is 0\.0"):
        prune(hand_built_model(), hand_built_task(), QUICK, target_loss=1e-9)


def test_corpus_means_of_a_model_without_a_corpus_are_refused():
    with pytest.raises(PruneError, match="comes from no run folder"):
        prune(hand_built_model(), hand_built_task(), QUICK, ablation="mean")


def test_verification_gives_the_exact_answer_on_the_known_circuit():
    model, task = hand_built_model(), hand_built_task()
    report = verify(_circuit(model, task, NODES), task)
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
    report = verify(_circuit(model, task, wrong), task)
    assert report.sufficiency["test"].circuit.loss.value == pytest.approx(CHANCE, abs=1e-6)
    assert report.sufficiency["test"].circuit.accuracy == 0.5
    assert report.necessity.loss.value < 0.2
    assert report.necessity.auroc == 1.0


def test_a_circuit_with_one_node_missing_fails_too():
    model, task = hand_built_model(), hand_built_task()
    for missing in NODES:
        report = verify(_circuit(model, task, [name for name in NODES if name != missing]), task, n_set=2)
        assert report.sufficiency["test"].circuit.accuracy == 0.5


def test_verification_writes_a_report_and_notes_that_test_was_read(tmp_path):
    model, task = hand_built_model(), hand_built_task()
    circuit = _circuit(model, task, NODES)
    circuit.save(tmp_path)
    verify(circuit, task, folder=tmp_path, n_set=3)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["n_node"] == 3
    assert report["random_sets"]["n_set"] == 3
    assert json.loads((tmp_path / "circuit.json").read_text())["test_readings"][0]["what"] == "verify"


def test_another_tasks_prompts_are_refused():
    with pytest.raises(TaskError, match="with other prompts"):
        verify(_circuit(hand_built_model(), hand_built_task(), NODES), hand_built_task(n_pair=30))


def _evaluator(model, task):
    values = torch.zeros(NodeSpace.of(model.config).n_node)
    return Evaluator(model=model, pairs=task.split("select"), values=values, may_shift=True)


def _kept(model, names):
    space = NodeSpace.of(model.config)
    keep = torch.zeros(space.n_node, dtype=torch.bool)
    keep[[space.index(name) for name in names]] = True
    return keep


def _circuit(model, task, names):
    circuit = circuit_of(model, names)
    circuit.task = {"name": task.name, "hash": task.hash, "seed": 0}
    return circuit


def test_the_masks_gradient_is_the_removals_effect_times_the_surrogates():
    x = torch.randn(4, 3, 5, requires_grad=True)  # two runs of two rows
    tau = torch.tensor([[0.5, -0.5, 0.0, 0.1, -0.1]]).repeat(2, 1).requires_grad_()
    value, weight = torch.randn(5), torch.randn(4, 3, 5)
    out = Gate(step_gates(tau, temperature=torch.full((2, 1), 0.7), complement=False), value[None])(x)
    keep = (tau >= 0).repeat_interleave(2, 0)[:, None]
    torch.testing.assert_close(out, torch.where(keep, x, value))
    (out * weight).sum().backward()
    by_mask = (weight * (x.detach() - value)).unflatten(0, (2, 2)).sum((1, 2))
    torch.testing.assert_close(tau.grad, by_mask * surrogate_derivative(tau.detach(), 0.7))
    torch.testing.assert_close(x.grad, torch.where(keep, weight, 0.0))


def test_the_complement_keeps_what_the_circuit_removes_and_pulls_the_other_way():
    x = torch.randn(4, 3, 5, requires_grad=True)  # the circuit's two rows, then its complement's two
    tau = torch.randn(1, 5, requires_grad=True)
    value, weight = torch.randn(5), torch.randn(4, 3, 5)
    out = Gate(step_gates(tau, temperature=torch.ones(1, 1), complement=True), value[None])(x)
    keep = torch.cat((tau >= 0, tau < 0)).repeat_interleave(2, 0)[:, None]
    torch.testing.assert_close(out, torch.where(keep, x, value))
    (out * weight).sum().backward()
    by_mask = (weight * (x.detach() - value)).unflatten(0, (2, 2)).sum((1, 2))
    torch.testing.assert_close(tau.grad[0], (by_mask[0] - by_mask[1]) * surrogate_derivative(tau.detach()[0], 1.0))


def test_a_step_of_all_runs_is_torchs_adamw_on_each():
    n_step = 5
    configs = [
        PruneConfig(n_step=n_step, warmup_frac=0, lr=0.1),
        PruneConfig(n_step=n_step, warmup_frac=0, lr=0.02, beta2=0.8, weight_decay=0.3),
    ]
    space = NodeSpace.of(hand_built_model().config)
    masks = MaskParameters(space, configs, [torch.Generator().manual_seed(seed) for seed in range(2)])
    plain = [tau.clone().requires_grad_() for tau in masks.own.detach()]
    each = [
        torch.optim.AdamW([tau], lr=config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay)
        for tau, config in zip(plain, configs, strict=True)
    ]
    for step in range(n_step):
        grads = torch.randn(2, space.n_node)
        masks.own.grad = grads.clone()
        masks.step(step, [0.0, 0.0])
        for tau, adam, config, grad in zip(plain, each, configs, grads, strict=True):
            tau.grad = grad
            adam.param_groups[0]["lr"] = config.lr * (n_step - step) / n_step
            adam.step()
            with torch.no_grad():
                tau.clamp_(-1, 1)
        torch.testing.assert_close(masks.own.detach(), torch.stack(plain).detach())


def test_the_surrogate_is_a_quarter_over_the_temperature_at_zero():
    assert float(surrogate_derivative(torch.tensor(0.0), 2.0)) == pytest.approx(0.125)


def test_no_information_is_left_only_where_both_sides_agree():
    assert float(information_left(torch.tensor([[3.0, 3.0], [-1.0, -1.0]]))) == pytest.approx(0, abs=1e-6)
    right, flipped = torch.tensor([[0.2, -0.2]]), torch.tensor([[-0.2, 0.2]])
    d = PROMOTION * 0.2
    expected = (math.log1p(math.exp(d)) + math.log1p(math.exp(-d))) / 2 - math.log(2)
    assert float(information_left(right)) == pytest.approx(expected)
    assert float(information_left(flipped)) == pytest.approx(expected)


def _run(task, **settings):
    settings = {"ablation": "zero", "n_step": 1, "n_pair": 8, **settings}
    values = torch.zeros(NodeSpace.of(hand_built_model().config).n_node)
    return MaskRun(fit=task.split("fit"), values=values, config=PruneConfig(**settings))


def test_masks_learned_side_by_side_begin_as_each_alone():
    model, task = hand_built_model(), hand_built_task()
    runs = [
        _run(task, seed=0),
        _run(task, seed=1, lr=3e-2, beta2=0.9, temperature=0.5),
        _run(task, seed=2, count_coefficient=0.1, necessity_coefficient=0.0, weight_decay=0.5),
        _run(task, seed=3, calibrates=False, ties_query_and_key=True, exclude=("0.mlp.post_act:1",)),
    ]
    together = learn_masks(model, runs)
    for run, (tau, history) in enumerate(zip(together.tau, together.history, strict=True)):
        alone = learn_masks(model, runs[run : run + 1])
        torch.testing.assert_close(tau, alone.tau[0], rtol=1e-5, atol=1e-6)
        assert history[0] == pytest.approx(alone.history[0][0], rel=1e-5)


def test_the_fast_kernels_end_at_the_masks_of_the_plain_ones():
    model, fit = random_model(), random_pairs()
    values = torch.randn(NodeSpace.of(model.config).n_node, generator=torch.Generator().manual_seed(0))
    config = PruneConfig(n_step=25, n_pair=4, lr=3e-2)
    fast = learn_masks(model, [MaskRun(fit=fit, values=values, config=config)])
    with kernels.use("reference"):
        plain = learn_masks(model, [MaskRun(fit=fit, values=values, config=config)])
    assert 0.1 < float(plain.keep.float().mean()) < 0.98
    assert float((fast.keep == plain.keep).float().mean()) >= 0.99


def test_runs_with_different_numbers_of_steps_are_refused():
    task = hand_built_task()
    with pytest.raises(ConfigError, match="need the same n_step and n_pair"):
        learn_masks(hand_built_model(), [_run(task), _run(task, n_step=2)])


def test_masks_are_learned_again_for_a_lower_loss_only_where_the_target_decides_the_price(monkeypatch):
    asked = []
    learn = Pruning.learn

    def recorded(self, configs, *, share):
        asked.append(share)
        return learn(self, configs, share=share)

    monkeypatch.setattr(Pruning, "learn", recorded)
    for settings in ({}, {"count_coefficient": 1e-3}):
        with pytest.raises(PruneError, match="no size meets target_loss"):
            prune(hand_built_model(), hand_built_task(), QUICK, exclude=(NODES[1],), n_step=5, **settings)
    assert asked == [*LEARNED_SHARES, 1.0]


def test_an_excluded_node_is_never_kept():
    model, task = hand_built_model(), hand_built_task()
    learned = learn_masks(model, [_run(task, n_step=20, lr=0.1, exclude=(NODES[1],))])
    node = NodeSpace.of(model.config).index(NODES[1])
    assert learned.tau[0, node] == -torch.inf
    with pytest.raises(PruneError, match="no size meets target_loss"):
        prune(model, task, QUICK, exclude=(NODES[1],))
    with pytest.raises(TapError, match="no location is called"):
        learn_masks(model, [_run(task, exclude=("0.attn.w:1",))])


def test_a_query_channel_that_is_tied_goes_with_its_key_channel():
    model = random_model()
    fit = random_pairs()
    values = torch.zeros(NodeSpace.of(model.config).n_node)
    config = PruneConfig(n_step=30, n_pair=4, lr=0.1, ties_query_and_key=True, init_noise=0.1)
    tau = learn_masks(model, [MaskRun(fit=fit, values=values, config=config)]).tau[0]
    parts = NodeSpace.of(model.config).split(tau)
    assert torch.equal(parts["0.attn.q"], parts["0.attn.k"])
    assert torch.equal(parts["1.attn.q"], parts["1.attn.k"])
    assert not torch.equal(parts["0.attn.q"], parts["0.attn.v"])


def test_the_price_rises_below_the_target_and_falls_above_it():
    task = hand_built_task()
    below, above = (
        learn_masks(hand_built_model(), [_run(task, n_step=5, lr=1e-6, init_noise=0, target_loss=target)]).history[0]
        for target in (0.6, 1e-9)
    )
    prices = [record["price"] for record in below]
    assert prices == sorted(prices)
    assert prices[-1] < PRICE_AT_START * math.exp(5 * 0.05) + 1e-12
    falling = [PRICE_AT_START * math.exp(-0.05 * i) for i in range(1, 6)]
    assert [record["price"] for record in above] == pytest.approx(falling)
    fixed = learn_masks(hand_built_model(), [_run(task, n_step=5, count_coefficient=0.03)]).history[0]
    assert [record["price"] for record in fixed] == [0.03] * 5


def test_pruning_leaves_the_model_as_it_was():
    model = hand_built_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    prune(model, hand_built_task(), QUICK)
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in model.named_parameters())
    assert all(not tap.edits and not tap.readers for tap in model.taps().values())


def test_candidates_side_by_side_have_the_losses_of_each_alone():
    model, task = hand_built_model(), hand_built_task()
    space = NodeSpace.of(model.config)
    evaluator = Evaluator(model=model, pairs=task.split("select"), values=torch.randn(space.n_node), may_shift=True)
    keep = torch.rand(11, space.n_node) < 0.6
    together = evaluator.losses(keep)
    alone = torch.cat([evaluator.losses(one[None]) for one in keep])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_streams_that_are_remembered_give_the_differences_of_a_fresh_start():
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


def test_the_worst_random_set_is_the_worst_on_the_larger_number_of_pairs(monkeypatch):
    model, task = hand_built_model(), hand_built_task()
    circuit = _circuit(model, task, NODES)
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


def test_elimination_never_leaves_the_goal_and_only_removes():
    model, task = hand_built_model(), hand_built_task()
    space = NodeSpace.of(model.config)
    evaluator = Evaluator(model=model, pairs=task.split("select"), values=torch.zeros(space.n_node), may_shift=True)
    goal = Goal(
        evaluator=evaluator,
        without=evaluator,
        target_loss=0.1,
        max_auroc=0.6,
        needed=torch.zeros(evaluator.n_node, dtype=torch.bool),
    )
    whole = torch.ones(space.n_node, dtype=torch.bool)
    keep, rounds = eliminate(goal, whole, whole)
    assert space.names(keep) == NODES
    assert all(record["loss"] <= 0.1 for record in rounds)
    assert [record["n_node"] for record in rounds] == sorted((r["n_node"] for r in rounds), reverse=True)


def test_refinement_leaves_the_known_nodes_and_edges_and_nothing_of_them_can_go():
    model, task = hand_built_model(), hand_built_task()
    evaluator = _evaluator(model, task)
    goal = Goal(
        evaluator=evaluator,
        without=evaluator,
        target_loss=0.1,
        max_auroc=0.6,
        needed=torch.zeros(evaluator.n_node, dtype=torch.bool),
    )
    refined = refine(goal, torch.ones(evaluator.n_node, dtype=torch.bool))
    assert NodeSpace.of(model.config).names(refined.keep) == NODES
    assert sum(int(mask.sum()) for mask in refined.edges.values()) == 2
    assert list(refined.effects) == [*NODES, f"{NODES[0]} → {NODES[1]}", f"{NODES[1]} → {NODES[2]}"]
    # Without any one of them nothing is known of the answer: the loss rises to chance.
    loss = float(evaluator.losses(refined.keep[None]))
    assert list(refined.effects.values()) == pytest.approx([CHANCE - loss] * 5, abs=1e-5)


def test_refinement_ends_as_small_as_the_smallest_subset_that_reaches_the_goal():
    model, task = hand_built_model(), hand_built_task()
    evaluator = _evaluator(model, task)
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
    goal = Goal(
        evaluator=evaluator,
        without=evaluator,
        target_loss=0.1,
        max_auroc=0.6,
        needed=torch.zeros(evaluator.n_node, dtype=torch.bool),
    )
    _, passed = goal.judge(subsets)
    smallest = int(subsets[passed].sum(1).min())
    refined = refine(goal, _kept(model, [*NODES, *extra]))
    assert int(refined.keep.sum()) == smallest == 3


def test_every_order_of_removal_ends_at_the_known_circuit_and_is_recorded():
    circuit = prune(hand_built_model(), hand_built_task(), QUICK, n_order=3)
    assert circuit.removed[0]["orders"] == [{"n_node": 3, "n_edge": 2}] * 3


def test_runs_that_do_not_fit_into_memory_together_go_one_after_the_other():
    model, task = hand_built_model(), hand_built_task()
    runs = [_run(task, seed=seed, n_step=3) for seed in range(3)]
    sizes = []
    apart = learn_masks(model, runs, memory=1, on_step=lambda _, records: sizes.append(len(records)))
    assert sizes == [1] * 9
    together = learn_masks(model, runs)
    torch.testing.assert_close(apart.tau, together.tau, rtol=1e-5, atol=1e-6)
    one = bytes_of_run(model, runs[0])
    learn_masks(model, runs, memory=2 * one, on_step=lambda _, records: sizes.append(len(records)))
    assert sizes[9:] == [2] * 3 + [1] * 3


def test_matching_the_model_asks_for_its_confidence_and_labels_do_not():
    model, task = hand_built_model(), hand_built_task()
    circuit = prune(model, task, QUICK, goal="model", target_loss=0.02)
    assert set(NODES) <= set(circuit.node_names())
    assert circuit.losses["match"] <= 0.02
    assert circuit.losses["r_squared"] > 0.9
    assert (circuit.calibration.scale, circuit.calibration.shift) == (1.0, 0.0)


def test_an_edge_that_says_nothing_of_the_answer_is_cut_though_its_nodes_stay():
    model, task = hand_built_model(), hand_built_task()
    with torch.no_grad():
        model.linears()["0.attn.qkv"].weight[8 + 0, 1] = 0.3  # the fillers reach the value that carries the mark
    keep = _kept(model, [*NODES, "0.attn.act_in:1"])
    evaluator = _evaluator(model, task)
    goal = Goal(
        evaluator=evaluator,
        without=evaluator,
        target_loss=0.1,
        max_auroc=1.0,
        needed=torch.zeros(evaluator.n_node, dtype=torch.bool),
    )
    items = torch.cat((keep, torch.ones(3, dtype=torch.bool)))
    edges = EdgeSpace.of(edges_between(model, keep))
    evaluator = dataclasses.replace(goal.evaluator, edges=edges)
    with_edges = dataclasses.replace(goal, evaluator=evaluator)
    is_edge = torch.arange(len(items)) >= len(keep)
    left, rounds = eliminate(with_edges, items, is_edge)
    assert edges.names(left[len(keep) :]) == [f"{NODES[0]} → {NODES[1]}", f"{NODES[1]} → {NODES[2]}"]
    assert [record["removed"] for record in rounds] == [["0.attn.act_in:1 → 0.attn.v:0"]]


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


def test_the_best_ranked_nodes_are_kept_with_ties_to_the_lower_index():
    keep = keep_top(torch.tensor([0.1, 0.5, 0.5, -1.0]), torch.tensor([1, 2, 3]))
    assert keep.tolist() == [[False, True, False, False], [False, True, True, False], [True, True, True, False]]


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


def test_an_interval_holds_the_mean_and_widens_with_the_spread_between_templates():
    templates = tuple(f"t{i % 12}" for i in range(240))
    even = estimate(torch.full((240,), 0.3), templates)
    assert (even.value, even.low, even.high) == pytest.approx((0.3, 0.3, 0.3))
    by_template = torch.tensor([float(i % 12) for i in range(240)])
    apart = estimate(by_template, templates)
    assert apart.low < apart.value == 5.5 < apart.high
    within = estimate(by_template[torch.randperm(240, generator=torch.Generator().manual_seed(0))], templates)
    assert apart.high - apart.low > 2 * (within.high - within.low)
    assert estimate(torch.ones(4), ("a", "a", "b", "b")).n_template == 2
