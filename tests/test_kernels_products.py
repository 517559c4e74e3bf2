"""Dense products by oneDNN are those of plain PyTorch, in value and gradient."""

import pytest
import torch

from sparse_circuits import kernels
from sparse_circuits.kernels import cpu_products, reference


@pytest.fixture(autouse=True)
def on_a_processor_with_avx512(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


@pytest.mark.parametrize("shape", [(2, 255), (1, 2), (3, 1), (0, 5), (400,)])
@pytest.mark.parametrize("size", [(256, 768), (1024, 70), (1, 1), (7, 300)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_and_gradients_are_the_references(shape, size, has_bias, monkeypatch):
    monkeypatch.setattr(cpu_products, "MIN_PRODUCTS", 0)
    generator = torch.Generator().manual_seed(0)
    n_source, n_target = size
    x, weight = torch.randn(*shape, n_source, generator=generator), torch.randn(n_target, n_source, generator=generator)
    grad, bias = torch.randn(*shape, n_target, generator=generator), torch.randn(n_target, generator=generator)
    assert cpu_products.can_linear(x, weight, bias)
    found = []
    for version in (kernels, reference):
        leaves = [t.clone().requires_grad_() for t in (x, weight, *([bias] if has_bias else []))]
        out = version.linear(leaves[0], leaves[1], leaves[2] if has_bias else None)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * max([1.0, *theirs.abs().flatten().tolist()]))
    with torch.no_grad():
        torch.testing.assert_close(kernels.linear(x, weight, None), x @ weight.T, rtol=1e-4, atol=1e-3)


def test_large_float32_products_alone_go_through_it():
    x, weight = torch.zeros(1 << 12, 64), torch.zeros(64, 64)
    assert cpu_products.can_linear(x, weight, None)
    assert not cpu_products.can_linear(x[1:], weight, None)
    assert not cpu_products.can_linear(x.double(), weight.double(), None)


def test_without_avx512_products_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not cpu_products.can_linear(torch.zeros(1 << 12, 64), torch.zeros(64, 64), None)
