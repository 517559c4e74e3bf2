"""95 % intervals: bootstrap over templates, then over pairs."""

import dataclasses

import numpy as np
from jaxtyping import Float
from torch import Tensor

N_RESAMPLE = 1000
"""Resamples of an interval."""

FEW_TEMPLATES = 10
"""With fewer, an interval over templates is rough, and says so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over pairs and how far it can be trusted."""

    value: float
    """The mean."""

    low: float
    """Lower end of the 95 % interval."""

    high: float
    """Upper end."""

    n_pair: int
    """Pairs averaged over."""

    n_template: int
    """Templates that they come from."""

    def __str__(self) -> str:
        few = "*" if self.n_template < FEW_TEMPLATES else ""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]{few}"


def estimate(per_pair: Float[Tensor, " pair"], templates: tuple[str, ...]) -> Estimate:
    """Return the mean over pairs with its interval.

    A resample draws templates with replacement, then pairs within each, and averages over all pairs drawn. The draws
    are the same at every call.

    Args:
        per_pair: The quantity for each pair, such as its loss.
        templates: Each pair's template.
    """
    values = per_pair.detach().double().numpy()
    names = sorted(set(templates))
    groups = [np.flatnonzero(np.array(templates) == name) for name in names]
    rng = np.random.default_rng(0)
    means = np.empty(N_RESAMPLE)
    for i in range(N_RESAMPLE):
        drawn = [groups[g] for g in rng.integers(len(groups), size=len(groups))]
        index = np.concatenate([group[rng.integers(len(group), size=len(group))] for group in drawn])
        means[i] = values[index].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(
        value=float(values.mean()), low=float(low), high=float(high), n_pair=len(values), n_template=len(names)
    )
