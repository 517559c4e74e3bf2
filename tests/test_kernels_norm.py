"""RMS normalisation in one pass agrees with its definition, and with autograd through it."""

import pytest
import torch
from torch.testing import assert_close

from sparse_circuits import kernels
from sparse_circuits.kernels import reference


@pytest.mark.parametrize("width", [1, 3, 16, 257, 1024])
@pytest.mark.parametrize("batch", [(1,), (64,), (3, 43)])
def test_agrees_with_the_definition_and_autograd(width, batch):
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(*batch, width, generator=generator).requires_grad_()
    gain, grad = torch.randn(width, generator=generator).requires_grad_(), torch.randn(*batch, width)
    exact = reference.rms_norm(x, gain)
    for version in (kernels.rms_norm(x, gain), kernels.rms_norm(x.detach(), gain.detach())):
        assert_close(version, exact)
    expected = torch.autograd.grad(reference.rms_norm(x, gain), (x, gain), grad)
    assert_close(torch.autograd.grad(kernels.rms_norm(x, gain), (x, gain), grad), expected, rtol=1e-3, atol=1e-4)


def test_a_vector_of_one_length_times_a_factor_stays_the_same():
    x = torch.randn(5, 64)
    assert_close(kernels.rms_norm(8 * x, torch.ones(64)), kernels.rms_norm(x, torch.ones(64)))
    assert_close(kernels.rms_norm(x, torch.ones(64)).square().mean(-1), torch.ones(5))


@pytest.mark.parametrize("odd", [0.0, 1e-38, 1e30, torch.inf, torch.nan])
def test_odd_input_gives_what_the_definition_gives(odd):
    x = torch.randn(4, 32)
    x[1], x[2, 3] = odd, odd
    x.requires_grad_()
    gain = torch.randn(32).requires_grad_()
    assert_close(kernels.rms_norm(x, gain), reference.rms_norm(x, gain), equal_nan=True)
    grad = torch.randn(4, 32)
    found, expected = (
        torch.autograd.grad(version.rms_norm(x, gain), (x, gain), grad) for version in (kernels, reference)
    )
    assert_close(found, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_rows_apart_in_memory_and_other_types():
    whole = torch.randn(6, 96)
    assert_close(kernels.rms_norm(whole[:, 32:64], torch.ones(32)), reference.rms_norm(whole[:, 32:64], torch.ones(32)))
    for kind in (torch.float64, torch.bfloat16):
        x, gain = whole.to(kind), torch.ones(96, dtype=kind)
        assert torch.equal(kernels.rms_norm(x, gain), reference.rms_norm(x, gain))


def test_the_sums_do_not_depend_on_the_rows_beside_them():
    x, gain = torch.randn(200, 48), torch.randn(48)
    assert torch.equal(kernels.rms_norm(x, gain)[130:131], kernels.rms_norm(x[130:131], gain))
