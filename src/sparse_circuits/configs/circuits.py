"""Cutting circuits out, and comparing them with those of dense models."""

import dataclasses
import math
from typing import Any, Literal

from sparse_circuits.settings import Config, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneConfig(Config):
    """How a circuit is cut out (paper section 2.2, appendix A.2)."""

    target_loss: float = 0.15
    """Loss that the circuit may have, in nats: of the task after calibration, or against the model."""

    margin: float = 0.3
    """Share of target_loss by which a circuit must stay below it on the pairs that decide, in [0, 1): it does worse on
    other templates than on theirs."""

    goal: Literal["labels", "model"] = "labels"
    """Do the task, or answer as the model does, its errors and its confidence included, without calibration."""

    max_auroc: float = 0.6
    """Refinement keeps the AUROC of the model without the circuit at or below this where it can; 1 asks for
    nothing."""

    needed_loss: float | None = None
    """Nodes whose removal alone raises the full model's loss by more than this, in nats, are in the circuit, though it
    may be enough without them; if left out, only what is enough counts."""

    count_coefficient: float | None = None
    """Price of a node in the objective task loss + this · nodes; if left out, a price that follows the loss so that
    this ends at target_loss."""

    calibrates: bool = True
    """Learn a scale and a shift of the logit difference along with the masks."""

    ties_query_and_key: bool = False
    """One parameter for a query channel and its key channel (paper, footnote 17). Refinement may drop either."""

    exclude: tuple[str, ...] = ()
    """Nodes that must not be in the circuit, such as 0.attn.q:17."""

    necessity_coefficient: float = 1.0
    """Weight of a second term: what the model without the circuit still tells; 0 prunes for sufficiency alone."""

    n_step: int = 300
    """Steps of mask learning."""

    n_pair: int = 16
    """Pairs of prompts a step."""

    n_run: int = 1
    """Masks learned side by side from different seeds; the smallest circuit is kept."""

    lr: float = 1e-2
    """Adam's rate on the node parameters, falling linearly to 0."""

    warmup_frac: float = 0.05
    """Share of the steps over which the rate rises."""

    beta2: float = 0.95
    """Adam's second decay rate, in [0, 1)."""

    eps: float = 3e-4
    """Added to Adam's denominator. Of this size, the price decides how fast nodes go that do not matter: with next to
    nothing they all go at full speed, however low it is."""

    weight_decay: float = 1e-3
    """AdamW's decay of the node parameters."""

    temperature: float = 1.0
    """Width of the sigmoid that stands in for the step's derivative."""

    init_bias: float = 0.3
    """Start of every node parameter; above 0 every node starts kept."""

    init_noise: float = 0.03
    """Standard deviation around that start."""

    cuts_edges: bool = True
    """Whether refinement removes edges too, after the nodes."""

    n_start: int = 1
    """Sizes that refinement starts from, each twice the one before: elimination by measured effects may end at a
    smaller circuit from a larger start, where circuits are large; the smallest circuit is kept."""

    n_order: int = 1
    """Orders of removal that refinement tries; the smallest circuit is kept, and the sizes of all are recorded."""

    ablation: Literal["mean", "zero", "task_mean"] = "mean"
    """What a removed node is set to: its mean over the corpus, zero, or its mean over the fit pairs."""

    n_mean_token: int = 500_000
    """Least tokens that corpus means are taken over."""

    memory_mib: int = 2048
    """Memory that the activations of mask learning may take, in MiB, an estimate: as many runs go side by side as fit
    in; one goes in any case. Masks are the same."""

    seed: int = 0
    """Decides initial noise and batches."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_finite = not isinstance(value, float) or math.isfinite(value)
            require(is_finite, f"{field.name} is {value}, expected a finite number")
        price = self.count_coefficient
        require(price is None or price > 0, f"count_coefficient is {price}, expected above 0")
        require(
            self.needed_loss is None or self.needed_loss > 0, f"needed_loss is {self.needed_loss}, expected above 0"
        )
        for name in ("target_loss", "lr", "temperature", "eps"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}, expected above 0")
        for name in ("n_step", "n_pair", "n_run", "n_start", "n_order", "n_mean_token", "memory_mib"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected 1 or more")
        require(0 <= self.warmup_frac < 1, f"warmup_frac is {self.warmup_frac}, expected [0, 1)")
        for name in ("beta2", "margin"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}, expected [0, 1)")
        require(0.5 <= self.max_auroc <= 1, f"max_auroc is {self.max_auroc}, expected [0.5, 1]")
        for name in ("weight_decay", "init_noise", "necessity_coefficient"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, expected 0 or more")

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the circuit, as JSON: all but what it may cost."""
        return {name: value for name, value in self.to_json().items() if name != "memory_mib"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchConfig(Config):
    """How dense models around a sparse one's loss are found."""

    lr: float = 0.004
    """Learning rate of the dense models; all else is the sparse run's."""

    first_width: int | None = None
    """d_model to start from; if left out, that of a dense model with as many weights as the sparse one has nonzeros."""

    n_model: int = 6
    """Most dense models to train, 2 or more."""

    def __post_init__(self) -> None:
        require(0 < self.lr < float("inf"), f"lr is {self.lr}, expected above 0")
        require(
            self.first_width is None or self.first_width >= 1, f"first_width is {self.first_width}, expected 1 or more"
        )
        require(self.n_model >= 2, f"n_model is {self.n_model}, expected 2 or more")
