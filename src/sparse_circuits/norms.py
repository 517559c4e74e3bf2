"""A norm in two parts: what it divides by, and what it divides."""

from jaxtyping import Float
from torch import Tensor


def norm_divisor(x: Float[Tensor, "*batch d_model"], *, centres: bool) -> Float[Tensor, "*batch"]:
    """Return the root mean square of each vector, or its standard deviation where the norm centres."""
    if centres:
        x = x - x.mean(-1, keepdim=True)
    return x.square().mean(-1).sqrt()


def gained(x: Float[Tensor, "*batch d_model"], gain: Tensor, *, centres: bool) -> Float[Tensor, "*batch d_model"]:
    """Return the numerator of a norm: centred if it centres, times its gain; a bias is left out."""
    return (x - x.mean(-1, keepdim=True) if centres else x) * gain
