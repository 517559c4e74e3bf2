"""Gates behind AbsTopK, and products of what they leave, are their definitions, with gradients; misfits are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import ENTRIES, SPECIAL, same

from sparse_circuits import kernels
from sparse_circuits.kernels import reference


def _gates(data, n_run, width):
    seed, share = data.draw(st.integers(0, 99)), data.draw(st.sampled_from([0.0, 0.03, 0.5, 1.0]))
    return (torch.rand(n_run, width, generator=torch.Generator().manual_seed(seed)) < share).float()


@given(st.data(), st.integers(1, 300), st.integers(1, 3), st.booleans())
@settings(max_examples=100)
def test_gated_topk_and_its_gradients_are_the_references(data, width, n_run, one_value_for_all):
    n_row, n_keep = 2 * n_run, data.draw(st.integers(0, width))
    finite = st.one_of(st.sampled_from(SPECIAL[:6]), st.floats(-1e3, 1e3, width=32), st.integers(-2, 2).map(float))
    entries = data.draw(st.lists(finite, min_size=n_row * width, max_size=n_row * width))
    rows = torch.tensor(entries).view(n_row, 1, width)
    if data.draw(st.booleans()):  # a part of longer rows, as q, k and v are
        rows = torch.cat((rows, rows + 1, rows), -1)[..., width : 2 * width]
    gate, value = _gates(data, n_run, width), torch.randn(1 if one_value_for_all else n_run, width)
    weight, found = torch.randn(n_row, 1, width), []
    for version in ("reference", "fastest"):
        x, g = rows.detach().requires_grad_(), gate.clone().requires_grad_()
        with kernels.use(version):
            out = kernels.gated_topk(x, g, value, n_keep)
        (out * weight).sum().backward()
        found.append((out.detach(), x.grad, g.grad))
    (out, by_x, by_gate), (fast, fast_by_x, fast_by_gate) = found
    assert torch.equal(out, fast)
    assert torch.equal(out, kernels.gated_topk(rows, gate, value, n_keep))
    assert torch.equal(by_x, fast_by_x)
    torch.testing.assert_close(by_gate, fast_by_gate, rtol=1e-4, atol=1e-2)


@given(st.data(), st.integers(1, 300))
@settings(max_examples=100)
def test_open_gates_leave_abs_topk(data, width):
    n_keep = data.draw(st.integers(0, width))
    x = torch.tensor(data.draw(st.lists(ENTRIES, min_size=width, max_size=width))).view(1, 1, width)
    out = kernels.gated_topk(x, torch.ones(1, width), torch.ones(1, width), n_keep)
    assert same(out, reference.abs_topk(x, n_keep) + 0.0)


def test_the_gates_gradient_is_what_opening_it_does():
    x, value = torch.tensor([[[3.0, -5.0, 1.0]], [[2.0, 0.5, 4.0]]]), torch.tensor([[10.0, 20.0, 30.0]])
    gate = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    out = kernels.gated_topk(x, gate, value, 2)
    assert out.tolist() == [[[3.0, 20.0, 30.0]], [[2.0, 20.0, 30.0]]]
    out.sum().backward()
    assert gate.grad is not None
    # Channel 0 is kept in both rows, channel 1 in the first, channel 2 in the second.
    assert gate.grad.tolist() == [[3 + 2 - 20, -5 + 0 - 40, 0 + 4 - 60]]


def test_a_gated_count_out_of_range_is_refused():
    for version in ("reference", "fastest"):
        with kernels.use(version), pytest.raises(ValueError, match=r"not in \[0, 5\]"):
            kernels.gated_topk(torch.randn(2, 1, 5), torch.ones(1, 5), torch.ones(1, 5), 6)


def test_a_batch_that_runs_cannot_share_is_refused():
    x, of_runs = torch.randn(3, 1, 5), torch.ones(2, 5)
    with pytest.raises(ValueError, match="batch of 3 can't be shared out to 2 runs"):
        kernels.gated_topk(x, of_runs, of_runs, 2)
    with pytest.raises(ValueError, match="batch of 3 can't be shared out to 2 runs"):
        kernels.linear_around(x, torch.ones(4, 5), None, of_runs)


@given(st.data(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.booleans())
@settings(max_examples=60)
def test_a_product_around_what_is_constant_is_the_product(data, n_source, n_target, n_run, has_bias):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    around = torch.randn(n_run, n_source, generator=generator)
    weight = torch.randn(n_target, n_source, generator=generator)
    bias = torch.randn(n_target, generator=generator) if has_bias else None
    differs = torch.rand(2 * n_run, 3, n_source, generator=generator) < data.draw(st.sampled_from([0.0, 0.1, 0.6, 1.0]))
    rows = torch.where(
        differs, torch.randn(differs.shape, generator=generator), around.repeat_interleave(2, 0)[:, None]
    )
    pull = torch.randn(2 * n_run, 3, n_target, generator=generator) * (torch.rand(n_target, generator=generator) < 0.5)
    found = []
    for version in ("reference", "fastest"):
        x = rows.clone().requires_grad_()
        with kernels.use(version):
            out = kernels.linear_around(x, weight, bias, around)
        (out * pull).sum().backward()
        found.append((out.detach(), x.grad))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-5)


def test_a_product_whose_weight_learns_keeps_its_gradient():
    x, weight = torch.randn(2, 1, 3), torch.randn(4, 3, requires_grad=True)
    kernels.linear_around(x, weight, None, torch.zeros(1, 3)).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum((0, 1)).expand(4, 3))


@pytest.mark.parametrize("n_row", [1, 4])
@pytest.mark.parametrize("width", [1, 6])
def test_rows_lie_in_memory_as_they_may(n_row, width):
    """A batch of one position has its rows wherever they are: torch says nothing of the step of an axis of length 1."""
    torch.manual_seed(0)
    for x in (
        torch.randn(8, n_row, width)[:1].transpose(0, 1),
        torch.randn(1, n_row, width).transpose(0, 1),
        torch.randn(width, 1, n_row).permute(2, 1, 0),
        torch.randn(1, 1, width).expand(n_row, 1, width),
    ):
        gate, value, found = torch.ones(1, width), torch.randn(1, width), []
        for version in ("reference", "fastest"):
            leaf = x.detach().clone().as_strided(x.shape, x.contiguous().stride()).requires_grad_()
            with kernels.use(version):
                out = kernels.gated_topk(x.detach(), gate, value, (width + 1) // 2)
                learned = kernels.gated_topk(x.detach() + 0 * leaf, gate, value, (width + 1) // 2)
            learned.square().sum().backward()
            found.append((out, learned.detach(), leaf.grad))
        for slow, fast in zip(*found, strict=True):
            assert torch.equal(slow, fast)


@pytest.mark.parametrize("n_value", [1, 3])
@pytest.mark.parametrize("alone", [True, False])
def test_the_values_behind_closed_gates_get_their_gradient(n_value, alone):
    torch.manual_seed(0)
    rows, gate = torch.randn(6, 2, 7), (torch.rand(3, 7) < 0.5).float()
    weight, start, found = torch.randn(6, 2, 7), torch.randn(n_value, 7), []
    for version in ("reference", "fastest"):
        x, value = rows.clone().requires_grad_(not alone), start.clone().requires_grad_()
        with kernels.use(version):
            (kernels.gated_topk(x, gate, value, 4) * weight).sum().backward()
        found.append(value.grad)
    assert torch.count_nonzero(found[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("version", ["reference", "fastest"])
def test_shapes_that_do_not_fit_are_refused_before_memory_is_read(version):
    x, wide, narrow = torch.ones(2, 1, 20), torch.ones(1, 20), torch.ones(1, 16)
    with kernels.use(version):
        with pytest.raises(ValueError, match=r"gates \(1, 16\) and values \(1, 20\) for 20 channels"):
            kernels.gated_topk(x, narrow, wide, 3)
        with pytest.raises(ValueError, match=r"gates \(1, 20\) and values \(1, 16\) for 20 channels"):
            kernels.gated_topk(x, wide, narrow, 3)
        with pytest.raises(ValueError, match="width 20 around 20 values don't fit 6 sources"):
            kernels.linear_around(x, torch.ones(5, 6), None, wide)
        with pytest.raises(ValueError, match=r"targets \(2,\) don't fit logits \(4, 5\)"):
            kernels.cross_entropy(torch.zeros(4, 5), torch.zeros(2, dtype=torch.int64))
        q = torch.ones(1, 3, 20, 8)
        with pytest.raises(ValueError, match=r"sinks \(2,\) for queries \(1, 3, 20, 8\)"):
            kernels.sink_attention(q, q, q, torch.zeros(2))
        with pytest.raises(ValueError, match=r"values \(1, 3, 20, 4\)"):
            kernels.sink_attention(q, q, q[..., :4], None)


SECOND = {
    "abs_topk": lambda x: kernels.abs_topk(x * x, 5),
    "gated_topk": lambda x: kernels.gated_topk(x[None], torch.ones(1, 8), torch.ones(1, 8), 4),
    "linear_around": lambda x: kernels.linear_around(x[None] ** 2, torch.ones(3, 8), None, torch.zeros(1, 8)),
    "sink_attention": lambda x: kernels.sink_attention(*(x.view(1, 1, 20, 8),) * 3, torch.zeros(1)),
    "attention in double": lambda x: kernels.sink_attention(*(x.double().view(1, 1, 20, 8),) * 3, torch.zeros(1)),
    "cross_entropy": lambda x: kernels.cross_entropy(x, torch.zeros(20, dtype=torch.int64)),
    "packed_linear": lambda x: kernels.packed_linear(x * x, kernels.pack(torch.eye(8))),
}


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_are_refused_and_never_wrong(name):
    x = torch.randn(20, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(SECOND[name](x).square().sum(), x, create_graph=True)
    with kernels.use("reference"):
        (first,) = torch.autograd.grad(SECOND[name](x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
    assert torch.count_nonzero(second)
