"""TransformerLens's bridge around our models: its names, its hooks, our one forward pass."""

import dataclasses

import pytest
import torch
from hand_built import random_model

from sparse_circuits.checkpoint import save_model
from sparse_circuits.errors import ConfigError
from sparse_circuits.formats import hf_folder
from sparse_circuits.hooks import aliases
from sparse_circuits.model import Transformer
from sparse_circuits.packed_model import load_packed
from sparse_circuits.taps import reading, replacing

pytest.importorskip("transformer_lens", reason="TransformerLens is not installed")
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from sparse_circuits.interop import transformer_lens as lens
from sparse_circuits.interop.huggingface import CircuitGPTForCausalLM

TOKENS = torch.tensor([[1, 5, 2, 9], [3, 3, 0, 7]])


@pytest.fixture(scope="module")
def model():
    return random_model().requires_grad_(False)


@pytest.fixture(scope="module")
def bridge(model):
    return lens.bridge(model)


def test_the_entry_point_names_the_adapter_that_the_factory_selects(model):
    ArchitectureAdapterFactory.discover_entry_points()
    assert ArchitectureAdapterFactory._adapters[hf_folder.ARCHITECTURE] is lens.CircuitGPTAdapter
    wrapped = CircuitGPTForCausalLM.wrap(random_model())
    opened = build_bridge_from_module(wrapped, hf_folder.ARCHITECTURE, hf_config=wrapped.config)
    assert torch.equal(opened(TOKENS), model(TOKENS))


def test_logits_are_ours_and_the_model_stays_as_it_is(model, bridge):
    names = list(model.state_dict())
    logits = model(TOKENS)
    assert torch.equal(bridge(TOKENS), logits)
    assert torch.equal(bridge.original_model.circuit_model(TOKENS), logits)
    assert list(model.state_dict()) == names
    assert not any(tap.edits for tap in model.taps().values())


def test_the_bridge_shares_the_weights_memory(model, bridge):
    shared = {parameter.data_ptr() for parameter in bridge.original_model.parameters()}
    assert {parameter.data_ptr() for parameter in model.parameters()} == shared


def test_the_cache_holds_every_alias_and_what_our_cache_holds_under_it(model, bridge):
    logits, theirs = bridge.run_with_cache(TOKENS)
    _, ours = model.run_with_cache(TOKENS, "blocks.*hook_*")
    assert torch.equal(logits, model(TOKENS))
    assert set(ours) == set(aliases(2))
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_every_hook_point_of_a_block_is_its_location(model, bridge):
    _, theirs = bridge.run_with_cache(TOKENS)
    _, ours = model.run_with_cache(TOKENS)
    for i in range(2):
        for name, location in lens.POINTS.items():
            assert torch.equal(theirs[f"blocks.{i}.{name}"].flatten(2), ours[f"{i}.{location}"])


def test_no_hook_point_is_dead(bridge):
    fired = set()
    names = set(bridge.hook_dict)
    bridge.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda x, hook, name=name: fired.add(name)) for name in names])
    assert fired == names


def test_no_neurons_in_the_bridge_are_no_neurons_in_the_model(model, bridge):
    hooks = [("blocks.0.mlp.hook_post", lambda x, hook: x * 0)]
    ablated = bridge.run_with_hooks(TOKENS, fwd_hooks=hooks)
    assert torch.equal(ablated, model.run_with_hooks(TOKENS, hooks))
    assert not torch.equal(ablated, model(TOKENS))
    assert torch.equal(bridge(TOKENS), model(TOKENS))


@pytest.mark.parametrize("name", aliases(2))
def test_an_edit_under_any_alias_is_our_edit(model, bridge, name):
    hooks = [(name, lambda x, hook: x.flip(-1) + 1)]
    ours = model.run_with_hooks(TOKENS, hooks)
    assert torch.equal(bridge.run_with_hooks(TOKENS, fwd_hooks=hooks), ours)
    assert not torch.equal(ours, model(TOKENS))


def test_our_readers_see_what_a_hook_lets_flow_on_and_our_edits_reach_the_cache(bridge):
    inner = bridge.original_model.circuit_model
    with reading(inner, "0.attn.q") as seen:
        bridge.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.attn.hook_q", lambda x, hook: x * 0)])
    assert not seen["0.attn.q"].any()
    with replacing(inner, {"0.mlp.post_act": lambda x: x * 0}):
        _, cache = bridge.run_with_cache(TOKENS)
    without = cache["blocks.0.hook_mlp_out"]
    assert torch.equal(without, without[:1, :1].expand_as(without))  # nothing but the bias, after AbsTopK


def test_backward_hooks_see_the_gradient():
    model = random_model()
    opened = lens.bridge(model)
    _, cache = opened.run_with_cache(TOKENS, return_type="loss", incl_bwd=True)
    with reading(model, "0.attn.q") as seen:
        losses = model(TOKENS)[:, :-1].log_softmax(-1).gather(-1, TOKENS[:, 1:, None])
    (ours,) = torch.autograd.grad(-losses.mean(), seen["0.attn.q"])
    torch.testing.assert_close(cache["blocks.0.attn.hook_q_grad"].flatten(2), ours)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_run_stops_where_ours_does(model, bridge, layer):
    stream, _ = model.run_with_cache(TOKENS, stop_at=layer)
    assert torch.equal(bridge(TOKENS, stop_at_layer=layer), stream)
    assert torch.equal(bridge.run_with_cache(TOKENS, stop_at_layer=layer)[0], stream)
    assert torch.equal(bridge(TOKENS), model(TOKENS))


@pytest.mark.parametrize("caching", [True, False])
def test_it_generates_as_the_model_does(model, bridge, caching):
    settings = {"do_sample": False, "stop_at_eos": False, "verbose": False, "use_past_kv_cache": caching}
    assert torch.equal(bridge.generate(TOKENS, max_new_tokens=4, **settings), model.generate(TOKENS, 4))


def test_the_stream_is_the_sum_of_its_parts_or_these_are_not_offered(bridge):
    _, cache = bridge.run_with_cache(TOKENS)
    torch.testing.assert_close(cache.decompose_resid().sum(0), cache["blocks.1.hook_resid_post"])
    for settings in ({"residual_activation": "relu"}, {"positions": "added"}, {"act_sites": ("resid_mid",)}):
        other = Transformer(dataclasses.replace(bridge.original_model.circuit_model.config, **settings)).eval()
        opened = lens.bridge(other)
        logits, cache = opened.run_with_cache(TOKENS)
        assert torch.equal(logits, other(TOKENS))
        with pytest.raises(KeyError):
            cache.decompose_resid()


@pytest.mark.parametrize("name", ["W_Q", "W_O", "b_O", "W_in", "W_E", "OV", "tl_parameters()", "accumulated_bias(1)"])
def test_weights_in_its_shapes_are_refused(bridge, name):
    with pytest.raises(RuntimeError, match="is not offered"):
        eval(f"bridge.{name}")


def test_what_would_be_wrong_is_refused(bridge):
    _, cache = bridge.run_with_cache(TOKENS)
    with pytest.raises(RuntimeError, match="compatibility mode"):
        bridge.enable_compatibility_mode()
    with pytest.raises(ConfigError, match="AbsTopK"):
        bridge.process_weights()
    with pytest.raises(RuntimeError, match="W_O"):
        cache.stack_head_results()
    with pytest.raises(ConfigError, match="start_at_layer"):
        bridge(cache["blocks.1.hook_resid_pre"], start_at_layer=1)
    with pytest.raises(KeyError, match="hook_pattern"):
        bridge.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.attn.hook_pattern", lambda x, hook: x)])
    with pytest.raises(AttributeError, match="unembed"):
        cache.logit_attrs(cache.decompose_resid(), tokens=TOKENS)
    with pytest.raises(ValueError, match="pad on the right"):
        bridge(TOKENS, attention_mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]))


def test_a_packed_model_has_a_bridge_too(model, tmp_path):
    save_model(model, tmp_path / "model.safetensors")
    packed = load_packed(tmp_path / "model.safetensors")
    assert torch.equal(lens.bridge(packed)(TOKENS), packed(TOKENS))


def test_a_run_folder_opens_with_its_tokenizer(untrained_run):
    opened = lens.bridge(untrained_run)
    ours = opened.original_model.circuit_model
    prompt = 'print("a", end="")'
    assert opened.to_tokens(prompt).tolist() == [ours.tokenizer.encode(prompt)]
    assert torch.equal(opened(prompt), ours(opened.to_tokens(prompt)))
