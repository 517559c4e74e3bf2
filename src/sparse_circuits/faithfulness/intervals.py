"""95 % intervals of means over pairs that come in templates, and of means over a few runs."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

FEW_TEMPLATES = 10
"""With fewer, an interval over templates is rough, and says so."""

CONFIDENCE = 0.95
"""How often an interval holds the truth."""


FEW_FOR_LOGARITHMS = 4
"""With fewer templates a loss's interval is not made of logarithms."""

WIDEST = 100.0
"""Nor if its ends would lie further apart than this factor."""

ANYWHERE, A_LOSS, A_SHARE = (-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0)
"""What a quantity can be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over pairs and how far it can be trusted."""

    value: float
    """The mean."""

    low: float | None
    """Lower end of the 95 % interval; None where there are too few templates for one."""

    high: float | None
    """Upper end; None where there are too few templates."""

    n_pair: int
    """Pairs averaged over."""

    n_template: int
    """Templates that they come from."""

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f} (no interval: {_count(self.n_template, 'template')})"
        few = "*" if self.n_template < FEW_TEMPLATES else ""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]{few}"


def estimate(
    per_pair: Float[Tensor, " pair"], templates: Sequence[str], *, within: tuple[float, float] = ANYWHERE
) -> Estimate:
    """Return the mean over pairs with its interval over templates.

    The mean is taken again without each template in turn: value ± t · sqrt((n − 1) / n · Σ (meanᵢ − mean of them)²),
    with n templates and t the 97.5 % quantile of Student's distribution of n − 1 degrees of freedom. Pairs of one
    template may be as alike as they please. With fewer than two templates there is no interval.

    A loss has a long upper tail. Its interval is made of logarithms, Σ (log meanᵢ − log value)², with as many templates
    for t as (Σ pairs)² / Σ pairs² counts, and turned back, unless there are fewer than `FEW_FOR_LOGARITHMS` or it spans
    more than `WIDEST`.

    Args:
        per_pair: The quantity for each pair, such as its loss.
        templates: Each pair's template.
        within: What the quantity can be: `A_LOSS`, `A_SHARE` or `ANYWHERE`; the interval ends there.

    Source: the delete-one-cluster jackknife (CR3 in the survey literature); the logarithms are ours. A bootstrap over
    templates takes the spread of the few templates drawn for the spread of all and covers too rarely:
    `benchmarks/interval_coverage.py` compares.
    """
    values = per_pair.detach().double().numpy()
    names, index = np.unique(np.asarray(templates, dtype=str), return_inverse=True)
    value, low, high = float(values.mean()), None, None
    if len(names) > 1:
        n_pair, total = np.bincount(index), np.bincount(index, weights=values)
        without_each = (total.sum() - total) / (len(values) - n_pair)
        half = _half_width(without_each)
        low, high = max(value - half, within[0]), min(value + half, within[1])
        if within == A_LOSS and len(names) >= FEW_FOR_LOGARITHMS and without_each.min() > 0:
            n_even = int(len(values) ** 2 / np.square(n_pair).sum())  # templates of equal size that tell as much
            half = _half_width(np.log(without_each), around=math.log(value), n_freedom=max(n_even - 1, 1))
            if half < math.log(WIDEST) / 2:
                low, high = value * math.exp(-half), value * math.exp(half)
    return Estimate(value=value, low=low, high=high, n_pair=len(values), n_template=len(names))


def ratio_estimate(above: Float[Tensor, " pair"], below: Float[Tensor, " pair"], templates: Sequence[str]) -> Estimate:
    """Return the ratio of two means over pairs, with an interval by the same jackknife as `estimate`.

    Args:
        above: The quantity on top, for each pair.
        below: The one below; its mean is not 0.
        templates: Each pair's template.
    """
    names, index = np.unique(np.asarray(templates, dtype=str), return_inverse=True)
    totals = [np.bincount(index, weights=part.detach().double().numpy()) for part in (above, below)]
    value = float(totals[0].sum() / totals[1].sum())
    low = high = None
    if len(names) > 1:
        half = _half_width((totals[0].sum() - totals[0]) / (totals[1].sum() - totals[1]))
        low, high = value - half, value + half
    return Estimate(value=value, low=low, high=high, n_pair=len(above), n_template=len(names))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean over runs, sets or seeds, with the interval of the mean."""

    value: float
    """The mean, or the geometric mean where that is said."""

    low: float | None
    """Lower end of the 95 % interval; None of fewer than two."""

    high: float | None
    """Upper end."""

    n: int
    """How many were averaged."""

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.2f} (no interval: of {self.n})"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def mean_of(values: Sequence[float]) -> Spread:
    """Return the mean of independent values with Student's interval."""
    values = [float(value) for value in values]
    mean, n = sum(values) / len(values), len(values)
    if n < 2:
        return Spread(value=mean, low=None, high=None, n=n)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = student_quantile(n - 1) * deviation / math.sqrt(n)
    return Spread(value=mean, low=mean - half, high=mean + half, n=n)


def geometric_mean_of(values: Sequence[float]) -> Spread:
    """Return the geometric mean of positive values, with Student's interval of their logarithms."""
    found = mean_of([math.log(value) for value in values])
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    return Spread(value=math.exp(found.value), low=low, high=high, n=found.n)


@functools.cache
def student_quantile(n_freedom: int) -> float:
    """Return t with 95 % of Student's distribution within ±t.

    Args:
        n_freedom: Degrees of freedom, 1 or more.
    """
    low, high = 0.0, 20.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _share_within(middle, n_freedom) < CONFIDENCE else (low, middle)
    return low


def _share_within(t: float, n_freedom: int) -> float:
    """Return the share of Student's distribution within ±t: for whole degrees of freedom it is a finite sum."""
    angle = math.atan(t / math.sqrt(n_freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = n_freedom % 2 == 1
    term, total = (cosine, cosine if n_freedom > 1 else 0.0) if is_odd else (1.0, 1.0)
    for k in range(3 if is_odd else 2, n_freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total


def _half_width(
    without_each: Float[np.ndarray, " template"], *, around: float | None = None, n_freedom: int | None = None
) -> float:
    n = len(without_each)
    middle = without_each.mean() if around is None else around
    deviation = math.sqrt((n - 1) / n * float(np.square(without_each - middle).sum()))
    return student_quantile(n_freedom or n - 1) * deviation


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")
