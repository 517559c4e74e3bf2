"""Products with packed weights are the products with the whole ones, gradients included."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_circuits import kernels
from sparse_circuits.configs import ModelConfig
from sparse_circuits.kernels import cpu_packed, cuda, packed, reference
from sparse_circuits.model import Transformer
from sparse_circuits.sparse_products import sparse_products
from sparse_circuits.training import loss_and_gradients, next_token_loss


def sparse(n_target, n_source, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n_target, n_source, generator=generator)
    return weight * (torch.rand(n_target, n_source, generator=generator) < density)


def test_packing_lists_the_nonzeros_row_by_row():
    weight = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 3.0]])
    for version in (cpu_packed, packed):
        found = version.pack(weight)
        assert found.values.tolist() == [2.0, -1.0, 3.0]
        assert found.columns.tolist() == [1, 0, 2]
        assert found.offsets.tolist() == [0, 1, 1, 3]


def test_one_product_by_hand():
    weight = kernels.pack(torch.tensor([[0.0, 2.0], [-1.0, 3.0]]))
    out = kernels.packed_linear(torch.tensor([[5.0, 7.0]]), weight, torch.tensor([0.5, 0.0]))
    assert out.tolist() == [[14.5, 16.0]]


@given(st.integers(1, 80), st.integers(1, 80), st.sampled_from([0.0, 0.02, 0.3, 1.0]), st.integers(0, 1000))
@settings(max_examples=60)
def test_a_matrix_comes_back_from_its_nonzeros_and_turns_over(n_target, n_source, density, seed):
    weight = sparse(n_target, n_source, density, seed)
    for version in (cpu_packed, packed):
        found = version.pack(weight)
        assert torch.equal(found.dense(), weight)
        assert torch.equal(version.transposed(found).dense(), weight.T)
        chosen = torch.randint(n_target, (2, 3))
        for product in (cpu_packed, reference):
            assert torch.equal(product.packed_rows(found, chosen), weight[chosen])


@pytest.mark.parametrize("version", [cpu_packed, reference])
@pytest.mark.parametrize("row", [-1, 2, 1 << 40])
def test_rows_that_do_not_exist_are_refused(version, row):
    weight = kernels.pack(torch.eye(2))
    assert version.packed_rows(weight, torch.empty(0, 3, dtype=torch.long)).shape == (0, 3, 2)
    with pytest.raises(IndexError, match=f"rows from {min(row, 1)} to {max(row, 1)} of a weight that has 2"):
        version.packed_rows(weight, torch.tensor([1, row]))


@pytest.mark.parametrize("n_alike", [1, 40])  # entries a column: few, and more than it takes to look one up
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@torch.no_grad()
def test_a_vector_goes_by_columns_or_by_entries_with_one_result(n_alike, density):
    weight, x = sparse(n_alike, 50, 1.0), sparse(1, 50, density, seed=1)
    torch.testing.assert_close(kernels.packed_linear(x, kernels.pack(weight)), F.linear(x, weight))


@given(st.integers(1, 150), st.integers(1, 100), st.integers(1, 70), st.sampled_from([0.0, 0.05, 0.5]), st.booleans())
@settings(max_examples=60)
def test_products_and_gradients_are_those_of_the_whole_weight(n_vector, n_source, n_target, density, has_bias):
    weight = sparse(n_target, n_source, density, seed=n_vector)
    x, bias, grad = torch.randn(n_vector, n_source), torch.randn(n_target), torch.randn(n_vector, n_target)
    results = []
    for version in ("dense", "reference", "fastest"):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        a, w, b = leaves[0], leaves[1], leaves[2] if has_bias else None
        if version == "dense":
            out = F.linear(a, w, b)
        else:
            with kernels.use(version):
                out = kernels.packed_linear(a, kernels.pack(w), b, dense=w)
        out.backward(grad)
        results.append([out.detach(), *(t.grad for t in leaves[: 2 + has_bias])])
    for other in results[1:]:
        for expected, found in zip(results[0], other, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_is_not_contiguous_is_mapped_alike():
    weight, x = sparse(9, 40, 0.2), torch.randn(40, 30, 2).permute(2, 1, 0)
    assert not x.is_contiguous()
    torch.testing.assert_close(kernels.packed_linear(x, kernels.pack(weight)), F.linear(x, weight))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e-42, 3e38])
def test_a_weight_that_is_not_stored_multiplies_nothing(bad):
    weight = kernels.pack(torch.tensor([[0.0, 1.0], [0.5, 0.0]]))
    x = torch.tensor([[bad, 1.0]]).repeat(40, 1)
    for version in (cpu_packed, reference):
        out = version.packed_linear(x, weight, None, None)
        assert out[:, 0].tolist() == [1.0] * 40
        torch.testing.assert_close(out[:, 1], torch.full((40,), 0.5 * bad), equal_nan=True)


@given(st.integers(1, 60), st.integers(1, 300), st.integers(1, 300), st.sampled_from([0.0, 0.01, 0.3]), st.booleans())
@settings(max_examples=60)
def test_without_gradients_zeros_of_vectors_are_skipped_too(n_vector, n_source, n_target, density, has_bias):
    weight = sparse(n_target, n_source, density, seed=n_vector)
    x, bias = sparse(n_vector, n_source, 0.25), torch.randn(n_target) if has_bias else None
    with torch.no_grad():
        found = kernels.packed_linear(x, kernels.pack(weight), bias)
    torch.testing.assert_close(found, F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@torch.no_grad()
def test_without_gradients_a_weight_that_is_not_finite_meets_zeros_and_a_missing_one_nothing(bad):
    weight = kernels.pack(torch.tensor([[bad, 0.0], [0.0, 2.0]]))
    for x in (torch.tensor([[0.0, 1.0]]), torch.tensor([[bad, 1.0]]), torch.tensor([[1.0, bad]])):
        expected = reference.packed_linear(x, weight, None, None)
        torch.testing.assert_close(kernels.packed_linear(x, weight), expected, equal_nan=True)
        finite = kernels.pack(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
        expected = reference.packed_linear(x, finite, None, None)
        torch.testing.assert_close(kernels.packed_linear(x, finite), expected, equal_nan=True)


def test_vectors_of_another_width_are_refused():
    with pytest.raises(ValueError, match="width 3 don't fit a weight of 2 sources"):
        kernels.packed_linear(torch.ones(1, 3), kernels.pack(torch.ones(2, 2)))


def test_one_vector_alone_has_its_gradients_too():
    weight, found = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]), []
    for version in ("reference", "fastest"):
        x, dense = torch.tensor([5.0, 6.0], requires_grad=True), weight.clone().requires_grad_()
        with kernels.use(version):
            kernels.packed_linear(x, kernels.pack(weight), None, dense=dense).sum().backward()
        found += [x.grad, dense.grad]
    assert [grad.tolist() for grad in found] == [[4, 6], [[5, 6]] * 3] * 2


def test_values_changed_in_place_count_by_whichever_way_a_vector_goes():
    weight = kernels.pack(torch.eye(4))
    x = torch.ones(1, 4)
    with torch.no_grad():
        assert kernels.packed_linear(x, weight).tolist() == [[1.0] * 4]
        weight.values.mul_(3)
        for n_vector in (1, 40):
            assert kernels.packed_linear(x.expand(n_vector, 4), weight).tolist() == [[3.0] * 4] * n_vector


def model_of_density(density):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(n_vocab=512, n_ctx=32, n_layer=2, d_model=128, n_head=4, d_head=16, d_mlp=512))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.1).mul_(torch.rand_like(parameter) < density)
    return model


def test_training_skips_zeros_where_there_are_many_and_the_gradients_stay_whole():
    model, tokens = model_of_density(0.05), torch.randint(512, (4, 32))
    loss = next_token_loss(model, tokens)
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found, n_sparse = loss_and_gradients(model, tokens)
    assert n_sparse == 5  # both maps of each MLP, and the unembedding; attention's are too small
    torch.testing.assert_close(found, loss)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=1e-6)
    assert bool((model.blocks[0].mlp.fc_in.weight.grad[model.blocks[0].mlp.fc_in.weight == 0] != 0).any())
    assert all(linear.packed is None for linear in model.linears().values())


def test_dense_weights_keep_their_dense_products():
    with sparse_products(model_of_density(0.5)) as chosen:
        assert chosen == []


def test_a_gradient_is_asked_for_by_any_of_a_products_tensors_unless_it_is_switched_off():
    plain, wanted = torch.ones(2), torch.ones(2, requires_grad=True)
    assert not cuda.asks_for_gradient(plain, None, plain)
    for place in range(3):
        given = [wanted if i == place else None for i in range(3)]
        assert cuda.asks_for_gradient(*given)
        with torch.no_grad():
            assert not cuda.asks_for_gradient(*given)
