"""Does the answer survive if a part of what is outside is ablated, drawn at random or by an adversary?"""

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_circuits.attribution import Dimmed
from sparse_circuits.configs import VerifyConfig
from sparse_circuits.faithfulness.intervals import A_LOSS, Estimate, Spread, estimate, mean_of
from sparse_circuits.faithfulness.subject import Subject
from sparse_circuits.scoring import logit_difference, pair_loss
from sparse_circuits.taps import replacing
from sparse_circuits.tasks.pairs import Pairs

N_ADVERSARY_PAIR = 32
"""Pairs of `select` that the adversary sees, all at every step, under one mask: it can't fit any one of them."""

STEP = 0.3
"""How far the adversary's mask moves in its first step; it falls linearly to a tenth."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubsetPoint:
    """The model with the circuit whole and a share of the other nodes at their ablation values; losses in nats."""

    share: float
    """Share of the nodes outside the circuit that is ablated; 0 is the model, 1 the circuit with all its edges."""

    loss_mean: Spread
    """Mean over random subsets."""

    loss_worst: float
    """Highest of the random subsets."""

    adversary: Estimate | None
    """The subset that the adversary chose on `select`, measured on `test`; None if it was left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubsetAblation:
    """Losses along the way from the model to the circuit, each subset calibrated on `select`.

    A circuit that works only with everything else silent lives on errors that cancel. That all random subsets leave the
    answer does not show that the circuit is the whole mechanism: a second one outside would survive too.
    """

    points: list[SubsetPoint]
    """By share."""

    n_outside: int
    """Nodes outside the circuit."""

    n_subset: int
    """Random subsets for each share."""

    @property
    def loss_mean_highest(self) -> float:
        """Highest mean over random subsets of all shares."""
        return max(point.loss_mean.value for point in self.points)

    @property
    def adversary_highest(self) -> float | None:
        """Highest loss that the adversary reached."""
        found = [point.adversary.value for point in self.points if point.adversary is not None]
        return max(found, default=None)


def subset_ablation(subject: Subject, config: VerifyConfig) -> SubsetAblation:
    """Ablate random and adversarial subsets of what is outside the circuit.

    Source: stochastic and adversarial subset ablation with one mask for a whole batch as in stochastic parameter
    decomposition (Bushnaq et al. 2025), there of parameter components, here of nodes; the shares are ours.
    """
    keep = subject.circuit.keep
    generator = torch.Generator().manual_seed(config.seed)
    points = []
    for share in sorted(config.shares):
        gone = random_subsets(~keep, share, config.n_subset, generator)
        chosen = adversarial_subset(subject, share, config) if config.n_adversary_step else None
        masks = ~gone if chosen is None else torch.cat((~gone, ~chosen[None]))
        losses = pair_loss(subject.masked(masks))  # (subset, pair)
        of_subset = losses[: config.n_subset].mean(1).tolist()
        points.append(
            SubsetPoint(
                share=share,
                loss_mean=mean_of(of_subset),
                loss_worst=max(of_subset),
                adversary=None if chosen is None else estimate(losses[-1], subject.test.templates, within=A_LOSS),
            )
        )
    return SubsetAblation(points=points, n_outside=int((~keep).sum()), n_subset=config.n_subset)


def random_subsets(
    outside: Bool[Tensor, " node"], share: float, n_subset: int, generator: torch.Generator
) -> Bool[Tensor, "subset node"]:
    """Draw subsets of some nodes, of exactly this share of them."""
    rank = (
        torch.rand(n_subset, len(outside), generator=generator).masked_fill(~outside, torch.inf).argsort(1).argsort(1)
    )
    return rank < round(share * int(outside.sum()))


def adversarial_subset(subject: Subject, share: float, config: VerifyConfig) -> Bool[Tensor, " node"]:
    """Return the nodes outside the circuit, a share of them, whose ablation hurts most by projected gradient ascent.

    Each node outside is mixed with its ablation value, a · value + (1 − a) · x, a in [0, 1] and one for all prompts;
    the mean of a is held at `share`. What rises is softplus(−(d₀ − d₁) / 2), which no shift undoes. At the end the
    nodes with the largest a are ablated whole.
    """
    circuit, space = subject.circuit, subject.circuit.space
    pairs = subject.select.take(torch.arange(min(N_ADVERSARY_PAIR, len(subject.select))))
    outside = ~circuit.keep
    n_gone = round(share * int(outside.sum()))
    generator = torch.Generator().manual_seed(config.seed)
    ablated = share + 0.1 * (torch.rand(int(outside.sum()), generator=generator) - 0.5)
    ablated = projected(ablated, share)
    for step in range(config.n_adversary_step):
        mask = torch.ones(space.n_node)
        mask[outside] = 1 - ablated
        gradient = _mask_gradient(subject, mask.requires_grad_(), pairs)[outside]
        rate = STEP * (1 - 0.9 * step / config.n_adversary_step)
        ablated = projected(ablated - rate * gradient.sign(), share)
    chosen = torch.zeros_like(outside)
    chosen[outside.nonzero().flatten()[ablated.argsort(descending=True, stable=True)[:n_gone]]] = True
    return chosen


def _mask_gradient(subject: Subject, mask: Float[Tensor, " node"], pairs: Pairs) -> Float[Tensor, " node"]:
    circuit, space = subject.circuit, subject.circuit.space
    masks, values = space.split(mask), space.split(circuit.values)
    with replacing(circuit.model, {name: Dimmed(masks[name], values[name]) for name in space.widths}):
        difference = logit_difference(circuit.model, pairs)[0]
    objective = F.softplus(-(difference[:, 0] - difference[:, 1]) / 2).mean()
    return torch.autograd.grad(objective, mask)[0]


def projected(x: Float[Tensor, " node"], mean: float) -> Float[Tensor, " node"]:
    """Return the nearest point of [0, 1]ⁿ with this mean: a shift, then a clamp; the shift is bisected."""
    if len(x) == 0:
        return x
    low, high = float(-x.max()), float(1 - x.min())
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if float((x + middle).clamp(0, 1).mean()) < mean else (low, middle)
    return (x + high).clamp(0, 1)
