"""Bridges: hybrids are the models' own forward, gradients are autograd's, memory is bounded, runs resume exactly."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from bridge_models import pair, random_model, random_tokens

from sparse_circuits.bridges.maps import Bridges
from sparse_circuits.bridges.objective import Wanted, backward, chosen_positions, chosen_sites, nmse
from sparse_circuits.bridges.residual import OwnModel, frozen, run_tails, streams
from sparse_circuits.configs import BridgeConfig


def plain_loss(bridges, sparse, dense, tokens, config, *, sites=None, positions=None):
    """The objective as the paper writes it: one hybrid at a time, one loss, for autograd."""
    inputs = tokens[:, :-1]
    sites = range(len(bridges.sites)) if sites is None else sites
    at = slice(None) if positions is None else positions
    h_s, last_s = streams(sparse, inputs, bridges.sparse_sites)
    h_d, last_d = streams(dense, inputs, bridges.dense_sites)
    target = dense.unembed(last_d, inputs).log_softmax(-1)[:, at]
    total = F.cross_entropy(sparse.unembed(last_s, inputs).flatten(0, 1), tokens[:, 1:].flatten())
    for i, (site_s, site_d) in enumerate(bridges.sites):
        to_sparse, to_dense = bridges.encode(i, h_d[i]), bridges.decode(i, h_s[i])
        total = total + config.nmse_weight * nmse(to_sparse, h_s[i].detach())
        total = total + config.nmse_weight * nmse(to_dense, h_d[i])
        if i in sites:
            for model, site, x in ((sparse, site_s, to_sparse), (dense, site_d, to_dense)):
                logits = model.unembed(model.run(x, site), inputs)[:, at]
                kl = F.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="none").sum(-1).mean()
                total = total + config.kl_weight * len(bridges.sites) / len(sites) * kl
    return total


def gradients(bridges, sparse):
    return {n: p.grad for module in (bridges, sparse.model) for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "settings",
    [{}, {"hybrids_at_once": 1}, {"hybrids_at_once": 2}, {"sites_per_step": 2}, {"position_share": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("shape", [{}, {"norm": "layer", "positions": "concatenated", "d_position": 4}], ids=str)
def test_gradients_are_those_of_the_plainest_autograd(settings, shape):
    config = BridgeConfig(nmse_weight=0.7, kl_weight=1.3, **settings)
    sparse, dense, bridges = pair(**shape)
    tokens = random_tokens()
    losses = backward(bridges, sparse=sparse, dense=dense, tokens=tokens, config=config, step=3)
    found = gradients(bridges, sparse)
    for module in (bridges, sparse.model):
        module.zero_grad()
    sites, positions = chosen_sites(5, config, 3), chosen_positions(6, config, 3)
    total = plain_loss(bridges, sparse, dense, tokens, config, sites=sites, positions=positions)
    total.backward()
    wanted = gradients(bridges, sparse)
    assert found.keys() == wanted.keys()
    assert any(name.startswith("encoders") for name in found)
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=2e-4, atol=2e-5, msg=name)
    assert losses.total == pytest.approx(float(total.detach()), rel=1e-5)


def test_models_of_different_depth_are_joined_by_a_map_with_the_same_gradients():
    sparse = OwnModel(random_model(0, act_density=0.5, n_layer=2))
    dense = OwnModel(random_model(1, act_density=None, n_layer=1, d_model=12))
    frozen(dense)
    bridges = Bridges(d_sparse=8, d_dense=12, sites=((0, 0), (3, 1), (4, 2)), density=0.5)
    tokens, config = random_tokens(), BridgeConfig()
    backward(bridges, sparse=sparse, dense=dense, tokens=tokens, config=config)
    found = gradients(bridges, sparse)
    for module in (bridges, sparse.model):
        module.zero_grad()
    plain_loss(bridges, sparse, dense, tokens, config).backward()
    for name, grad in gradients(bridges, sparse).items():
        torch.testing.assert_close(found[name], grad, rtol=2e-4, atol=2e-5, msg=name)


def test_the_dense_model_gets_no_gradient():
    sparse, dense, bridges = pair()
    backward(bridges, sparse=sparse, dense=dense, tokens=random_tokens(), config=BridgeConfig())
    assert all(p.grad is None for p in dense.model.parameters())


@pytest.mark.parametrize("site", range(5))
def test_an_identity_bridge_between_two_copies_gives_the_models_logits_bit_for_bit(site):
    model, copy = OwnModel(random_model(0, act_density=0.5)), OwnModel(random_model(0, act_density=0.5))
    bridges = Bridges(d_sparse=8, d_dense=8, sites=tuple((s, s) for s in range(5)), density=None)
    with torch.no_grad():
        for linear in [*bridges.encoders, *bridges.decoders]:
            linear.weight.copy_(torch.eye(8))
            linear.bias.zero_()
        tokens = random_tokens()
        (stream,), _ = streams(copy, tokens, [site])
        expected = model.model(tokens)
        for bridged in (bridges.encode(site, stream), bridges.decode(site, stream)):
            assert torch.equal(model.unembed(model.run(bridged, site), tokens), expected)


def test_hybrids_that_share_a_batch_are_those_that_run_alone():
    sparse, _, _ = pair()
    generator = torch.Generator().manual_seed(5)
    starts = {site: torch.randn(3, 6, 8, generator=generator) for site in (0, 2, 3, 4)}
    together = run_tails(sparse, starts)
    for alone, (site, x) in zip(together, starts.items(), strict=True):
        torch.testing.assert_close(alone, sparse.run(x, site), rtol=1e-5, atol=1e-6)


def test_no_call_holds_more_hybrids_than_asked_for():
    sparse, dense, bridges = pair()
    rows = []
    for model in (sparse, dense):
        run = model.run
        model.run = lambda x, start=0, stop=None, run=run: rows.append(len(x)) or run(x, start, stop)
    backward(bridges, sparse=sparse, dense=dense, tokens=random_tokens(3), config=BridgeConfig(hybrids_at_once=2))
    assert max(rows) == 2 * 3


class Held:
    """A tensor that autograd keeps for a backward pass; the class counts how many bytes are kept at once."""

    live = peak = 0

    def __init__(self, tensor):
        self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
        Held.live += self.size
        Held.peak = max(Held.peak, Held.live)

    def __del__(self):
        Held.live -= self.size


def most_kept(function):
    """Return the most bytes that were kept for backward passes while a function ran."""
    Held.live = Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        function()
    return Held.peak


@pytest.mark.parametrize("n_layer", [1, 4])
def test_gradients_need_the_sparse_models_own_pass_and_one_group_at_any_number_of_sites(n_layer):
    sparse = OwnModel(random_model(0, act_density=None, n_layer=n_layer))
    dense = OwnModel(random_model(1, act_density=None, n_layer=n_layer))
    sites = tuple((s, s) for s in range(2 * n_layer + 1))
    bridges = Bridges(d_sparse=8, d_dense=8, sites=sites, density=None)
    tokens = random_tokens()
    inputs = tokens[:, :-1]
    wanted = Wanted.of(dense.model(inputs).detach())
    at_site = torch.zeros(3, 6, 8, requires_grad=True)

    def group():
        end = run_tails(sparse, {0: at_site, 1: at_site}).flatten(0, 1)
        return wanted.kl(sparse.unembed(end, inputs.repeat(2, 1)).unflatten(0, (2, -1)))

    budget = most_kept(lambda: sparse.model(inputs)) + most_kept(group)
    maps = 2 * len(sites) * 8 * (3 * tokens.numel() * 4 + 8 * 4)  # inputs, errors and weights of the bridges

    def step(at_once):
        config = BridgeConfig(hybrids_at_once=at_once)
        return most_kept(lambda: backward(bridges, sparse=sparse, dense=dense, tokens=tokens, config=config))

    assert step(2) <= budget + maps
    if n_layer == 4:
        assert step(None) > budget + maps


def test_shrinking_its_stream_does_not_pay_for_the_sparse_model():
    sparse, dense, bridges = pair(density=None)
    config = BridgeConfig(kl_weight=0.0)
    tokens = random_tokens()

    def gradient_of_embedding():
        sparse.model.zero_grad()
        backward(bridges, sparse=sparse, dense=dense, tokens=tokens, config=config)
        return sparse.model.token_embedding.weight.grad.clone()

    before = gradient_of_embedding()
    with torch.no_grad():
        for linear in bridges.encoders:
            linear.weight.mul_(3)  # a far worse encoder, whose error the sparse model could lower
    assert torch.equal(gradient_of_embedding(), before)


def test_nmse_is_one_minus_r_squared():
    target = torch.tensor([[[1.0], [3.0]]])
    assert float(nmse(target, target)) == 0
    assert float(nmse(torch.full_like(target, 2.0), target)) == 1  # the mean
    assert float(nmse(torch.zeros_like(target), target)) == 5  # (1 + 9) / (1 + 1)


def test_kl_is_over_the_whole_vocabulary_from_the_dense_model():
    dense, hybrid = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]]) * torch.tensor(3.0).log()
    kl = Wanted.of(dense).kl(hybrid)  # 1/2 ln (1/2 / 3/4) + 1/2 ln (1/2 / 1/4)
    assert float(kl) == pytest.approx(0.5 * torch.tensor(4 / 3).log().item())
    assert float(Wanted.of(hybrid).kl(hybrid)) == pytest.approx(0, abs=1e-6)


def test_a_random_subset_of_sites_is_unbiased():
    config = BridgeConfig(sites_per_step=2)
    picked = torch.zeros(5)
    for step in range(2000):
        for site in chosen_sites(5, config, step):
            picked[site] += 1
    assert (picked / 2000 - 2 / 5).abs().max() < 0.05
    assert chosen_sites(5, config, 7) == chosen_sites(5, config, 7)
    assert chosen_sites(5, dataclasses.replace(config, sites_per_step=9), 0) == [0, 1, 2, 3, 4]
