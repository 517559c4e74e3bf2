"""The root-mean-square norm is its definition, and reading its scale changes nothing."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from random_models import CONFIGS, random_model

from sparse_circuits import kernels
from sparse_circuits.kernels import reference
from sparse_circuits.taps import reading, replacing


def test_a_vector_worked_by_hand():
    out, scale = kernels.rms_norm(torch.tensor([[3.0, 4.0, 0.0, 0.0]]), torch.tensor([1.0, 2.0, 3.0, 4.0]), 2.75)
    assert scale.tolist() == [[pytest.approx(1 / 3)]]  # the mean square is 25 / 4
    assert out.tolist() == [[pytest.approx(1), pytest.approx(8 / 3), 0, 0]]


@given(st.integers(1, 300), st.integers(1, 200), st.booleans(), st.booleans(), st.integers(0, 99))
@settings(max_examples=60)
@example(1, 70, False, False, 44)  # a row near zero, where the parts of the gradient cancel
def test_it_is_its_definition_gradients_included(width, n_row, uses_scale, has_gaps, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_row, 2, width, generator=generator)[:, int(has_gaps) :]
    gain, weight = torch.randn(width, generator=generator), torch.randn(x.shape, generator=generator)
    of_scale = torch.randn(*x.shape[:-1], 1, generator=generator) * uses_scale
    results = []
    for version, kind in ((kernels, torch.float32), (reference, torch.float64)):
        leaves = [one.to(kind).requires_grad_() for one in (x, gain)]
        out, scale = version.rms_norm(*leaves, 1e-5)
        total = (out * weight).sum() + (scale * of_scale).sum()
        results.append([out.detach(), scale.detach(), *torch.autograd.grad(total, leaves)])
    cancelled = float((results[1][1] * weight * gain.detach()).abs().max())  # size of the two parts of x's gradient
    for ours, exact, least in zip(*results, (1.0, 1.0, max(1.0, cancelled), 1.0), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=2e-6 * max(least, float(exact.abs().max())))


@pytest.mark.parametrize("wanted", ["out", "scale"])
def test_a_gradient_may_come_back_to_one_of_both_alone(wanted):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    found = []
    for version in (kernels, reference):
        leaves = [x.clone().requires_grad_(), torch.linspace(0.5, 2, 7).requires_grad_()]
        one = version.rms_norm(*leaves, 1e-6)[0 if wanted == "out" else 1]
        found.append(torch.autograd.grad(one.square().sum(), leaves, allow_unused=True, materialize_grads=True))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("kind", ["zero", "denormal", "huge", "infinite", "nan"])
def test_a_row_that_is_out_of_the_ordinary_is_as_in_the_definition_and_keeps_to_itself(kind):
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    plain = kernels.rms_norm(x, torch.ones(40), 1e-6)[0]
    x[1] = {
        "zero": torch.zeros(40),
        "denormal": torch.full((40,), 1e-42),
        "huge": torch.full((40,), 1e30),
        "infinite": torch.full((40,), torch.inf),
        "nan": torch.where(torch.arange(40) == 7, torch.nan, 1.0),
    }[kind]
    for ours, exact in zip(*(v.rms_norm(x, torch.ones(40), 1e-6) for v in (kernels, reference)), strict=True):
        torch.testing.assert_close(ours, exact, equal_nan=True)
    assert torch.equal(kernels.rms_norm(x, torch.ones(40), 1e-6)[0][[0, 2]], plain[[0, 2]])


def test_sums_do_not_depend_on_the_number_of_threads():
    generator, n_thread, found = torch.Generator().manual_seed(0), torch.get_num_threads(), []
    x, gain = torch.randn(400, 129, generator=generator), torch.randn(129, generator=generator).requires_grad_()
    x.requires_grad_()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            out, scale = kernels.rms_norm(x, gain, 1e-5)
            found.append([out, scale, *torch.autograd.grad(out.square().sum(), (x, gain))])
    finally:
        torch.set_num_threads(n_thread)
    for one in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(one, found[0], strict=True))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_reading_a_scale_changes_no_bit_and_neither_does_putting_it_back(config):
    model = random_model(config)
    tokens = torch.randint(config.n_vocab, (2, config.n_ctx), generator=torch.Generator().manual_seed(0))
    plain = model(tokens)
    with reading(model, "*norm_scale") as seen:
        assert torch.equal(model(tokens), plain)
    with replacing(model, {"*norm_scale": lambda scale: scale.clone()}):
        assert torch.equal(model(tokens), plain)
    with replacing(model, {name: lambda scale, was=was: was for name, was in seen.items()}):
        assert torch.equal(model(tokens), plain)
    with replacing(model, {"final_norm_scale": torch.zeros_like}):
        assert not torch.equal(model(tokens), plain)


def test_a_gain_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"a gain \(3,\) for 4 channels"):
        kernels.rms_norm(torch.zeros(2, 4), torch.ones(3), 1e-6)
