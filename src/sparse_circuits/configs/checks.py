"""How thoroughly a circuit is checked."""

import dataclasses
from typing import Literal, Self, get_args

from sparse_circuits.settings import Config, require

Check = Literal[
    "ablations",
    "subsets",
    "selectivity",
    "interchange",
    "attention",
    "agreement",
    "binarisation",
    "benchmark",
    "controls",
    "uniqueness",
]
CHECKS: tuple[Check, ...] = get_args(Check)
"""Checks that can be left out; sufficiency, necessity with random sets and the task card are in every report."""

COSTLY: tuple[Check, ...] = ("controls", "uniqueness")
"""They prune again, so they are done on request only; what they pruned is kept beside the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig(Config):
    """Which checks of a circuit are made, and on how much."""

    checks: tuple[Check, ...] = tuple(check for check in CHECKS if check not in COSTLY)
    """Checks to make, in any order."""

    n_pair: int = 64
    """Pairs of each of select and test that checks of many variants look at."""

    n_split_pair: int | None = None
    """Most pairs of each split that sufficiency and agreement look at, evenly spaced; all of them if left out."""

    n_set: int = 200
    """Random sets alike in activity; a fourth as many are alike in effect."""

    n_subset: int = 16
    """Random subsets for each share ablated."""

    shares: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    """Shares of what is outside the circuit that subsets ablate, in (0, 1)."""

    n_adversary_step: int = 20
    """Gradient steps of the adversary, for each share; 0 leaves it out."""

    n_step: int = 200
    """Steps of learning where nodes of two values change over."""

    n_corpus_token: int = 8192
    """Held-out tokens of each source that the corpus loss is measured on; at least one context's worth."""

    n_nonsense: int = 3
    """Nonsense tasks that are pruned as controls, at most 6."""

    n_control_seed: int = 1
    """Models of random and of shuffled weights, each, that are pruned as controls."""

    n_seed: int = 3
    """Seeds of the ensemble."""

    n_exclusion: int = 4
    """Most rounds of forbidding all circuits so far and pruning again."""

    seed: int = 0
    """Decides subsets, sets and orders."""

    @classmethod
    def quick(cls) -> Self:
        """Return settings for a first look: under half a minute at the demo's size."""
        checks: tuple[Check, ...] = ("subsets", "interchange", "attention", "agreement")
        return cls(
            checks=checks, n_pair=32, n_split_pair=192, n_set=12, n_subset=6, shares=(0.25, 0.75), n_adversary_step=0
        )

    def __post_init__(self) -> None:
        for check in self.checks:
            require(check in CHECKS, f"checks names {check!r}, expected some of {', '.join(CHECKS)}")
        for name in ("n_pair", "n_set", "n_subset", "n_step", "n_corpus_token", "n_seed"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("n_adversary_step", "n_nonsense", "n_control_seed", "n_exclusion"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, expected 0 or more")
        require(
            self.n_split_pair is None or self.n_split_pair >= 1,
            f"n_split_pair is {self.n_split_pair}, expected 1 or more",
        )
        require(len(self.shares) > 0, "shares is empty, expected some in (0, 1)")
        for share in self.shares:
            require(0 < share < 1, f"shares has {share}, expected (0, 1)")
