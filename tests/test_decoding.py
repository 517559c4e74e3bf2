"""A position through the compiled call is a position through the forward pass, whatever the config says."""

import dataclasses
from unittest import mock

import pytest
import torch
from random_models import BASE, CONFIGS, random_model, random_tokens

import sparse_circuits as sc
from sparse_circuits import kernels
from sparse_circuits.decoding import Decoder, can_decode
from sparse_circuits.kernels import _decoding_numba
from sparse_circuits.model import LayerCache
from sparse_circuits.packed_model import pack_model

N_KNOWN = 4


def packed_model(config=BASE, share=0.3):
    """A model of every kind of parameter, a share of its weights nonzero."""
    model, generator = random_model(config), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= torch.rand(parameter.shape, generator=generator) < share
    return pack_model(model)


def known_positions(model, tokens):
    """The forward pass over the first positions, and what it keeps of them."""
    cache = [LayerCache() for _ in model.blocks]
    model.run(model.embed(tokens[:, :N_KNOWN]), cache=cache)
    return cache


WIDE = dataclasses.replace(BASE, n_head=3, d_head=20, d_mlp=50)
ALL = CONFIGS | {"heads wider than a vector": WIDE, "one channel a head": dataclasses.replace(BASE, n_head=5, d_head=1)}


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
@torch.no_grad()
def test_every_position_is_that_of_the_forward_pass(config):
    model, tokens = packed_model(config), random_tokens(3, 12)
    assert can_decode(model)
    cache, decoder = known_positions(model, tokens), Decoder(model, known_positions(model, tokens), 12 - N_KNOWN)
    for pos in range(N_KNOWN, 12):
        x = model.embed(tokens[:, pos : pos + 1], offset=pos)
        before = x.clone()
        expected = model.run(x, cache=cache)
        found = decoder.run(x)
        assert torch.equal(x, before)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_head", [2, 80])  # 80 heads of 8 are enough to be shared among threads
@torch.no_grad()
def test_a_context_longer_than_a_vector_of_positions(n_head):
    config = dataclasses.replace(BASE, n_ctx=70, n_head=n_head)
    model, tokens = packed_model(config), random_tokens(1, 70)
    cache, decoder = known_positions(model, tokens), Decoder(model, known_positions(model, tokens), 70 - N_KNOWN)
    for pos in range(N_KNOWN, 70):
        x = model.embed(tokens[:, pos : pos + 1])
        torch.testing.assert_close(decoder.run(x), model.run(x, cache=cache), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_large_activations_have_the_same_nonlinearity():
    x = torch.linspace(-12, 12, 9001)
    found = x.clone()
    _decoding_numba._activate(found.numpy(), True)
    torch.testing.assert_close(found, torch.nn.functional.gelu(x), rtol=0, atol=1e-6)
    _decoding_numba._activate(found.numpy(), False)
    torch.testing.assert_close(found, torch.nn.functional.gelu(x).relu(), rtol=0, atol=1e-6)


def test_generating_goes_that_way_and_gives_the_same_tokens_also_beyond_the_context():
    model, tokens = packed_model(), random_tokens(2, 3)
    with mock.patch.object(Decoder, "run", autospec=True, side_effect=Decoder.run) as run:
        found = model.generate(tokens, 20)
    assert run.call_count == BASE.n_ctx - 3
    with kernels.use("reference"), mock.patch.object(Decoder, "run", side_effect=AssertionError):
        assert torch.equal(model.generate(tokens, 20), found)


def test_whoever_reads_or_edits_sees_every_position():
    model, tokens = packed_model(), random_tokens(1, 3)
    with sc.replacing(model, {"0.mlp.post_act": torch.zeros_like}):
        assert not can_decode(model)
        edited = model.generate(tokens, 6)
    assert not torch.equal(edited, model.generate(tokens, 6))
    seen = []
    mlp = model.get_submodule("blocks.1.mlp")
    handle = mlp.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    model.generate(tokens, 6)
    handle.remove()
    assert seen == [3, 1, 1, 1, 1, 1]


def test_other_models_go_the_plain_way():
    assert not can_decode(random_model())
    model = packed_model()
    packed = model.linears()["0.mlp.fc_in"].packed
    assert packed is not None
    packed.values[0] = torch.inf
    assert not can_decode(model)
