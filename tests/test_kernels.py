"""The kernels agree with their definitions on whatever comes, and these with numbers worked by hand."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_circuits import kernels
from sparse_circuits.kernels import _projection_numba, compiled, cpu_projection, reference

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, math.inf, -math.inf, math.nan]


def same(a, b):
    """Equal bit for bit, any NaN being as good as another."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def test_top_k_keeps_the_largest_magnitudes_and_gives_ties_to_the_lower_index():
    x = torch.tensor([[3.0, -5.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert kernels.abs_topk(x, 2).tolist() == [[3.0, -5.0, 0.0, 0.0], [0.0] * 4]
    assert kernels.top_k_mask(x, 2).tolist() == [[True, True, False, False], [True, True, False, False]]


def test_nan_ranks_above_infinity():
    x = torch.tensor([[math.inf, 1.0, math.nan]])
    assert kernels.top_k_mask(x, 1).tolist() == [[False, False, True]]
    assert kernels.abs_topk(x, 1).isnan().tolist() == [[False, False, True]]


def test_keeping_none_gives_zeros_and_keeping_all_gives_the_input():
    x = torch.randn(3, 5)
    assert torch.equal(kernels.abs_topk(x, 0), torch.zeros(3, 5))
    assert torch.equal(kernels.abs_topk(x, 5), x)


@pytest.mark.parametrize("n_keep", [-1, 6])
def test_a_count_out_of_range_is_refused(n_keep):
    for version in ("reference", "fastest"):
        with kernels.use(version), pytest.raises(ValueError, match=r"not in \[0, 5\]"):
            kernels.abs_topk(torch.randn(2, 5), n_keep)
        with kernels.use(version), pytest.raises(ValueError, match=r"not in \[0, 5\]"):
            kernels.keep_largest_(torch.randn(5), n_keep)


def test_an_unknown_version_is_refused():
    with pytest.raises(ValueError, match="expected 'reference' or 'fastest'"), kernels.use("slow"):  # type: ignore
        pass


ENTRIES = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32), st.integers(-2, 2).map(float))


@given(st.data(), st.integers(1, 300), st.integers(1, 4))
@settings(max_examples=150)
def test_abs_topk_and_its_gradient_are_the_references(data, width, n_row):
    seed = data.draw(st.integers(0, 1 << 20))
    x = torch.randn(n_row, width, generator=torch.Generator().manual_seed(seed))
    for value in data.draw(st.lists(ENTRIES, max_size=20)):
        x[data.draw(st.integers(0, n_row - 1)), data.draw(st.integers(0, width - 1))] = value
    n_keep, grad = data.draw(st.integers(0, width)), torch.randn(n_row, width)
    results = []
    for version in ("reference", "fastest"):
        leaf = x.clone().requires_grad_()
        with kernels.use(version):
            out = kernels.abs_topk(leaf, n_keep)
        out.backward(grad)
        results.append((out.detach(), leaf.grad))
    assert same(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_many_rows_go_through_the_parallel_loop_with_the_same_result():
    x = torch.randn(700, 96).round(decimals=1)
    assert x.numel() >= compiled.MIN_PARALLEL
    assert torch.equal(kernels.abs_topk(x, 24), reference.abs_topk(x, 24))


def test_the_compiled_loops_leave_torchs_number_of_threads_as_it_was():
    code = (
        "import torch; torch.set_num_threads(1); from sparse_circuits import kernels; "
        "kernels.abs_topk(torch.ones(512, 128), 4); print(torch.get_num_threads())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["1"]


def test_abs_topk_takes_what_is_not_contiguous():
    x = torch.randn(6, 4, 5).transpose(0, 1)
    assert torch.equal(kernels.abs_topk(x, 2), reference.abs_topk(x, 2))


@given(st.data(), st.integers(1, 60), st.integers(1, 150), st.sampled_from([0, 1, 2, 4]), st.sampled_from([0, 1]))
@settings(max_examples=150)
def test_the_projection_is_the_references_and_exact(data, n_row, n_column, n_alive, axis):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 20)))
    weight = torch.randn(n_row, n_column, generator=generator).round(decimals=data.draw(st.integers(0, 4)))
    for value in data.draw(st.lists(ENTRIES, max_size=10)):
        weight[data.draw(st.integers(0, n_row - 1)), data.draw(st.integers(0, n_column - 1))] = value
    n_alive = min(n_alive, weight.shape[1 - axis])
    n_keep = data.draw(st.integers(n_alive * weight.shape[axis], weight.numel()))
    results = []
    for version in ("reference", "fastest"):
        results.append(weight.clone())
        with kernels.use(version):
            kernels.keep_largest_(results[-1], n_keep, n_alive=n_alive, neuron_axis=axis)
    assert same(*results)
    if bool((weight != 0).all()):
        assert int(results[0].count_nonzero()) == n_keep
    if n_alive:
        by_neuron, kept = (x if axis == 0 else x.T for x in (weight, results[1]))
        alive = reference.top_k_mask(by_neuron, n_alive)
        assert same(kept[alive], by_neuron[alive])


@pytest.mark.parametrize("kind", ["tied", "zero", "denormal", "one octave"])
def test_the_projection_of_a_long_vector_is_the_references(kind):
    weight = {
        "tied": torch.ones(20_000),
        "zero": torch.zeros(20_000),
        "denormal": torch.arange(20_000).to(torch.int32).view(torch.float32),
        "one octave": 1 + torch.rand(20_000),
    }[kind]
    fast, slow = weight.clone(), weight.clone()
    cpu_projection.keep_largest_(fast, 7_001)
    reference.keep_largest_(slow, 7_001)
    assert torch.equal(fast, slow)


@pytest.mark.parametrize("kind", ["random", "mostly zero", "two sizes", "sampled ones mislead", "NaN and infinity"])
def test_the_projection_of_more_than_a_sample_is_the_references(kind):
    size = 10 * _projection_numba.N_SAMPLE
    generator = torch.Generator().manual_seed(0)
    weight, is_some = torch.randn(size, generator=generator), torch.rand(size, generator=generator) < 0.1
    if kind == "mostly zero":
        weight.mul_(is_some)
    elif kind == "two sizes":
        weight = torch.where(is_some, -2.0, 1.0)
    elif kind == "sampled ones mislead":
        weight[:: size // _projection_numba.N_SAMPLE | 1] = 9.0
    elif kind == "NaN and infinity":
        weight[is_some] = torch.inf
        weight[:100] = torch.nan
    n_some = int(is_some.sum())
    for n_keep in (1, 100, 101, n_some - 1, n_some, n_some + 1, size // 4, size - 1, size):
        fast, slow = weight.clone(), weight.clone()
        cpu_projection.keep_largest_(fast, n_keep)
        reference.keep_largest_(slow, n_keep)
        assert same(fast, slow)


@pytest.mark.parametrize("n_thread", [1, 2, 3, 7])
@pytest.mark.parametrize(("n_row", "n_column"), [(190, 263), (3, 20_011), (20_011, 3), (1, 40_000)])
def test_a_projection_in_parts_is_the_references(n_row, n_column, n_thread):
    generator = torch.Generator().manual_seed(n_thread)
    weight = torch.randn(n_row, n_column, generator=generator).round(decimals=1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(n_thread)
        for n_alive, axis in ((0, 0), (2, 0), (1, 1)):
            least = min(n_alive, weight.shape[1 - axis]) * weight.shape[axis]
            for n_keep in (least, (least + weight.numel()) // 2, weight.numel()):
                results = [weight.clone(), weight.clone()]
                for result, version in zip(results, ("reference", "fastest"), strict=True):
                    with kernels.use(version):
                        kernels.keep_largest_(result, n_keep, n_alive=n_alive, neuron_axis=axis)
                assert torch.equal(*results)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", ["dead neurons", "one neuron has all", "sampled ones are large", "sampled ones are 0"])
def test_neurons_are_protected_whatever_a_sample_says(kind, axis):
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    if kind == "dead neurons":
        weight.mul_(torch.rand(256, 1) ** 8)
    elif kind == "one neuron has all":
        weight[1:].mul_(1e-3)
    else:
        weight.view(-1)[:: weight.numel() // 4096] = 9.0 if kind == "sampled ones are large" else 0.0
    weight = weight if axis == 0 else weight.T.contiguous()
    for n_keep in (256 * 4, 256 * 5, 256 * 16, 256 * 200):
        results = [weight.clone(), weight.clone()]
        for result, version in zip(results, ("reference", "fastest"), strict=True):
            with kernels.use(version):
                kernels.keep_largest_(result, n_keep, n_alive=4, neuron_axis=axis)
        assert torch.equal(*results)


def test_what_is_not_contiguous_is_projected_alike():
    weight = torch.randn(12, 9)
    turned, plain = weight.clone().T, weight.T.contiguous()
    kernels.keep_largest_(turned, 40, n_alive=2)
    kernels.keep_largest_(plain, 40, n_alive=2)
    assert torch.equal(turned, plain)


def test_more_protected_entries_than_the_budget_are_refused():
    for version in ("reference", "fastest"):
        with kernels.use(version), pytest.raises(ValueError, match="6 protected entries exceed n_keep 5"):
            kernels.keep_largest_(torch.randn(3, 4), 5, n_alive=2)
    with pytest.raises(ValueError, match="not axis 0 of 1"):
        kernels.keep_largest_(torch.randn(4), 3, n_alive=1)


@pytest.mark.parametrize("width", range(1, 301))
def test_every_width_from_1_to_300_is_the_references(width):
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(width)).round(decimals=width % 3)
    for n_keep in {0, 1, width // 4, width - 1, width}:
        assert torch.equal(kernels.abs_topk(x, n_keep), reference.abs_topk(x, n_keep))


@pytest.mark.parametrize("width", [1000, 1024, 4096, 10_007])
@pytest.mark.parametrize("kind", ["random", "half zero", "constant", "denormal"])
def test_large_widths_are_the_references(width, kind):
    x = torch.randn(5, width)
    x = {"random": x, "half zero": x.relu(), "constant": torch.full_like(x, -2.5), "denormal": x * 1e-42}[kind]
    for n_keep in (0, 1, width // 4, width - 1):
        assert torch.equal(kernels.abs_topk(x, n_keep), reference.abs_topk(x, n_keep))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_references_in_value_gradient_and_type(dtype):
    x, grad = torch.randn(6, 97).to(dtype), torch.randn(6, 97).to(dtype)
    results = []
    for version in ("reference", "fastest"):
        leaf = x.clone().requires_grad_()
        with kernels.use(version):
            out = kernels.abs_topk(leaf, 24)
        out.backward(grad)
        results.append((out.detach(), leaf.grad))
    for slow, fast in zip(*results, strict=True):
        assert fast.dtype is dtype
        assert torch.equal(slow, fast)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_infinite_gradient_stays_away_from_what_was_dropped(dtype):
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=dtype, requires_grad=True)
    kernels.abs_topk(x, 2).backward(torch.tensor([[math.inf, 1.0, math.inf]], dtype=dtype))
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 1.0, math.inf]]


def test_a_width_of_zero_keeps_nothing():
    assert kernels.abs_topk(torch.zeros(3, 0), 0).shape == (3, 0)
    with pytest.raises(ValueError, match=r"not in \[0, 0\]"):
        kernels.abs_topk(torch.zeros(3, 0), 1)


def test_loops_that_do_not_compile_are_warned_of_once_a_cause_and_replaced(monkeypatch):
    def fails(name):
        raise ImportError("no compiler")

    monkeypatch.setattr(compiled.importlib, "import_module", fails)
    monkeypatch.setattr(compiled, "_causes", set())
    compiled.loops.cache_clear()
    x, weight = torch.randn(4, 9), torch.randn(6, 5)
    try:
        with pytest.warns(RuntimeWarning, match=r"\(_topk_numba\) can't be used.*ImportError: no compiler") as told:
            kernels.abs_topk(x, 3)
        assert len(told) == 1
        assert torch.equal(kernels.abs_topk(x, 3), reference.abs_topk(x, 3))  # another warning would be an error
        kept = weight.clone()
        kernels.keep_largest_(kept, 7)
        assert torch.equal(kept, kernels.abs_topk(weight.flatten(), 7).view(6, 5))
    finally:
        compiled.loops.cache_clear()


def test_a_sink_takes_its_share_by_hand():
    # One position, score 0, sink ln 3: the position gets 1 of 1 + 3.
    q = k = torch.zeros(1, 1, 1, 2)
    v = torch.tensor([[[[4.0, 8.0]]]])
    out = kernels.sink_attention(q, k, v, torch.tensor([math.log(3.0)]))
    torch.testing.assert_close(out, torch.tensor([[[[1.0, 2.0]]]]))


def test_a_sink_is_an_extra_key_of_value_zero():
    q, k, v = (torch.randn(2, 3, 7, 4, dtype=torch.double) for _ in range(3))
    sink = torch.randn(3, dtype=torch.double)
    pattern = kernels.attention_pattern(q, k, sink)
    score = (q @ k.transpose(-1, -2)) / 2
    score = score.masked_fill(torch.ones(7, 7).triu(1).bool(), -math.inf)
    with_slot = torch.cat((sink[:, None, None].expand(2, 3, 7, 1), score), -1).softmax(-1)
    torch.testing.assert_close(pattern, with_slot[..., 1:])
    torch.testing.assert_close(pattern @ v, kernels.sink_attention(q, k, v, sink))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 3, 5, 4), (2, 2, 33, 16), (1, 4, 128, 16)])
@pytest.mark.parametrize("kind", ["random", "zero", "tied", "large", "no sink"])
def test_sink_attention_and_its_gradients_are_the_references(dtype, size, kind):
    scale = {"zero": 0.0, "large": 10.0}.get(kind, 1.0)
    q, k, v = (scale * torch.randn(size, dtype=dtype) for _ in range(3))
    if kind == "tied":
        k = k[:, :, :1].expand(size).clone()
    sink = None if kind == "no sink" else torch.randn(size[1], dtype=dtype)
    leaves = [x.clone().requires_grad_() for x in (q, k, v, sink) if x is not None]
    grad, results = torch.randn(size, dtype=dtype), []
    for version in ("reference", "fastest"):
        with kernels.use(version):
            out = kernels.sink_attention(*leaves, *([None] if sink is None else []))  # type: ignore
        results.append([out.detach(), *torch.autograd.grad(out, leaves, grad)])
    # Scores up to some thousands lose digits in float32 before the softmax, in either order of summation.
    tolerance = 1e-12 if dtype is torch.float64 else 1e-3 if kind == "large" else 2e-5
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=tolerance, atol=tolerance * max(1.0, float(slow.abs().max())))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_bad_values_show_in_both_versions_alike(bad, where):
    torch.manual_seed(0)
    inputs = {name: torch.randn(1, 1, 6, 4) for name in "qkv"}
    inputs[where][0, 0, 3, 1] = bad
    with kernels.use("reference"):
        slow = kernels.sink_attention(**inputs, sink=torch.zeros(1))
    assert slow.isnan().any() or where != "q"
    assert same(kernels.sink_attention(**inputs, sink=torch.zeros(1)), slow)


@pytest.mark.parametrize("size", [(1, 2, 6, 4), (1, 2, 20, 4)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sink_that_is_not_finite_does_as_in_the_reference(size, bad):
    q, k, v = (torch.randn(size) for _ in range(3))
    sink, found = torch.tensor([0.5, bad]), []
    for version in ("reference", "fastest"):
        with kernels.use(version):
            found.append(kernels.sink_attention(q, k, v, sink))
    torch.testing.assert_close(*found, equal_nan=True)


def test_no_position_looks_ahead():
    q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))
    before = kernels.sink_attention(q, k, v, torch.zeros(2))
    k[:, :, 5:] += 1
    v[:, :, 5:] += 1
    torch.testing.assert_close(kernels.sink_attention(q, k, v, torch.zeros(2))[:, :, :5], before[:, :, :5])
