"""Bridges between a dense and a sparse model, and steering across them."""

import dataclasses
import itertools
import math
from typing import Literal

from sparse_circuits.settings import Config, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class BridgeConfig(Config):
    """How bridges are trained (paper section 2.3, appendix A.3)."""

    n_token: int = 2_000_000
    """Tokens to train on, where the sparse model starts from a finished run; a new one takes its own settings'."""

    batch_size: int = 16
    """Sequences a step, likewise."""

    sparse_lr: float = 0.006
    """Learning rate of a sparse model that starts from a finished run."""

    lr: float = 0.002
    """Adam's rate on the bridges, with the sparse model's warm-up and decay."""

    encoder_density: float | None = 0.5
    """Share of an encoding's channels that AbsTopK keeps, in (0, 1]; None keeps all. A residual stream is less sparse
    than what is written to it: at a quarter the encodings of the demo's model lose up to 6 % of the variance."""

    nmse_weight: float = 1.0
    """Weight of each reconstruction error."""

    kl_weight: float = 1.0
    """Weight of each hybrid's KL."""

    sites: tuple[str, ...] = ()
    """Pairs of sites such as 0:0 2:4, sparse site first; if left out, all sites of two models of equal depth."""

    hybrids_at_once: int | None = None
    """Most hybrids in memory at once; if left out, all of a direction. Gradients are the same."""

    sites_per_step: int | None = None
    """Random sites that get hybrids in a step, scaled up: an unbiased loss, though not an unbiased update, since
    gradients are normalised. If left out, all."""

    position_share: float = 1.0
    """Share of the positions whose KL is computed, drawn anew each step, in (0, 1]; unbiased likewise."""

    n_ridge_token: int = 100_000
    """Tokens whose streams the closed-form bridges are fitted to: the quick bridge, and the start beside a finished
    sparse run."""

    ridge: float = 1e-3
    """Penalty of that fit, as a share of the mean variance of its inputs."""

    seed: int = 0
    """Decides the bridges' random start and the random sites."""

    def __post_init__(self) -> None:
        for name in ("n_token", "batch_size", "n_ridge_token"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("sparse_lr", "lr"):
            require(0 < getattr(self, name) < float("inf"), f"{name} is {getattr(self, name)}, expected above 0")
        for name in ("nmse_weight", "kl_weight"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, expected 0 or more")
        require(self.ridge > 0, f"ridge is {self.ridge}, expected above 0")
        for name in ("hybrids_at_once", "sites_per_step"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}, expected 1 or more")
        require(0 < self.position_share <= 1, f"position_share is {self.position_share}, expected (0, 1]")
        density = self.encoder_density
        require(density is None or 0 < density <= 1, f"encoder_density is {density}, expected (0, 1] or null")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SteerConfig(Config):
    """How a steering experiment is run (paper appendix A.4)."""

    strengths: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Factors of the edit; 1 is the formula's value."""

    where: Literal["read", "stream"] = "read"
    """Add the edit to the one read that the node stands at (the paper), or to the stream there, which all later
    sublayers read (ours)."""

    n_pair: int = 512
    """Pairs of `test`, evenly taken of its levels and templates."""

    n_null_row: int = 128
    """Decoder rows of other active nodes in the null band, 100 or more."""

    n_null_pair: int = 32
    """Pairs that the null band, and the node beside it, are measured on."""

    n_select_pair: int = 64
    """Pairs of `select` that nodes are found on."""

    n_try: int = 12
    """Nodes that the search measures, the best of all by gradient."""

    n_neutral_token: int = 8_192
    """Tokens of held-out text for the cost in KL."""

    other_tasks: tuple[str, ...] = ("single_double_quote", "bracket_counting", "for_while", "with_as")
    """Tasks whose accuracy is measured under the edit, the steered one left out."""

    n_ridge_token: int = 50_000
    """Tokens that the ridge bridge beside it is fitted to."""

    seed: int = 0
    """Decides the null rows and the untrained bridge."""

    def __post_init__(self) -> None:
        for strength in self.strengths:
            require(math.isfinite(strength), f"strength {strength} is not a finite number")
        require(
            0.0 in self.strengths and 1.0 in self.strengths, "strengths must hold 0 (no steering) and 1 (the formula)"
        )
        require(
            all(a < b for a, b in itertools.pairwise(self.strengths)),
            f"strengths {' '.join(f'{s:g}' for s in self.strengths)} must rise",
        )
        require(
            self.n_null_row >= 100, f"n_null_row is {self.n_null_row}, expected 100 or more: p < 0.01 needs as many"
        )
        for name in ("n_pair", "n_null_pair", "n_select_pair", "n_try", "n_neutral_token", "n_ridge_token"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected 1 or more")
