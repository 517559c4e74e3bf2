"""Tests of taps: readers, edits, node masks and edge cuts, and what they leave behind."""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from random_models import AT, BASE, CONFIGS, DENSE, assert_close, random_model, random_tokens, random_vector
from torch import Tensor

from sparse_circuits import kernels
from sparse_circuits.configs import NODE_SITES, ModelConfig
from sparse_circuits.errors import TapError
from sparse_circuits.model import Transformer, at_position
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.taps import EdgeCut, NodeMask, cutting, match_names, reading, replacing


@pytest.fixture(params=CONFIGS, name="model")
def any_model(request: pytest.FixtureRequest) -> Transformer:
    return random_model(CONFIGS[request.param])


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_every_node_location_is_a_tap_of_the_width_of_the_census(model: Transformer) -> None:
    with reading(model) as seen:
        model(random_tokens())
    assert list(seen) == [name for name in model.taps() if name in seen]
    for name, width in model.config.node_widths().items():
        assert seen[name].shape == (4, 9, width)


def test_topk_keeps_its_share_of_each_vector() -> None:
    model = random_model()
    with reading(model, "*.before_topk", *(f"*.{site}" for site in NODE_SITES)) as seen:
        model(random_tokens())
    for name, width in BASE.node_widths().items():
        before, after = seen[f"{name}.before_topk"], seen[name]
        assert int((after != 0).sum(-1).max()) <= width // 2
        if name.endswith("attn.q"):
            assert bool(((after != 0).sum(-1) == width // 2).all())
        assert torch.equal(after[after != 0], before[after != 0])


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    model = random_model()
    with pytest.raises(TapError, match=r"no activation is called '0\.atn\.q'; did you mean 0\.attn\.q"):
        reading(model, "0.atn.q").__enter__()
    with pytest.raises(TapError, match=r"'2\.mlp\.\*'"):
        replacing(model, {"0.attn.q": lambda x: x, "2.mlp.*": lambda x: x}).__enter__()
    cut = EdgeCut(torch.ones(3, 3, dtype=torch.bool), torch.zeros(3))
    with pytest.raises(TapError, match=r"no linear map is called '0\.attn\.kqv'; did you mean 0\.attn\.qkv"):
        cutting(model, {"0.attn.kqv": cut}).__enter__()
    with pytest.raises(TapError, match=r"cut of 0\.attn\.qkv has shape \(3, 3\), its weight \(48, 16\)"):
        cutting(model, {"0.attn.qkv": cut}).__enter__()
    assert all(tap.edits == () and tap.readers == () for tap in model.taps().values())


def test_patterns_match_in_the_order_of_the_forward_pass() -> None:
    names = ["0.a", "0.b", "1.a", "1.b"]
    assert match_names(names, ["1.*", "*.a"]) == ["0.a", "1.a", "1.b"]
    with pytest.raises(TapError, match="'c'"):
        match_names(names, ["0.a", "c"])


def test_edits_nest_the_outer_one_first_and_readers_see_the_value_after_all() -> None:
    model, tokens = random_model(), random_tokens()
    with reading(model, "0.attn.q") as seen:
        model(tokens)
        plain = seen["0.attn.q"]
        with replacing(model, {"0.attn.q": lambda x: x + 1}):
            with replacing(model, {"0.attn.[q]": lambda x: x * 2}):
                model(tokens)
                assert torch.equal(seen["0.attn.q"], (plain + 1) * 2)
            model(tokens)
            assert torch.equal(seen["0.attn.q"], plain + 1)
        with replacing(model, {"0.attn.q": lambda x: x + 1, "0.attn.[q]": lambda x: x * 2}):
            model(tokens)
            assert torch.equal(seen["0.attn.q"], (plain + 1) * 2)


@pytest.mark.parametrize("fails", [False, True])
def test_edits_readers_and_cuts_are_gone_after_the_block(fails: bool) -> None:
    model, tokens = random_model(), random_tokens()
    before = model(tokens)
    cut = EdgeCut(torch.zeros(48, 16, dtype=torch.bool), torch.zeros(16))

    def edited() -> Tensor:
        with reading(model), replacing(model, {"*": lambda x: x * 0}), cutting(model, {"0.attn.qkv": cut}):
            logits = model(tokens)
            if fails:
                raise KeyError("on purpose")
            return logits

    if fails:
        with pytest.raises(KeyError):
            edited()
    else:
        assert not torch.equal(edited(), before)
    assert all(tap.edits == () and tap.readers == () for tap in model.taps().values())
    assert all(linear.cut is None for linear in model.linears().values())
    assert torch.equal(model(tokens), before)


def test_gradients_flow_through_what_is_read() -> None:
    model, tokens = random_model(), random_tokens()
    with torch.enable_grad(), reading(model, "0.mlp.post_act") as seen:
        logits = model(tokens)
        (grad,) = torch.autograd.grad(logits.sum(), seen["0.mlp.post_act"])
    assert grad.shape == (4, 9, 24)
    assert float(grad.abs().sum()) > 0


def test_an_edit_that_looks_at_whole_positions_is_refused_where_one_position_is_kept() -> None:
    model, tokens = random_model(), random_tokens()
    for name in ("1.attn.q", "1.attn.y", "1.mlp.post_act", "1.mlp.norm_scale", "1.resid_mid", "final_resid"):
        with replacing(model, {name: lambda x: x}):
            assert torch.equal(model(tokens), model(tokens))
            with pytest.raises(TapError, match=f"edit of {name} may look at whole positions"):
                model(tokens, at=AT)
    for name in ("0.attn.q", "0.mlp.post_act", "1.attn.v", "1.attn.act_in", "1.resid_in"):
        with replacing(model, {name: lambda x: x.roll(1, 1)}):
            assert_close(model(tokens, at=AT), at_position(model(tokens), AT[:, None]))


def random_masks(config: ModelConfig, n_run: int, seed: int = 0) -> dict[str, NodeMask]:
    space, generator = NodeSpace.of(config), torch.Generator().manual_seed(seed)
    keep = torch.rand(n_run, space.n_node, generator=generator) < 0.7
    return space.masks(keep, torch.randn(space.n_node, generator=generator))


def test_masks_that_keep_everything_give_the_model_bit_for_bit(model: Transformer) -> None:
    space, tokens = NodeSpace.of(model.config), random_tokens()
    masks = space.masks(torch.ones(1, space.n_node, dtype=torch.bool), random_vector(space.n_node))
    expected, expected_at = model(tokens), model(tokens, at=AT)
    with replacing(model, masks):
        assert torch.equal(model(tokens), expected)
        assert torch.equal(model(tokens, at=AT), expected_at)


def test_a_mask_sets_what_it_does_not_keep_to_its_value() -> None:
    mask = NodeMask(torch.tensor([[True, False, True], [False, False, True]]), torch.tensor([10.0, 20.0, 30.0]))
    x = torch.arange(12.0).reshape(4, 1, 3)  # two runs of two rows
    expected = [[0, 20, 2], [3, 20, 5], [10, 20, 8], [10, 20, 11]]
    assert mask(x)[:, 0].tolist() == expected


def test_two_runs_side_by_side_equal_each_alone(model: Transformer) -> None:
    tokens, masks = random_tokens(), random_masks(model.config, 2)
    with replacing(model, masks):
        together, together_at = model(tokens.repeat(2, 1)), model(tokens.repeat(2, 1), at=AT.repeat(2))
    for run in range(2):
        alone = {name: NodeMask(mask.keep[run : run + 1], mask.value) for name, mask in masks.items()}
        with replacing(model, alone):
            assert_close(together[4 * run : 4 * run + 4], model(tokens))
            assert_close(together_at[4 * run : 4 * run + 4], model(tokens, at=AT))
    assert float((together[:4] - together[4:]).abs().max()) > 1e-3


# Edge cuts


def cuts_of(model: Transformer, keep: dict[str, Tensor], ablated: dict[str, Tensor]) -> dict[str, EdgeCut]:
    return {name: EdgeCut(keep[name], ablated[name]) for name in keep}


def random_ablated(model: Transformer) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(m.in_features, generator=generator) for name, m in model.linears().items()}


def test_cuts_that_cut_nothing_are_the_model(model: Transformer) -> None:
    tokens = random_tokens()
    keep = {name: torch.ones_like(linear.weight, dtype=torch.bool) for name, linear in model.linears().items()}
    expected, expected_at = model(tokens), model(tokens, at=AT)
    with cutting(model, cuts_of(model, keep, random_ablated(model))):
        assert_close(model(tokens), expected)
        assert_close(model(tokens, at=AT), expected_at)


SOURCES = {"attn.act_in": "attn.qkv", "attn.v": "attn.out", "mlp.act_in": "mlp.fc_in", "mlp.post_act": "mlp.fc_out"}
"""Location of a source, and the map that holds all its edges."""


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("site", SOURCES)
@pytest.mark.parametrize("config", ["dense activations", "no sinks", "waves"])
def test_cutting_all_edges_out_of_a_node_is_ablating_it(config: str, site: str, layer: int) -> None:
    # AbsTopK is off, so that nothing else changes.
    changes: dict[str, Any] = {
        "dense activations": {},
        "no sinks": {"attention_sink": False},
        "waves": {"positions": "sinusoidal", "d_position": 6},
    }[config]
    model = random_model(dataclasses.replace(DENSE, **changes))
    tokens, location, linear = random_tokens(), f"{layer}.{site}", f"{layer}.{SOURCES[site]}"
    weight = model.linears()[linear].weight
    value = random_ablated(model)[linear]
    base = model(tokens)
    for channels in ([3], [0, 7, 11]):
        keep_node = torch.ones(1, weight.shape[1], dtype=torch.bool)
        keep_node[:, channels] = False
        with replacing(model, {location: NodeMask(keep_node, value)}):
            expected, expected_at = model(tokens), model(tokens, at=AT)
        with cutting(model, {linear: EdgeCut(keep_node.expand_as(weight), value)}):
            assert_close(model(tokens), expected)
            assert_close(model(tokens, at=AT), expected_at)
        assert float((expected - base).abs().max()) > 1e-4


def test_cutting_one_edge_carries_the_ablated_value_along_it_alone() -> None:
    model, tokens = random_model(DENSE), random_tokens()
    linear, value = model.linears()["1.mlp.fc_in"], random_vector(16)
    keep = torch.ones(24, 16, dtype=torch.bool)
    keep[5, 3] = False
    names = ("1.mlp.act_in", "1.mlp.post_act")
    with reading(model, *names) as before:
        model(tokens)
    with reading(model, *names) as after, cutting(model, {"1.mlp.fc_in": EdgeCut(keep, value)}):
        model(tokens)
    read, neurons = before[names[0]], list(range(24))
    assert torch.equal(after[names[0]], read)
    neurons.remove(5)
    assert_close(after[names[1]][..., neurons], before[names[1]][..., neurons])
    plain = read @ linear.weight[5] + linear.bias[5]
    expected = plain + (value[3] - read[..., 3]) * linear.weight[5, 3]
    assert_close(after[names[1]][..., 5], torch.nn.functional.gelu(expected))


def test_a_cut_value_reaches_the_output_as_its_mean_times_the_attention_paid() -> None:
    model, tokens = random_model(DENSE), random_tokens()
    keep, mean = torch.zeros(16, 16, dtype=torch.bool), random_vector(16)
    names = ("0.attn.q", "0.attn.k", "0.attn.resid_delta")
    with reading(model, *names) as seen, cutting(model, {"0.attn.out": EdgeCut(keep, mean)}):
        model(tokens)
    q, k = (seen[name].unflatten(-1, (2, 8)).transpose(1, 2) for name in names[:2])
    sink = model.get_parameter("blocks.0.attn.sink")
    paid = kernels.reference.attention_pattern(q, k, sink).sum(-1).transpose(1, 2)  # (batch, query, head)
    out = model.linears()["0.attn.out"]
    expected = (paid[..., None] * mean.unflatten(0, (2, 8))).flatten(2) @ out.weight.T + out.bias
    assert_close(seen[names[2]], expected)


def test_an_inner_cut_replaces_the_outer_one() -> None:
    model, tokens = random_model(), random_tokens()
    none, all_ = torch.zeros(24, 16, dtype=torch.bool), torch.ones(24, 16, dtype=torch.bool)
    base = model(tokens)
    with ExitStack() as stack:
        stack.enter_context(cutting(model, {"0.mlp.fc_in": EdgeCut(none, torch.ones(16))}))
        outer = model(tokens)
        with cutting(model, {"0.mlp.fc_in": EdgeCut(all_, torch.ones(16))}):
            assert_close(model(tokens), base)
        assert torch.equal(model(tokens), outer)
    assert not torch.equal(outer, base)
