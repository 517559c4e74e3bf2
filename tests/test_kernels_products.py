"""Products with what AbsTopK left alone, or with all of it by either library, are plain PyTorch's, gradients too."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sparse_circuits import kernels
from sparse_circuits.kernels import cpu_products, reference


@pytest.fixture(autouse=True)
def whatever_the_size(monkeypatch):
    monkeypatch.setattr(cpu_products, "MIN_PRODUCTS", 0)
    monkeypatch.setattr(cpu_products, "MIN_WIDTH", 0)


def thinned(shape, share, generator):
    x = torch.randn(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < share, x, 0.0)


def products(version, x, weight, bias, grad):
    leaves = [one.clone().requires_grad_() for one in (x, weight, bias) if one is not None]
    out = version.linear(leaves[0], leaves[1], None if bias is None else leaves[2])
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        largest = max([1.0, *theirs.double().abs().flatten().tolist()])
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=2e-6 * largest)


@pytest.mark.parametrize("processor", ["AVX2", "AVX512"])
@pytest.mark.parametrize("shape", [(2, 255), (1, 2), (3, 1), (0, 5), (600,)])
@pytest.mark.parametrize("size", [(256, 768), (1024, 70), (1, 1), (7, 300), (129, 65)])
@pytest.mark.parametrize("shares", [(0.25, 0.25), (0.25, 1), (1, 0.25), (1, 1), (0, 0)])
def test_products_and_gradients_are_the_references(processor, shape, size, shares, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    generator, (n_source, n_target) = torch.Generator().manual_seed(0), size
    x, grad = (thinned((*shape, n), share, generator) for n, share in zip(size, shares, strict=True))
    weight, bias = torch.randn(n_target, n_source, generator=generator), torch.randn(n_target, generator=generator)
    assert cpu_products.can_linear(x, weight, bias) == (x.numel() > 0)
    for own in (bias, None):
        expected = products(reference, *(None if one is None else one.double() for one in (x, weight, own, grad)))
        assert_same(products(kernels, x, weight, own, grad), expected)
    with torch.no_grad():
        assert_same([kernels.linear(x, weight, None)], [x.double() @ weight.double().T])


@given(st.integers(1, 140), st.integers(1, 300), st.integers(1, 140), st.floats(0, 0.34), st.integers(0, 99))
def test_lists_of_nonzeros_lose_none(n_row, n_source, n_target, share, seed):
    generator = torch.Generator().manual_seed(seed)
    x, grad = thinned((n_row, n_source), share, generator), thinned((n_row, n_target), share, generator)
    x[0, -1] = grad[0, -1] = 5.0
    weight = torch.randn(n_target, n_source, generator=generator)
    expected = products(reference, x.double(), weight.double(), None, grad.double())
    assert_same(products(kernels, x, weight, None, grad), expected)


def test_what_is_not_finite_passes():
    x = torch.zeros(200, 130)
    x[3, 129], x[4, 128], x[5, 7] = torch.nan, torch.inf, -torch.inf
    weight = torch.ones(70, 130)
    out = kernels.linear(x, weight, None)
    assert out[3].isnan().all()
    assert (out[4] == torch.inf).all()
    assert (out[5] == -torch.inf).all()
    assert (out[6:] == 0).all()
    leaf = weight.clone().requires_grad_()
    kernels.linear(x, leaf, None)[:, :2].sum().backward()
    assert torch.equal(leaf.grad.isnan().nonzero(), torch.tensor([[0, 129], [1, 129]]))
    assert leaf.grad[:2, 128].tolist() == [torch.inf, torch.inf]


@pytest.mark.parametrize("lay", [lambda w: w, lambda w: w.T.contiguous().T, lambda w: w.repeat(1, 2)[:, ::2]])
def test_a_weight_may_lie_in_memory_as_it_likes(lay):
    generator = torch.Generator().manual_seed(0)
    x, grad = thinned((50, 130), 0.25, generator), thinned((50, 70), 0.25, generator)
    weight = lay(torch.randn(70, 130, generator=generator)).requires_grad_()
    leaf = x.clone().requires_grad_()
    out = kernels.linear(leaf, weight, None)
    found = [out.detach(), *torch.autograd.grad(out, (leaf, weight), grad)]
    assert_same(
        found,
        [
            x.double() @ weight.detach().double().T,
            grad.double() @ weight.detach().double(),
            grad.double().T @ x.double(),
        ],
    )


def test_zeros_are_listed_if_a_few_rows_misled():
    x = torch.ones(256, 128)
    x[:: 256 // cpu_products.N_LOOKED_AT] = 0  # the rows that are looked at
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    assert_same([kernels.linear(x, weight, None)], [x.double() @ weight.double().T])


def test_sums_do_not_depend_on_the_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    x, grad = thinned((2, 400, 300), 0.25, generator), thinned((2, 400, 200), 0.25, generator)
    weight, n_thread, found = torch.randn(200, 300, generator=generator), torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(products(kernels, x, weight, None, grad))
    finally:
        torch.set_num_threads(n_thread)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_small_products_and_other_types_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(cpu_products, "MIN_PRODUCTS", 1 << 24)
    monkeypatch.setattr(cpu_products, "MIN_WIDTH", 64)
    x, weight = torch.zeros(1 << 12, 64), torch.zeros(64, 64)
    assert cpu_products.can_linear(x, weight, None)
    assert not cpu_products.can_linear(x[1:], weight, None)
    assert not cpu_products.can_linear(torch.zeros(1 << 12, 64), torch.zeros(63, 64), None)
    assert not cpu_products.can_linear(x.double(), weight.double(), None)
