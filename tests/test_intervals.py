"""Intervals: worked by hand, and as often right as they say."""

import math

import numpy as np
import pytest
import torch

from sparse_circuits.faithfulness.intervals import (
    A_LOSS,
    A_SHARE,
    estimate,
    geometric_mean_of,
    mean_of,
    ratio_estimate,
    student_quantile,
)


@pytest.mark.parametrize(
    ("n_freedom", "expected"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)],
)
def test_students_quantiles_are_those_of_the_tables(n_freedom: int, expected: float) -> None:
    assert student_quantile(n_freedom) == pytest.approx(expected, abs=6e-4)


def test_the_interval_of_equal_templates_is_students_of_their_means() -> None:
    # Template means 1, 2, 6: mean 3, standard deviation of the means sqrt(7), t of two degrees 4.303.
    values = torch.tensor([0.5, 1.5, 2.0, 2.0, 5.0, 7.0])
    found = estimate(values, ("a", "a", "b", "b", "c", "c"))
    half = student_quantile(2) * math.sqrt(7 / 3)
    assert (found.value, found.n_pair, found.n_template) == (3.0, 6, 3)
    assert found.low == pytest.approx(3 - half)
    assert found.high == pytest.approx(3 + half)


def test_one_template_has_a_number_and_no_interval() -> None:
    found = estimate(torch.tensor([1.0, 2.0]), ("a", "a"))
    assert (found.value, found.low, found.high) == (1.5, None, None)
    assert str(found) == "1.500 (no interval: 1 template)"


def test_pairs_that_repeat_what_their_template_says_add_nothing() -> None:
    templates = tuple("abcdefgh")
    once = estimate(torch.arange(8.0), templates)
    often = estimate(torch.arange(8.0).repeat_interleave(50), tuple(t for t in templates for _ in range(50)))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_intervals_end_where_the_quantity_does() -> None:
    templates = tuple("abcde")
    share = estimate(torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]), templates, within=A_SHARE)
    assert share.high == 1.0
    loss = estimate(torch.tensor([0.1, 0.1, 0.2, 0.1, 0.9]), templates, within=A_LOSS)
    assert loss.low is not None
    assert 0 < loss.low < loss.value
    nothing = estimate(torch.zeros(5), templates, within=A_LOSS)
    assert (nothing.low, nothing.high) == (0.0, 0.0)


@pytest.mark.parametrize("what", ["difference", "loss"])
@pytest.mark.parametrize("n_template", [6, 16])
def test_an_interval_holds_the_truth_19_times_of_20(what: str, n_template: int) -> None:
    """The seeds are fixed; with 600 draws the standard error of a coverage is 0.9 %."""
    rng = np.random.default_rng(1)

    def drawn(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        means = 2 + 0.6 * rng.normal(size=(n, 1))
        difference = means + 1.5 * rng.normal(size=(n, size))
        return (difference, means) if what == "difference" else (np.logaddexp(0, -difference), means)

    truth = drawn(200_000, 4)[0].mean()
    names = tuple(str(i) for i in range(n_template) for _ in range(20))
    n_right = 0
    for _ in range(600):
        found = estimate(
            torch.from_numpy(drawn(n_template, 20)[0].ravel()), names, **({"within": A_LOSS} if what == "loss" else {})
        )
        assert found.low is not None
        assert found.high is not None
        n_right += found.low <= truth <= found.high
    assert 0.93 <= n_right / 600 <= 0.97


def test_a_ratio_of_what_is_proportional_is_exact() -> None:
    below = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = ratio_estimate(2 * below, below, tuple("abcd"))
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))


def test_means_over_runs() -> None:
    found = mean_of([1.0, 3.0])
    assert found.value == 2
    assert found.high == pytest.approx(2 + student_quantile(1) * 1.0)
    assert mean_of([4.0]).low is None
    assert geometric_mean_of([2.0, 8.0]).value == pytest.approx(4)


def test_an_interval_holds_the_mean_and_widens_with_the_spread_between_templates():
    templates = tuple(f"t{i % 12}" for i in range(240))
    even = estimate(torch.full((240,), 0.3), templates)
    assert (even.value, even.low, even.high) == pytest.approx((0.3, 0.3, 0.3))
    by_template = torch.tensor([float(i % 12) for i in range(240)])
    apart = estimate(by_template, templates)
    assert apart.low < apart.value == 5.5 < apart.high
    within = estimate(by_template[torch.randperm(240, generator=torch.Generator().manual_seed(0))], templates)
    assert apart.high - apart.low > 2 * (within.high - within.low)
    assert estimate(torch.ones(4), ("a", "a", "b", "b")).n_template == 2
