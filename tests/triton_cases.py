"""The Triton kernels against the reference: on a GPU, or by Triton's interpreter (TRITON_INTERPRET=1) without one.

Not collected by name: tests/test_kernels_triton.py runs this in a process of its own, scripts/gpu_check on a GPU.
"""

import math

import pytest
import torch

from sparse_circuits.kernels import cuda, reference
from sparse_circuits.kernels.packed import pack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 3e38, math.inf, -math.inf, math.nan, 1.0, -1.0]
WIDTHS = range(1, 301) if DEVICE == "cuda" else (1, 2, 17, 64, 100, 300)
LARGE = (1000, 1024, 4096, 10_007) if DEVICE == "cuda" else (300,)


def same(a, b):
    """Equal bit for bit, any NaN being as good as another."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def vectors(kind, n_row, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(n_row, width, generator=generator)
    if kind == "special":
        x[torch.rand(n_row, width, generator=generator) < 0.3] = 1.0
        for i, value in enumerate(SPECIAL):
            x[i % n_row, i * 7 % width] = value
    made = {"tied": x.round(), "zero": x * 0, "constant": x * 0 - 2.5, "denormal": x * 1e-42, "huge": x * 1e38}
    return made.get(kind, x).to(dtype).to(DEVICE)


@pytest.mark.parametrize("width", WIDTHS)
def test_abs_topk_of_each_width_is_the_references(width):
    for kind in ("random", "tied", "special"):
        x = vectors(kind, 3, width)
        for n_keep in {0, 1, width // 4, width}:
            assert same(cuda.abs_topk(x, n_keep), reference.abs_topk(x, n_keep))
            assert torch.equal(cuda.top_k_mask(x, n_keep), reference.top_k_mask(x, n_keep))


def test_abs_topk_of_every_width_to_300_is_the_references():
    for width in range(1, 301):
        x = vectors("special", 1, width)
        assert same(cuda.abs_topk(x, width // 3), reference.abs_topk(x, width // 3)), width


@pytest.mark.parametrize("kind", ["random", "tied", "zero", "constant", "denormal", "huge", "special"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", LARGE)
def test_abs_topk_of_each_type_and_its_gradient_are_the_references(kind, dtype, width):
    x, results = vectors(kind, 4, width, dtype), []
    grad = vectors("random", 4, width + 1, dtype)[:, 1:]
    for version in (cuda, reference):
        leaf = x.clone().requires_grad_()
        out = version.abs_topk(leaf, width // 4)
        out.backward(grad)
        results.append((out.detach(), leaf.grad))
    assert same(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_what_is_not_contiguous_is_taken():
    x = vectors("random", 12, 20).T
    assert torch.equal(cuda.abs_topk(x, 5), reference.abs_topk(x, 5))


@pytest.mark.parametrize("kind", ["random", "tied", "zero", "denormal", "special"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("n_alive", [0, 4] if DEVICE == "cpu" else [0, 1, 4])
def test_the_projection_is_the_references(kind, axis, n_alive):
    for n_row, n_column in (
        (9, 33),
        *(((40, 17),) if DEVICE == "cuda" else ()),
        *(((513, 1000),) if DEVICE == "cuda" else ()),
    ):
        weight = vectors(kind, n_row, n_column)
        least = n_alive * weight.shape[axis]
        for n_keep in {least, (least + weight.numel()) // 2, weight.numel()}:
            fast, slow = weight.clone(), weight.clone()
            cuda.keep_largest_(fast, n_keep, n_alive=n_alive, neuron_axis=axis)
            reference.keep_largest_(slow, n_keep, n_alive=n_alive, neuron_axis=axis)
            assert same(fast, slow), (n_row, n_column, n_keep)


def test_many_weights_are_projected_as_each_alone():
    shapes = ((5, 20, 40, 2, 0), (30, 8, 60, 3, 1), (64, 64, 100, 0, 0), (1, 70, 9, 0, 0))
    weights = [vectors("random", n_row, n_column) for n_row, n_column, *_ in shapes]
    together = [w.clone() for w in weights]
    cuda.keep_largest_many_([(w, *how) for w, (_, _, *how) in zip(together, shapes, strict=True)])
    for weight, found, (_, _, n_keep, n_alive, axis) in zip(weights, together, shapes, strict=True):
        reference.keep_largest_(weight, n_keep, n_alive=n_alive, neuron_axis=axis)
        assert torch.equal(found, weight)


@pytest.mark.parametrize("n_vector", [0, 1, 3, 40])
@pytest.mark.parametrize("size", [(5, 7), (33, 130), (1, 1)])
def test_products_with_a_packed_weight_are_the_references(n_vector, size):
    generator = torch.Generator().manual_seed(n_vector)
    weight = torch.randn(size, generator=generator) * (torch.rand(size, generator=generator) < 0.4)
    weight[0] = 0  # a row without nonzeros
    weight[-1] = 1.5  # and one without zeros
    packed, bias = pack(weight.to(DEVICE)), torch.randn(size[0], generator=generator).to(DEVICE)
    x = vectors("random", n_vector, size[1])
    for given in (None, bias):
        found, wanted = (version.packed_linear(x, packed, given, None) for version in (cuda, reference))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert found.shape == (n_vector, size[0])


def test_what_a_packed_weight_leaves_out_multiplies_nothing_be_it_infinite():
    packed = pack(torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], device=DEVICE))
    x = torch.tensor([[[1.0, 3.0, math.inf], [math.nan, 4.0, -math.inf]]], device=DEVICE)
    found = cuda.packed_linear(x, packed, None, None)
    assert same(found, torch.tensor([[[6.0, 1.0, 0.0], [8.0, math.nan, 0.0]]], device=DEVICE))


@pytest.mark.skipif(DEVICE == "cpu", reason="torch's fused attention for GPUs needs one")
@pytest.mark.parametrize("size", [(2, 3, 64, 16), (1, 4, 200, 32)])
@pytest.mark.parametrize("has_sink", [True, False])
def test_attention_and_its_gradients_are_the_references(size, has_sink):
    q, k, v, grad = (torch.randn(size, device=DEVICE).to(torch.bfloat16) for _ in range(4))
    sink, results = torch.randn(size[1], device=DEVICE), []
    for version, kind in ((cuda, torch.bfloat16), (reference, torch.float32)):
        leaves = [x.to(kind).requires_grad_() for x in (q, k, v)] + [sink.clone().requires_grad_()]
        out = version.sink_attention(*leaves[:3], leaves[3] if has_sink else None)
        results.append([out.detach(), *torch.autograd.grad(out, leaves[: 3 + has_sink], grad.to(kind))])
    for fast, slow in zip(*results, strict=True):
        error = (fast.float() - slow).norm() / slow.norm()
        assert float(error) < 0.02
