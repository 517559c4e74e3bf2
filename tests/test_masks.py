"""Learning masks: gradients, steps, prices and runs side by side, against plain versions."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from hand_built import NODES, hand_built_model, hand_built_task, random_model, random_pairs

from sparse_circuits import kernels, sparse_products
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import ConfigError, PruneError, TapError
from sparse_circuits.mask_runs import (
    PRICE_AT_LEAST,
    MaskParameters,
    MaskRun,
    Price,
    excluded_nodes,
    step_gates,
    surrogate_derivative,
)
from sparse_circuits.masks import PROMOTION, _endless_batches, bytes_of_run, information_left, learn_masks
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.pruning import LEARNED_SHARES, Pruning, deciding_pairs, prune
from sparse_circuits.scoring import all_logit_differences, task_loss
from sparse_circuits.taps import Gate

QUICK = PruneConfig(ablation="zero", n_step=80, n_pair=8, lr=3e-2, target_loss=0.1)


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


def test_products_with_the_nonzeros_alone_learn_the_same_masks(monkeypatch):
    model, pairs = random_model(), random_pairs()
    values = torch.randn(NodeSpace.of(model.config).n_node)
    config = PruneConfig(n_step=6, n_pair=4, lr=0.05)
    learned, n_product = [], []
    of_packed = kernels.packed_linear
    monkeypatch.setattr(
        kernels, "packed_linear", lambda *given, **more: n_product.append(1) or of_packed(*given, **more)
    )
    for density in (0.0, 1.0):
        monkeypatch.setattr(sparse_products, "MAX_DENSITY", density)
        learned.append(learn_masks(model, [MaskRun(fit=pairs, values=values, config=config, may_shift=True)]))
        assert bool(n_product) == (density == 1.0 and kernels.has_fast_products(model.unembedding.weight))
        assert all(linear.packed is None for linear in model.linears().values())
    torch.testing.assert_close(learned[0].tau, learned[1].tau, rtol=1e-4, atol=1e-5)
    losses = [[record["loss"] for record in one.history[0]] for one in learned]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


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
        torch.optim.AdamW(
            [tau], lr=config.lr, betas=(0.9, config.beta2), eps=config.eps, weight_decay=config.weight_decay
        )
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


def test_runs_of_different_tasks_and_lengths_learn_together_what_each_learns_alone():
    model, n_node = random_model(), NodeSpace.of(random_model().config).n_node
    long, short = random_pairs(24), random_pairs(12)
    short = dataclasses.replace(
        short, tokens=short.tokens[..., :4].flip(1), length=short.length.clamp(max=4), answers=short.answers.flip(1)
    )
    config = PruneConfig(ablation="zero", n_step=30, n_pair=8, lr=3e-2, target_loss=0.6)
    values = torch.linspace(-0.1, 0.1, n_node)
    runs = [
        MaskRun(fit=long, values=torch.zeros(n_node), config=config),
        MaskRun(fit=short, values=values, config=dataclasses.replace(config, goal="model", seed=4), may_shift=False),
    ]
    together = learn_masks(model, runs)
    for run, (keep, history) in enumerate(zip(together.keep, together.history, strict=True)):
        alone = learn_masks(model, runs[run : run + 1])
        assert history[0] == pytest.approx(alone.history[0][0], rel=1e-5)
        assert float((keep == alone.keep[0]).double().mean()) >= 0.99
        assert history[-1]["loss"] == pytest.approx(alone.history[0][-1]["loss"], abs=1e-3)


def test_the_fast_kernels_end_at_the_masks_of_the_plain_ones():
    model, fit = random_model(), random_pairs()
    values = torch.randn(NodeSpace.of(model.config).n_node, generator=torch.Generator().manual_seed(0))
    config = PruneConfig(n_step=25, n_pair=4, lr=3e-2, init_bias=0.1, init_noise=0.08)
    fast = learn_masks(model, [MaskRun(fit=fit, values=values, config=config)])
    with kernels.use("reference"):
        plain = learn_masks(model, [MaskRun(fit=fit, values=values, config=config)])
    assert 0.1 < float(plain.keep.float().mean()) < 0.98
    assert float((fast.keep == plain.keep).float().mean()) >= 0.99


def test_with_an_excluded_channel_goes_the_one_that_is_tied_to_it():
    space = NodeSpace.of(random_model().config)
    config = PruneConfig(exclude=("0.attn.k:2", "0.mlp.act_in:1"))
    assert space.names(excluded_nodes(space, config)) == ["0.attn.k:2", "0.mlp.act_in:1"]
    tied = dataclasses.replace(config, ties_query_and_key=True)
    assert space.names(excluded_nodes(space, tied)) == ["0.attn.q:2", "0.attn.k:2", "0.mlp.act_in:1"]


def test_runs_with_different_numbers_of_steps_are_refused():
    task = hand_built_task()
    with pytest.raises(ConfigError, match="need the same n_step and n_pair"):
        learn_masks(hand_built_model(), [_run(task), _run(task, n_step=2)])


def test_runs_that_can_take_different_numbers_of_pairs_a_step_are_refused():
    run = _run(hand_built_task())
    fewer = dataclasses.replace(run, fit=run.fit.take(torch.arange(run.config.n_pair - 1)))
    n_pair = run.config.n_pair
    with pytest.raises(ConfigError, match=f"as many pairs a step, found {n_pair - 1} and {n_pair}"):
        learn_masks(hand_built_model(), [run, fewer])


def test_masks_are_learned_again_for_a_lower_loss_only_where_the_target_decides_the_price(monkeypatch):
    asked = []
    learn = Pruning.learn

    def recorded(self, configs, *, share):
        asked.append(share)
        return learn(self, configs, share=share)

    monkeypatch.setattr(Pruning, "learn", recorded)
    for settings in ({}, {"count_coefficient": 1e-3}):
        with pytest.raises(PruneError, match=r"no size meets target_loss .* tried is \d+ nodes at loss 0\.69"):
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


def test_a_tied_channel_goes_with_one_that_is_excluded():
    model = random_model()
    values = torch.zeros(NodeSpace.of(model.config).n_node)
    config = PruneConfig(n_step=3, n_pair=4, ties_query_and_key=True, exclude=("0.attn.k:1", "1.attn.q:2"))
    tau = learn_masks(model, [MaskRun(fit=random_pairs(), values=values, config=config)]).tau[0]
    gone = NodeSpace.of(model.config).names(tau == -torch.inf)
    assert gone == ["0.attn.q:1", "0.attn.k:1", "1.attn.q:2", "1.attn.k:2"]


def test_what_is_recorded_and_remembered_is_what_the_loss_was_measured_with():
    task = hand_built_task()
    run = _run(task, n_step=2, lr=5.0, init_noise=0, count_coefficient=1.0, necessity_coefficient=0.0)
    learned = learn_masks(hand_built_model(), [run])
    first, second = learned.history[0]
    n_node = NodeSpace.of(hand_built_model().config).n_node
    assert first["n_node"] == n_node
    assert first["loss"] < 0.1
    assert second["n_node"] == 0  # one step at this price takes everything
    assert second["loss"] == pytest.approx(math.log(2), abs=1e-3)


def test_what_fills_no_batch_is_drawn_anew_in_each_epoch():
    pairs = random_pairs()
    generator = torch.Generator().manual_seed(0)
    n_pair = next(n for n in range(2, len(pairs)) if len(pairs) % n)
    batches = _endless_batches(pairs, n_pair, generator)
    n_batch = len(pairs) // n_pair
    seen: set[int] = set()
    for _ in range(20):
        epoch = torch.cat([next(batches) for _ in range(n_batch)]).tolist()
        assert len(set(epoch)) == n_batch * n_pair
        seen |= set(epoch)
    assert seen == set(range(len(pairs)))


def test_the_price_rises_below_the_target_and_falls_above_it_to_its_least():
    task = hand_built_task()
    below, above = (
        learn_masks(hand_built_model(), [_run(task, n_step=5, lr=1e-6, init_noise=0, target_loss=target)]).history[0]
        for target in (0.6, 1e-9)
    )
    prices = [record["price"] for record in below]
    assert prices == sorted(prices)
    assert PRICE_AT_LEAST < prices[-1] < PRICE_AT_LEAST * math.exp(5 * 0.05) + 1e-12
    assert [record["price"] for record in above] == [PRICE_AT_LEAST] * 5
    fixed = learn_masks(hand_built_model(), [_run(task, n_step=5, count_coefficient=0.03)]).history[0]
    assert [record["price"] for record in fixed] == [0.03] * 5


def test_the_price_follows_the_running_loss_by_hand_and_one_bad_batch_counts_three_times_the_target():
    price = Price([PruneConfig(target_loss=0.1)])
    price.now = [0.01]
    price.follow(torch.tensor([50.0]))  # counts as 0.3: the mean is 0.95 · 0.1 + 0.05 · 0.3 = 0.11
    assert float(price.mean_loss) == pytest.approx(0.11)
    assert price.now == pytest.approx([0.01 * math.exp(-0.05 * 0.1)])
    price.follow(torch.tensor([0.0]))  # 0.95 · 0.11 = 0.1045
    assert price.now == pytest.approx([0.01 * math.exp(-0.05 * 0.1 - 0.05 * 0.045)])
    for _ in range(100):
        price.follow(torch.tensor([50.0]))
    assert price.now == [PRICE_AT_LEAST]
    assert bool(price.is_lost())


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


def test_what_masks_take_of_memory_is_no_part_of_what_decides_a_circuit(tmp_path):
    model, task = hand_built_model(), hand_built_task()
    small = dataclasses.replace(QUICK, memory_mib=1)
    assert Pruning(model, task, small)._made_of("prune") == Pruning(model, task, QUICK)._made_of("prune")
    circuit = prune(model, task, small, folder=tmp_path)
    assert circuit.other_settings(QUICK) == {}
    assert circuit.settings["memory_mib"] == 1


def test_a_step_takes_no_more_memory_than_is_estimated():
    code = """
import resource, sys
import torch
import sparse_circuits as sc
from sparse_circuits.configs import PruneConfig
from sparse_circuits.masks import bytes_of_run, learn_masks
from sparse_circuits.mask_runs import MaskRun
from sparse_circuits.nodes import NodeSpace
model = sc.load(sc.example())
fit = sc.task("single_double_quote", model.tokenizer).split("fit")
values = torch.zeros(NodeSpace.of(model.config).n_node)
runs = [MaskRun(fit=fit, values=values, config=PruneConfig(n_step=2, seed=seed)) for seed in range(9)]
learn_masks(model, runs[:1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
before = peak()
learn_masks(model, runs, memory=8 * bytes_of_run(model, runs[0]))
print(peak() - before, 7 * bytes_of_run(model, runs[0]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken, estimated = map(int, done.stdout.split())
    assert taken <= estimated


def test_a_run_that_is_given_up_changes_nothing_for_the_others():
    model, task = hand_built_model(), hand_built_task()
    runs = [_run(task, seed=seed, n_step=6) for seed in range(3)]
    whole, asked, sizes = learn_masks(model, runs), [], []

    def stops(run, history):
        asked.append((run, len(history)))
        return run == 1 and len(history) == 2

    found = learn_masks(model, runs, stops=stops, on_step=lambda _, records: sizes.append(len(records)))
    assert [len(history) for history in found.history] == [6, 2, 6]
    assert sizes == [3, 3, 2, 2, 2, 2]
    assert [length for run, length in asked if run == 1] == [1, 2]
    torch.testing.assert_close(found.tau[[0, 2]], whole.tau[[0, 2]], rtol=1e-5, atol=1e-6)
    apart = learn_masks(model, runs, memory=1, stops=lambda run, history: run == 2)
    assert [len(history) for history in apart.history] == [6, 6, 1]


def test_matching_the_model_asks_for_its_confidence_and_labels_do_not():
    model, task = hand_built_model(), hand_built_task()
    circuit = prune(model, task, QUICK, goal="model", target_loss=0.02)
    assert set(NODES) <= set(circuit.node_names())
    assert circuit.losses["match"] <= 0.02
    assert circuit.losses["r_squared"] > 0.9
    whole = task_loss(all_logit_differences(model, deciding_pairs(task))[0])
    assert circuit.losses["model"] == pytest.approx(float(whole))
    assert (circuit.calibration.scale, circuit.calibration.shift) == (1.0, 0.0)
