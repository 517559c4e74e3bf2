"""The cross-entropy agrees with its definition, and with numbers worked by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_circuits import kernels
from sparse_circuits.kernels import reference


def loss_and_gradient(function, logits, target):
    logits = logits.clone().requires_grad_()
    loss = function(logits, target)
    (3 * loss).backward()
    return loss.detach(), logits.grad


def test_by_hand():
    # Shares 1/4 and 3/4, then 1/2 and 1/2: the loss is (ln 4 + ln 2) / 2.
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]])
    loss, grad = loss_and_gradient(kernels.cross_entropy, logits, torch.tensor([0, 1]))
    torch.testing.assert_close(loss, torch.tensor(1.5 * math.log(2.0)))
    torch.testing.assert_close(grad, 1.5 * torch.tensor([[-0.75, 0.75], [0.5, -0.5]]))


@settings(max_examples=60)
@given(
    n_row=st.integers(1, 40),
    width=st.one_of(st.integers(1, 70), st.just(2048)),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4, 1e30]),
    seed=st.integers(0, 2**16),
    is_turned=st.booleans(),
)
def test_value_and_gradient_are_those_of_the_definition(n_row, width, scale, seed, is_turned):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n_row, width, generator=generator)
    logits = logits.T.contiguous().T if is_turned else logits
    target = torch.randint(width, (n_row,), generator=generator)
    fast = loss_and_gradient(kernels.cross_entropy, logits, target)
    exact = loss_and_gradient(reference.cross_entropy, logits.double(), target)
    for one, other in zip(fast, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("entry", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_treated_as_in_the_definition(entry):
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    logits[1, 18] = entry
    for target in ([0, 1, 2], [0, 18, 2]):
        results = [
            loss_and_gradient(f, logits, torch.tensor(target)) for f in (kernels.cross_entropy, reference.cross_entropy)
        ]
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)


def test_a_target_outside_the_vocabulary_is_an_error():
    for target in (-1, 20):
        with pytest.raises(IndexError, match=r"not all in \[0, 20\)"):
            kernels.cross_entropy(torch.zeros(2, 20), torch.tensor([0, target]))


def test_no_rows_have_no_loss():
    assert kernels.cross_entropy(torch.zeros(0, 20), torch.zeros(0, dtype=torch.long)).isnan()
