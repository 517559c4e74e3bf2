"""What each run of mask learning has of its own: settings, parameters and their optimizer, calibration, price."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.configs import PruneConfig
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import MAX_SCALE, MIN_SCALE
from sparse_circuits.tasks.pairs import Pairs

BETA1 = 0.9
"""AdamW's first decay rate."""

CALIBRATION_RATE = 0.03
"""Adam's rate on scale and shift while masks are learned."""

PRICE_AT_LEAST = 3e-4
"""Price of a node that the dual variable starts from and does not fall below: from next to nothing it would take the
rest of a run to come back."""

PRICE_RATE = 0.05
"""How fast the price follows the loss: its logarithm moves by at most this much a step."""

LOST = 2.0
"""A run whose price followed the loss and that ends at more than this many times its target has fallen apart."""

LOSS_MEMORY = 0.95
"""Share that the running mean of the loss, which the price follows, keeps from step to step."""

MOST = 3.0
"""A step's loss counts as at most this many times the target there: one batch that fails says no more than that."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskRun:
    """One run of mask learning: what it learns from, and how."""

    fit: Pairs
    """Prompts to learn on."""

    values: Float[Tensor, " node"]
    """What a removed node is set to."""

    config: PruneConfig
    """Rates, price, target, seed."""

    may_shift: bool = True
    """Whether the calibration has a shift."""


def surrogate_derivative(tau: Float[Tensor, "..."], temperature: float | Tensor) -> Float[Tensor, "..."]:
    """Return the derivative of sigmoid(tau / temperature), which stands in for the step's."""
    s = torch.sigmoid(tau / temperature)
    return s * (1 - s) / temperature


class _Step(torch.autograd.Function):
    """1 where tau is 0 or more, else 0; the gradient is that of a sigmoid."""

    @staticmethod
    def forward(ctx: Any, tau: Tensor, temperature: Tensor) -> Tensor:
        ctx.save_for_backward(tau, temperature)
        return (tau >= 0).to(tau.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * surrogate_derivative(*ctx.saved_tensors), None


def step_gates(
    tau: Float[Tensor, "run node"], *, temperature: Float[Tensor, "run 1"], complement: bool
) -> Float[Tensor, "gate node"]:
    """Return each run's gates: 1 for a node that is kept, from tau = 0 on, else 0; tau's gradient is the sigmoid's.

    With `complement` the gates of as many runs again follow, that keep what the first ones drop.
    """
    gate: Tensor = _Step.apply(tau, temperature)  # pyright: ignore[reportAssignmentType]
    return torch.cat((gate, 1 - gate)) if complement else gate


class MaskParameters:
    """The parameters of all runs side by side: AdamW on them, each run at its own rates, and what they were.

    One tensor holds all, (run, node), so that a step is a dozen operations however many runs there are.
    """

    def __init__(self, space: NodeSpace, configs: Sequence[PruneConfig], generators: Sequence[torch.Generator]) -> None:
        self.configs = configs
        initial = torch.stack([_initial(space, config, g) for config, g in zip(configs, generators, strict=True)])
        owner = torch.stack([_owner(space, config) for config in configs])
        self.owner = owner if any(config.ties_query_and_key for config in configs) else None
        self.n_owned = torch.zeros_like(initial).scatter_add_(1, owner, torch.ones_like(initial))
        self.excluded = torch.stack([excluded_nodes(space, config) for config in configs])
        self.own = initial.masked_fill_(self.excluded, -1).requires_grad_()
        self.temperature = torch.tensor([[config.temperature] for config in configs])
        self.beta2 = torch.tensor([[config.beta2] for config in configs])
        self.eps = torch.tensor([[config.eps] for config in configs])
        self.mean, self.square = torch.zeros_like(self.own).detach(), torch.zeros_like(self.own).detach()
        self.last_good = self.tau().detach()
        self.last_kept = torch.zeros_like(self.last_good)

    def tau(self) -> Float[Tensor, "run node"]:
        """Return every node's parameter; gradients flow to the one that it is tied to."""
        return self.own if self.owner is None else self.own.gather(1, self.owner)

    @torch.no_grad()
    def step(self, step: int, prices: Sequence[float]) -> None:
        """Add the price of nodes to the gradients, and take a step of AdamW.

        Source: decoupled decay, bias-corrected moments, as torch.optim.AdamW.
        """
        grad = self.own.grad
        assert grad is not None
        slope = surrogate_derivative(self.own, self.temperature)
        grad += torch.tensor(prices)[:, None] * slope * self.n_owned
        self.mean.lerp_(grad, 1 - BETA1)
        self.square.mul_(self.beta2).addcmul_(grad, (1 - self.beta2) * grad)
        rate = torch.tensor([[config.lr * _rate_at(step, config)] for config in self.configs])
        decay = torch.tensor([[config.weight_decay] for config in self.configs])
        root = (self.square / (1 - self.beta2 ** (step + 1))).sqrt_().add_(self.eps)
        self.own.mul_(1 - rate * decay).sub_(rate / (1 - BETA1 ** (step + 1)) * self.mean / root)
        self.own.clamp_(-1, 1).masked_fill_(self.excluded, -1)
        self.own.grad = None

    @torch.no_grad()
    def remember(self, step: int, is_good: Bool[Tensor, " run"]) -> None:
        """Note the step at which each node was last kept, and of runs that are at their target all parameters."""
        tau = self.tau()
        self.last_good = torch.where(is_good[:, None], tau, self.last_good)
        self.last_kept = torch.where(tau >= 0, step + 1, self.last_kept)

    @torch.no_grad()
    def ranks(self, is_lost: Bool[Tensor, " run"]) -> Float[Tensor, "run node"]:
        """Return what `LearnedMasks.tau` holds.

        A run that fell apart has no gradient to come back by: its last parameters that reached the target count.
        """
        tau = torch.where(is_lost[:, None], self.last_good, self.tau())
        tau = torch.where(tau >= 0, tau, -2 + self.last_kept / self.configs[0].n_step)
        return tau.masked_fill(self.excluded, -torch.inf)


class LearnedCalibration:
    """Scale and shift of each run, learned along with the masks."""

    def __init__(self, runs: Sequence[MaskRun]) -> None:
        self.log_scale = torch.zeros(len(runs), requires_grad=True)
        self.shift = torch.zeros(len(runs), requires_grad=True)
        self.is_free = torch.tensor([run.config.calibrates and run.config.goal == "labels" for run in runs])
        self.may_shift = self.is_free & torch.tensor([run.may_shift for run in runs])
        self.adam = torch.optim.Adam([self.log_scale, self.shift], lr=CALIBRATION_RATE)

    def __call__(self, difference: Float[Tensor, "some pair 2"], runs: Sequence[int]) -> Float[Tensor, "some pair 2"]:
        """Apply those of some runs."""
        return difference * self.log_scale[runs].exp()[:, None, None] + self.shift[runs][:, None, None]

    def step(self) -> None:
        """Take a step of Adam; what is not free stays at 1 and 0."""
        self.adam.step()
        self.adam.zero_grad()
        with torch.no_grad():
            self.log_scale.clamp_(math.log(MIN_SCALE), math.log(MAX_SCALE)).mul_(self.is_free)
            self.shift.mul_(self.may_shift)

    def scales(self) -> list[float]:
        """Return each run's scale."""
        return self.log_scale.detach().exp().tolist()


class Price:
    """Price of a node in each run: fixed, or a dual variable that drives the loss to the target."""

    def __init__(self, configs: Sequence[PruneConfig]) -> None:
        self.target = torch.tensor([config.target_loss for config in configs])
        self.is_fixed = [config.count_coefficient is not None for config in configs]
        self.now = [PRICE_AT_LEAST if c.count_coefficient is None else c.count_coefficient for c in configs]
        self.mean_loss = self.target  # as if it were met: what the loss was before anything is learned says nothing

    def follow(self, losses: Float[Tensor, " run"]) -> None:
        """Raise the prices of runs below their target, lower those of runs above it."""
        self.mean_loss = torch.lerp(losses.minimum(MOST * self.target), self.mean_loss, LOSS_MEMORY)
        for run, distance in enumerate((1 - self.mean_loss / self.target).clamp(-1, 1).tolist()):
            if not self.is_fixed[run]:
                self.now[run] = max(self.now[run] * math.exp(PRICE_RATE * distance), PRICE_AT_LEAST)

    def is_met(self) -> Bool[Tensor, " run"]:
        """Mark the runs whose running loss is at the target."""
        return self.mean_loss <= self.target

    def is_lost(self) -> Bool[Tensor, " run"]:
        """Mark the runs that fell apart; see `LOST`."""
        return (self.mean_loss > LOST * self.target) & ~torch.tensor(self.is_fixed)


def _initial(space: NodeSpace, config: PruneConfig, generator: torch.Generator) -> Float[Tensor, " node"]:
    noise = torch.randn(space.n_node, generator=generator)
    return (config.init_bias + config.init_noise * noise).clamp(-1, 1)


def excluded_nodes(space: NodeSpace, config: PruneConfig) -> Bool[Tensor, " node"]:
    """Mark the nodes that must not be in the circuit: those named, and with a channel the one that is tied to it."""
    owner = _owner(space, config)
    goes = torch.zeros(space.n_node, dtype=torch.bool)
    goes[owner[space.marked(config.exclude)]] = True
    return goes[owner]


def _owner(space: NodeSpace, config: PruneConfig) -> Int[Tensor, " node"]:
    """Return whose parameter decides each node: its own, or for a key channel that is tied the query's."""
    owner = torch.arange(space.n_node)
    if config.ties_query_and_key:
        parts = dict(space.slices())
        for name, part in parts.items():
            if name.endswith("attn.k"):
                owner[part] = owner[parts[name[:-1] + "q"]]
    return owner


def _rate_at(step: int, config: PruneConfig) -> float:
    warmup = config.warmup_frac * config.n_step
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (config.n_step - step) / (config.n_step - warmup)
