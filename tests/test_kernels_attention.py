"""Attention over narrow heads is its definition, in value and gradient, whatever comes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_circuits import kernels
from sparse_circuits.kernels import cpu_attention, reference
from sparse_circuits.kernels.compiled import loops

LONG_ENOUGH = cpu_attention.MIN_POS


def drawn(size, seed=0, scale=1.0):
    """Return q, k, v, the output's gradient and sinks, laid out as projections make them: positions before heads."""
    generator = torch.Generator().manual_seed(seed)
    batch, head, pos, d = size
    made = [scale * torch.randn(batch, pos, head * d, generator=generator) for _ in range(4)]
    return *(x.unflatten(-1, (head, d)).transpose(1, 2) for x in made), torch.randn(head, generator=generator)


def outputs_and_gradients(attend, q, k, v, grad, sink):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v, *([] if sink is None else [sink]))]
    out = attend(*leaves, *([None] if sink is None else []))
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_alike(found, expected, tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(1.0, float(theirs.abs().max())))


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 70), st.integers(1, 40), st.integers(0, 999), st.booleans())
@settings(max_examples=60)
def test_every_shape_is_the_references_in_double_precision(batch, head, pos, d, seed, has_sink):
    q, k, v, grad, sink = drawn((batch, head, pos, d), seed)
    given_sink = sink if has_sink else None
    exact = outputs_and_gradients(
        reference.sink_attention, *(x.double() for x in (q, k, v, grad)), None if given_sink is None else sink.double()
    )
    found = outputs_and_gradients(cpu_attention.sink_attention, q, k, v, grad, given_sink)
    assert_alike([x.double() for x in found], exact, 5e-6)


@given(st.integers(0, 70), st.integers(0, 999))
@settings(max_examples=30)
def test_queries_without_a_gradient_are_passed_over_and_nothing_else_changes(n_without, seed):
    q, k, v, grad, sink = drawn((2, 2, 70, 16), seed)
    grad[0, :, :n_without] = 0
    grad[1, 1, n_without:] = 0
    exact = outputs_and_gradients(reference.sink_attention, *(x.double() for x in (q, k, v, grad, sink)))
    found = outputs_and_gradients(cpu_attention.sink_attention, q, k, v, grad, sink)
    assert_alike([x.double() for x in found], exact, 5e-6)


@pytest.mark.parametrize("kind", ["zero", "tied", "large", "tiny", "constant"])
@pytest.mark.parametrize("has_sink", [True, False])
def test_odd_input_is_the_references(kind, has_sink):
    scale = {"zero": 0.0, "large": 30.0, "tiny": 1e-30}.get(kind, 1.0)
    q, k, v, grad, sink = drawn((2, 3, LONG_ENOUGH + 3, 16), scale=scale)
    if kind == "tied":
        k = k[:, :, :1].expand(k.shape)
    if kind == "constant":
        q, k, v = torch.full_like(q, 2.5), torch.full_like(k, -1.5), torch.full_like(v, 0.5)
    given_sink = sink if has_sink else None
    found = outputs_and_gradients(kernels.sink_attention, q, k, v, grad, given_sink)
    exact = outputs_and_gradients(reference.sink_attention, q, k, v, grad, given_sink)
    # Scores of some thousands lose digits in float32 before the softmax, in either order of summation.
    assert_alike(found, exact, 1e-3 if kind == "large" else 5e-6)


@pytest.mark.parametrize("n_pos", [LONG_ENOUGH + 3, 51])
def test_gradients_through_large_scores_are_as_exact_as_the_references(n_pos):
    inputs = drawn((2, 3, n_pos, 16), scale=30.0)  # scores up to 1,500
    exact = outputs_and_gradients(reference.sink_attention, *(x.double() for x in inputs))
    errors = [
        [float((x - y).abs().max()) for x, y in zip(outputs_and_gradients(f, *inputs), exact, strict=True)]
        for f in (kernels.sink_attention, reference.sink_attention)
    ]
    for ours, theirs, y in zip(*errors, exact, strict=True):
        assert ours <= 4 * theirs + 1e-4 * float(y.abs().max())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e18])
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_huge_values_and_what_is_not_finite_show_as_in_the_reference(bad, where):
    q, k, v, _, sink = drawn((1, 2, LONG_ENOUGH, 16))
    {"q": q, "k": k, "v": v}[where][0, 1, 3] = bad
    found, expected = kernels.sink_attention(q, k, v, sink), reference.sink_attention(q, k, v, sink)
    assert torch.equal(found.isfinite(), expected.isfinite())
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_what_the_reference_can_add_up_at_the_end_of_the_range_is_added_up_alike(where):
    # Its scores overflow before they are scaled, ours after that: where it has a result, it is the same.
    q, k, v, _, sink = drawn((1, 2, LONG_ENOUGH, 16))
    {"q": q, "k": k, "v": v}[where][0, 1, 3] = 3e38
    found, expected = kernels.sink_attention(q, k, v, sink), reference.sink_attention(q, k, v, sink)
    has_result = expected.isfinite()
    assert has_result[:, 0].all()
    torch.testing.assert_close(found[has_result], expected[has_result], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logit", [-math.inf, math.nan, math.inf, 200.0, -200.0])
def test_a_sink_of_any_size_is_the_references(logit):
    q, k, v, _, _ = drawn((1, 2, LONG_ENOUGH, 16))
    sink = torch.tensor([logit, 0.0])
    found, expected = kernels.sink_attention(q, k, v, sink), reference.sink_attention(q, k, v, sink)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_memory_of_any_layout_is_taken():
    q, k, v, _, sink = drawn((2, 4, LONG_ENOUGH, 8))
    expected = kernels.sink_attention(q, k, v, sink)
    together = torch.cat([x.transpose(1, 2).flatten(2) for x in (q, k, v)], -1).chunk(3, -1)  # parts of longer rows
    parts = [x.unflatten(-1, (4, 8)).transpose(1, 2) for x in together]
    turned = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]  # a head's entries are far apart
    for other in (parts, turned, [x.contiguous() for x in (q, k, v)]):
        assert torch.equal(kernels.sink_attention(*other, sink), expected)
    one = q[:, :1, :1].expand(q.shape)  # all heads and positions are one place in memory
    torch.testing.assert_close(kernels.sink_attention(one, k, v, sink), reference.sink_attention(one, k, v, sink))


def test_no_gradient_looks_ahead_either():
    q, k, v, grad, sink = drawn((1, 2, 2 * LONG_ENOUGH, 16))
    grad[:, :, LONG_ENOUGH:] = 0
    _, by_q, by_k, by_v, _ = outputs_and_gradients(kernels.sink_attention, q, k, v, grad, sink)
    for found in (by_q, by_k, by_v):
        assert found[:, :, :LONG_ENOUGH].count_nonzero() == found[:, :, :LONG_ENOUGH].numel()
        assert found[:, :, LONG_ENOUGH:].count_nonzero() == 0


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 70), st.integers(1, 40), st.booleans())
@settings(max_examples=60)
@torch.no_grad()
def test_the_last_queries_behind_a_cache_are_the_references(batch, head, n_query, n_before, d, has_sink):
    q, k, v, _, sink = drawn((batch, head, n_before + n_query, d), seed=d)
    sink = sink if has_sink else None
    assert cpu_attention.can_sink_attention(q[:, :, n_before:], k, v, sink)
    found = cpu_attention.sink_attention(q[:, :, n_before:], k, v, sink)
    expected = reference.sink_attention(q[:, :, n_before:].double(), k.double(), v.double(), sink)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6 * max(1.0, float(v.abs().max())))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("where", range(3))
@torch.no_grad()
def test_behind_a_cache_bad_values_show_as_in_the_reference(bad, where):
    given = list(drawn((1, 2, 12, 16))[:3])
    given[where][0, 1, 11, 3] = bad
    q, k, v = given
    found = kernels.sink_attention(q[:, :, -1:], k, v, None)
    torch.testing.assert_close(found, reference.sink_attention(q[:, :, -1:], k, v, None), equal_nan=True)


def test_what_it_is_for_goes_through_it_and_the_rest_does_not():
    q, k, v, _, sink = drawn((1, 1, LONG_ENOUGH, 16))
    assert cpu_attention.can_sink_attention(q, k, v, sink)
    assert not cpu_attention.can_sink_attention(q.double(), k.double(), v.double(), sink)
    assert not cpu_attention.can_sink_attention(q[:, :, -1:], k, v, sink)
    with torch.no_grad():  # generation behind a cache
        assert cpu_attention.can_sink_attention(q[:, :, -1:], k, v, sink)
    for size in ((1, 1, LONG_ENOUGH - 1, 16), (1, 1, LONG_ENOUGH, cpu_attention.MAX_WIDTH + 1)):
        assert not cpu_attention.can_sink_attention(*drawn(size)[:3], None)


@given(st.floats(-126, 127, width=32))
@settings(max_examples=500)
def test_powers_of_two_are_right_to_two_in_ten_million(x):
    vectors = loops("_vectors_numba")
    assert vectors is not None
    assert abs(vectors.exp2(x) / 2.0**x - 1) < 2e-7


def test_powers_of_two_end_in_zero_and_keep_nan():
    vectors = loops("_vectors_numba")
    assert vectors is not None
    assert [vectors.exp2(x) for x in (-math.inf, -1e30, -127.0, 0.0, 1.0)] == [0.0, 0.0, 0.0, 1.0, 2.0]
    assert math.isnan(vectors.exp2(math.nan))
