"""Reading and editing activations as users of TransformerLens and nnsight are used to."""

import pytest
import torch
from hand_built import random_model

from sparse_circuits.errors import TapError
from sparse_circuits.hooks import ALIASES, aliases
from sparse_circuits.taps import reading, replacing

TOKENS = torch.tensor([[1, 5, 2, 9], [3, 3, 0, 7]])


@pytest.fixture(scope="module")
def model():
    return random_model().requires_grad_(False)


def test_the_cache_holds_what_readers_see_and_the_logits_are_the_models(model):
    logits, cache = model.run_with_cache(TOKENS)
    with reading(model) as seen:
        assert torch.equal(model(TOKENS), logits)
    assert list(cache) == list(seen)
    assert all(torch.equal(cache[name], seen[name]) for name in seen)


def test_names_may_be_globs_lists_tests_and_aliases(model):
    assert set(model.run_with_cache(TOKENS, "*.mlp.post_act")[1]) == {"0.mlp.post_act", "1.mlp.post_act"}
    assert set(model.run_with_cache(TOKENS, lambda name: name.endswith("attn.y"))[1]) == {"0.attn.y", "1.attn.y"}
    _, cache = model.run_with_cache(TOKENS, ["blocks.*.hook_resid_post", "1.attn.q"])
    assert set(cache) == {"blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "1.attn.q"}


def test_every_alias_is_its_location_and_heads_have_an_axis(model):
    _, theirs = model.run_with_cache(TOKENS, "blocks.*hook_*")
    _, ours = model.run_with_cache(TOKENS)
    assert set(theirs) == set(aliases(2))
    assert len(theirs) == 2 * len(ALIASES)
    for name, location in aliases(2).items():
        by_head = name.split("_")[-1] in ("q", "k", "v", "z")
        assert theirs[name].shape == ((2, 4, 2, 4) if by_head else ours[location].shape)
        assert torch.equal(theirs[name].flatten(2), ours[location])
    assert torch.equal(theirs["blocks.0.hook_resid_post"], theirs["blocks.1.hook_resid_pre"])


def test_a_run_that_stops_gives_the_stream_there_and_keeps_nothing_later(model):
    x, cache = model.run_with_cache(TOKENS, stop_at=1)
    assert torch.equal(x, model.run(model.embed(TOKENS), stop=2))
    assert {name.split(".")[0] for name in cache} == {"0"}
    assert torch.equal(model.run_with_cache(TOKENS, stop_at=0)[0], model.embed(TOKENS))
    with pytest.raises(TapError, match=r"1.attn.q comes after layer 1"):
        model.run_with_cache(TOKENS, "1.attn.q", stop_at=1)
    with pytest.raises(TapError, match="stop_at is 3, expected a layer from 0 to 2"):
        model.run_with_cache(TOKENS, stop_at=3)


def test_a_hook_edits_as_replacing_does_and_leaves_nothing_behind(model):
    with replacing(model, {"0.mlp.post_act": torch.zeros_like}):
        wanted = model(TOKENS)
    before = model(TOKENS)
    for name in ("0.mlp.post_act", "blocks.0.mlp.hook_post"):
        assert torch.equal(model.run_with_hooks(TOKENS, [(name, lambda x, hook: x * 0)]), wanted)
    assert torch.equal(model(TOKENS), before)
    assert not torch.equal(wanted, before)


def test_a_hook_on_heads_sees_and_returns_heads(model):
    def without_head_1(z, hook):
        assert (z.shape, hook.name, hook.layer()) == ((2, 4, 2, 4), "blocks.1.attn.hook_z", 1)
        z = z.clone()
        z[:, :, 1] = 0
        return z

    mask = torch.arange(8) < 4
    with replacing(model, {"1.attn.y": lambda y: y * mask}):
        wanted = model(TOKENS)
    assert torch.equal(model.run_with_hooks(TOKENS, [("blocks.1.attn.hook_z", without_head_1)]), wanted)


def test_hooks_of_gradients_fire_at_queries_keys_and_values_too():
    model, fired = random_model(), []
    for name in ("q", "k", "v", "resid_delta"):
        site = getattr(model.blocks[0].attn, name)
        site.register_full_backward_hook(lambda *_, name=name: fired.append(name))
    model(torch.randint(model.config.n_vocab, (2, 6))).sum().backward()
    assert sorted(fired) == ["k", "q", "resid_delta", "v"]


def test_hooks_run_in_order_and_none_leaves_the_value(model):
    told = []
    hooks = [
        ("0.attn.q", lambda x, hook: told.append(float(x.abs().sum())) or x * 2),
        ("0.attn.q", lambda x, hook: told.append(float(x.abs().sum()))),
    ]
    model.run_with_hooks(TOKENS, hooks)
    assert told[1] == pytest.approx(2 * told[0])


def test_an_unknown_name_is_told_the_nearest(model):
    with pytest.raises(TapError, match=r"'blocks.0.hook_resid_prre'; did you mean blocks.0.hook_resid_pre"):
        model.run_with_cache(TOKENS, "blocks.0.hook_resid_prre")
    with pytest.raises(TapError, match=r"'0.mlp.post'; did you mean 0.mlp.post_act"):
        model.run_with_hooks(TOKENS, [("0.mlp.post", lambda x, hook: x)])


def test_nnsight_traces_and_edits_the_model(model):
    nnsight = pytest.importorskip("nnsight", reason="nnsight is not installed")
    traced = nnsight.NNsight(model)
    with traced.trace(TOKENS):
        values, mixed = traced.blocks[0].attn.v.output.save(), traced.blocks[0].attn.out.input.save()
        neurons = traced.blocks[0].mlp.post_act.output.save()
        logits = traced.output.save()
    _, cache = model.run_with_cache(TOKENS, ["0.attn.v", "0.attn.y", "0.mlp.post_act"])
    for found, wanted in zip((values, mixed, neurons), cache.values(), strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(logits, model(TOKENS))
    with traced.trace(TOKENS):
        traced.blocks[0].mlp.post_act.output[:] = 0
        edited = traced.output.save()
    assert torch.equal(edited, model.run_with_hooks(TOKENS, [("0.mlp.post_act", lambda x, hook: x * 0)]))
