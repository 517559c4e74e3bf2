"""Learning which nodes to keep: step masks with a sigmoid's derivative, many runs side by side."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import ConfigError
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import (
    CHANCE,
    MAX_SCALE,
    MIN_SCALE,
    all_logit_differences,
    logit_difference,
    match_loss,
    task_loss,
)
from sparse_circuits.taps import replacing
from sparse_circuits.tasks.pairs import Pairs

PROMOTION = 10.0
"""What differences are multiplied with before they count as information."""

MEMORY = 2 << 30
"""Bytes that one pass of mask learning may take."""

N_TOKEN_AT_ONCE = 8192
"""Tokens of prompts in one pass. Eight runs of 1,024 tokens were twice as fast together as alone, four of 4,096 no
faster (benchmarks/prune_runs.py); the limit lies between and was not itself tuned."""

CALIBRATION_RATE = 0.03
"""Adam's rate on scale and shift while masks are learned."""

PRICE_AT_START = 2e-4
"""Price of a node that the dual variable starts from."""

PRICE_RATE = 0.05
"""How fast the price follows the loss: its logarithm moves by at most this much a step."""

LOST = 2.0
"""A run whose price followed the loss and that ends at more than this many times its target has fallen apart."""

LOSS_MEMORY = 0.95
"""Share that the running mean of the loss, which the price follows, keeps from step to step."""


class _StepMask(torch.autograd.Function):
    """`where(keep, x, value)` with keep = tau >= 0; with `complement` a second half of the runs keeps the others.

    tau's gradient is what the mask's would be, times the sigmoid's derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: Tensor, value: Tensor, temperature: Tensor, complement: bool) -> Tensor:
        keep = _kept(tau, complement)  # (run, channel)
        value = torch.cat((value, value)) if complement else value
        runs = x.unflatten(0, (len(keep), -1))  # (run, batch, pos, channel)
        ctx.save_for_backward(x, tau, value, temperature)
        ctx.complement = complement
        offset = torch.where(keep, 0.0, value)[:, None, None]
        return torch.addcmul(offset, runs, keep.to(x.dtype)[:, None, None]).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        x, tau, value, temperature = ctx.saved_tensors
        keep = _kept(tau, ctx.complement)
        grad = grads[0].unflatten(0, (len(keep), -1)).flatten(1, 2)  # (run, batch · pos, channel)
        runs = x.unflatten(0, (len(keep), -1)).flatten(1, 2)
        by_mask = torch.einsum("rnc,rnc->rc", grad, runs) - grad.sum(1) * value  # (run, channel)
        if ctx.complement:
            by_mask = by_mask[: len(tau)] - by_mask[len(tau) :]
        grad_tau = by_mask * surrogate_derivative(tau, temperature)
        grad_x = (grad * keep[:, None]).view_as(x) if ctx.needs_input_grad[0] else None
        return grad_x, grad_tau, None, None, None


def _kept(tau: Tensor, complement: bool) -> Tensor:
    return torch.cat((tau >= 0, tau < 0)) if complement else tau >= 0


def surrogate_derivative(tau: Float[Tensor, "..."], temperature: float | Tensor) -> Float[Tensor, "..."]:
    """Return the derivative of sigmoid(tau / temperature), which stands in for the step's."""
    s = torch.sigmoid(tau / temperature)
    return s * (1 - s) / temperature


def information_left(difference: Float[Tensor, "*run pair 2"]) -> Float[Tensor, "*run"]:
    """Return how far the answers of a pair's two sides are apart, whichever way round, in nats; 0 is not at all.

    With d half the difference of the two sides' logit differences, times `PROMOTION`, it is
    (softplus(d) + softplus(−d)) / 2 − ln 2. Flipped answers count as much as right ones, so a minimum has no
    information rather than wrong information; and a difference too small to change a loss counts, for a ranking
    of the two sides would still show it.

    Source: ours; the paper prunes for sufficiency alone.
    """
    d = PROMOTION * (difference[..., 0] - difference[..., 1]) / 2
    return ((F.softplus(d) + F.softplus(-d)) / 2 - CHANCE).mean(-1)


class LearnedMask:
    """The edit of one location while its mask is learned."""

    acts_at_each_position = True

    def __init__(
        self,
        tau: Float[Tensor, "run channel"],
        value: Float[Tensor, "run channel"],
        *,
        temperature: Float[Tensor, "run 1"],
        complement: bool,
    ) -> None:
        self.tau, self.value, self.temperature, self.complement = tau, value, temperature, complement

    def __call__(self, x: Float[Tensor, "batch pos channel"]) -> Float[Tensor, "batch pos channel"]:
        """Apply the masks."""
        return _StepMask.apply(x, self.tau, self.value, self.temperature, self.complement)  # pyright: ignore


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedMasks:
    """What mask learning found."""

    tau: Float[Tensor, "run node"]
    """Rank of each node: its parameter in [0, 1] if it is kept, else in [−2, −1], the higher the longer it was kept, as
    the parameters of dropped nodes all end at the same bound. −∞ for nodes that are excluded."""

    history: list[list[dict[str, float]]]
    """For each run: loss, number of nodes, price and scale by step."""

    @property
    def keep(self) -> Bool[Tensor, "run node"]:
        """Nodes that each run keeps."""
        return self.tau >= 0


def learn_masks(
    model: Transformer,
    runs: Sequence[MaskRun],
    *,
    memory: int = MEMORY,
    on_step: Callable[[int, list[dict[str, float]]], None] = lambda *_: None,
) -> LearnedMasks:
    """Learn the nodes to keep, in one pass over the shared weights as many runs as fit into memory and save time.

    Args:
        model: Its weights stay as they are.
        runs: Those that go together agree in n_step and n_pair; all else is each run's own, its random numbers too.
        memory: Bytes that the activations of one pass may take, an estimate; one run goes in any case.
        on_step: Called with each step and the record of every run that is under way.

    Raises:
        ConfigError: Runs differ in n_step or n_pair.
    """
    by_memory = memory // max(bytes_of_run(model, run) for run in runs)
    at_once = max(1, min(by_memory, N_TOKEN_AT_ONCE // max(tokens_of_run(run) for run in runs)))
    groups = [runs[start : start + at_once] for start in range(0, len(runs), at_once)]
    learned = [_learn_together(model, group, on_step) for group in groups]
    return LearnedMasks(
        tau=torch.cat([part.tau for part in learned]), history=[one for part in learned for one in part.history]
    )


def bytes_of_run(model: Transformer, run: MaskRun) -> int:
    """Estimate the memory of one run's step: what the forward pass keeps for the backward pass, and half as much again.

    Each location's activation is kept some five times: by the norm or the nonlinearity, AbsTopK, its mask, the map that
    reads it, and attention.
    """
    return int(1.5 * 5 * 4 * tokens_of_run(run) * sum(model.config.node_widths().values()))


def tokens_of_run(run: MaskRun) -> int:
    """Return the most tokens that one run's step reads: both sides of its pairs, with the circuit and without it."""
    n_prompt = 2 * run.config.n_pair * (1 + (run.config.necessity_coefficient > 0))
    return n_prompt * int(run.fit.length.max())


def _learn_together(
    model: Transformer, runs: Sequence[MaskRun], on_step: Callable[[int, list[dict[str, float]]], None]
) -> LearnedMasks:
    """Learn all runs in one pass.

    Each minimises task loss + price · nodes + necessity_coefficient · information left without the circuit. The task
    loss is that of calibrated differences, scale and shift being learned along. The price is `count_coefficient`, or
    follows the loss so that this ends at `target_loss`: it rises while the loss is below, and falls while above.

    Source: paper section 2.2 and appendix A.2: AdamW on clamped parameters, rates rise over 5 % and fall linearly.
    Calibration, price and necessity are ours.
    """
    space = NodeSpace.of(model.config)
    configs = [run.config for run in runs]
    n_step, n_pair = configs[0].n_step, configs[0].n_pair
    if any((config.n_step, config.n_pair) != (n_step, n_pair) for config in configs):
        raise ConfigError("runs that are learned together need the same n_step and n_pair")
    generators = [torch.Generator().manual_seed(config.seed) for config in configs]
    masks = _Masks(space, configs, generators)
    batches = [_endless_batches(run.fit, n_pair, g) for run, g in zip(runs, generators, strict=True)]
    calibration, price = _Calibration(runs), _Price(configs)
    targets = [all_logit_differences(model, run.fit)[0] if run.config.goal == "model" else None for run in runs]
    values = space.split(torch.stack([run.values for run in runs]))
    temperature = torch.tensor([[config.temperature] for config in configs])
    necessity = torch.tensor([config.necessity_coefficient for config in configs])
    with_complement = bool(necessity.any())
    history: list[list[dict[str, float]]] = [[] for _ in runs]
    with _frozen(model):
        for step in range(n_step):
            edits = {
                name: LearnedMask(tau, values[name], temperature=temperature, complement=with_complement)
                for name, tau in space.split(masks.tau()).items()
            }
            chosen = [next(b) for b in batches]
            pairs = Pairs.join([run.fit.take(index) for run, index in zip(runs, chosen, strict=True)])
            with replacing(model, edits):
                difference = logit_difference(model, pairs, n_run=1 + with_complement)
            difference = difference.unflatten(1, (len(runs), -1))  # (circuit and complement, run, pair, 2)
            losses = torch.stack(
                [
                    task_loss(given) if wanted is None else match_loss(given, wanted[index])
                    for given, wanted, index in zip(calibration(difference[0]), targets, chosen, strict=True)
                ]
            )
            objective = losses.sum()
            if with_complement:
                objective = objective + (necessity * information_left(difference[1])).sum()
            objective.backward()
            masks.step(step, price.now)
            calibration.step()
            price.follow(losses.detach())
            masks.remember(step, (losses.detach() <= price.target) & price.is_met())
            n_node = (masks.tau() >= 0).sum(1).tolist()
            columns = zip(losses.tolist(), n_node, price.now, calibration.scales(), strict=True)
            records = [
                {"step": step, "loss": loss, "n_node": n, "price": cost, "scale": scale}
                for loss, n, cost, scale in columns
            ]
            for kept, record in zip(history, records, strict=True):
                kept.append(record)
            on_step(step, records)
    return LearnedMasks(tau=masks.ranks(price.is_lost()), history=history)


class _Masks:
    """The parameters of all runs: their optimizer, each at its own rates, and what they were."""

    def __init__(self, space: NodeSpace, configs: list[PruneConfig], generators: list[torch.Generator]) -> None:
        self.configs = configs
        self.own = [_initial(space, config, g) for config, g in zip(configs, generators, strict=True)]
        self.owner = [_owner(space, config) for config in configs]
        self.excluded = torch.stack([_marked(space, config.exclude) for config in configs])
        groups = [
            {"params": [tau], "lr": config.lr, "betas": (0.9, config.beta2), "weight_decay": config.weight_decay}
            for tau, config in zip(self.own, configs, strict=True)
        ]
        self.adam = torch.optim.AdamW(groups, fused=True)
        self.last_good = self.tau().detach()
        self.last_kept = torch.zeros_like(self.last_good)

    def tau(self) -> Float[Tensor, "run node"]:
        """Return every node's parameter; gradients flow to the one that it is tied to."""
        return torch.stack([own[index] for own, index in zip(self.own, self.owner, strict=True)])

    def step(self, step: int, prices: list[float]) -> None:
        """Add the price of nodes to the gradients, and take a step."""
        for own, index, cost, config in zip(self.own, self.owner, prices, self.configs, strict=True):
            assert own.grad is not None
            slope = surrogate_derivative(own.detach(), config.temperature)
            own.grad += cost * slope * torch.bincount(index, minlength=len(own))
        for group, config in zip(self.adam.param_groups, self.configs, strict=True):
            group["lr"] = config.lr * _rate_at(step, config)
        self.adam.step()
        self.adam.zero_grad()
        with torch.no_grad():
            for own, out in zip(self.own, self.excluded, strict=True):
                own.clamp_(-1, 1).masked_fill_(out, -1)

    @torch.no_grad()
    def remember(self, step: int, is_good: Bool[Tensor, " run"]) -> None:
        """Note when each node was last kept, and the parameters of the runs that are at their target."""
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


class _Calibration:
    """Scale and shift of each run, learned along with the masks."""

    def __init__(self, runs: Sequence[MaskRun]) -> None:
        self.log_scale = torch.zeros(len(runs), requires_grad=True)
        self.shift = torch.zeros(len(runs), requires_grad=True)
        self.is_free = torch.tensor([run.config.calibrates and run.config.goal == "labels" for run in runs])
        self.may_shift = self.is_free & torch.tensor([run.may_shift for run in runs])
        self.adam = torch.optim.Adam([self.log_scale, self.shift], lr=CALIBRATION_RATE)

    def __call__(self, difference: Float[Tensor, "run pair 2"]) -> Float[Tensor, "run pair 2"]:
        return difference * self.log_scale.exp()[:, None, None] + self.shift[:, None, None]

    def step(self) -> None:
        self.adam.step()
        self.adam.zero_grad()
        with torch.no_grad():
            self.log_scale.clamp_(math.log(MIN_SCALE), math.log(MAX_SCALE)).mul_(self.is_free)
            self.shift.mul_(self.may_shift)

    def scales(self) -> list[float]:
        return self.log_scale.detach().exp().tolist()


class _Price:
    """Price of a node in each run: fixed, or a dual variable that drives the loss to the target."""

    def __init__(self, configs: list[PruneConfig]) -> None:
        self.target = torch.tensor([config.target_loss for config in configs])
        self.is_fixed = [config.count_coefficient is not None for config in configs]
        self.now = [PRICE_AT_START if c.count_coefficient is None else c.count_coefficient for c in configs]
        self.mean_loss = self.target  # as if it were met: what the loss was before anything is learned says nothing

    def follow(self, losses: Float[Tensor, " run"]) -> None:
        self.mean_loss = torch.lerp(losses, self.mean_loss, LOSS_MEMORY)
        for run, distance in enumerate((1 - self.mean_loss / self.target).clamp(-1, 1).tolist()):
            if not self.is_fixed[run]:
                self.now[run] *= math.exp(PRICE_RATE * distance)

    def is_met(self) -> Bool[Tensor, " run"]:
        return self.mean_loss <= self.target

    def is_lost(self) -> Bool[Tensor, " run"]:
        return (self.mean_loss > LOST * self.target) & ~torch.tensor(self.is_fixed)


def _initial(space: NodeSpace, config: PruneConfig, generator: torch.Generator) -> Float[Tensor, " node"]:
    noise = torch.randn(space.n_node, generator=generator)
    tau = (config.init_bias + config.init_noise * noise).clamp(-1, 1)
    return tau.masked_fill_(_marked(space, config.exclude), -1).requires_grad_()


def _marked(space: NodeSpace, names: Sequence[str]) -> Bool[Tensor, " node"]:
    marked = torch.zeros(space.n_node, dtype=torch.bool)
    marked[[space.index(name) for name in names]] = True
    return marked


def _owner(space: NodeSpace, config: PruneConfig) -> Int[Tensor, " node"]:
    """Return whose parameter decides each node: its own, or for a key channel that is tied the query's."""
    owner = torch.arange(space.n_node)
    if config.ties_query_and_key:
        parts = dict(space.slices())
        for name, part in parts.items():
            if name.endswith("attn.k"):
                owner[part] = owner[parts[name[:-1] + "q"]]
    return owner


@contextlib.contextmanager
def _frozen(model: Transformer) -> Iterator[None]:
    """Keep gradients away from the weights."""
    was_trainable = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, trainable in zip(model.parameters(), was_trainable, strict=True):
            parameter.requires_grad_(trainable)


def _rate_at(step: int, config: PruneConfig) -> float:
    warmup = config.warmup_frac * config.n_step
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (config.n_step - step) / (config.n_step - warmup)


def _endless_batches(pairs: Pairs, n_pair: int, generator: torch.Generator) -> Iterator[Int[Tensor, " chosen"]]:
    """Yield batches of alike length in random order, each pair once an epoch."""
    n_pair = min(n_pair, len(pairs))
    while True:
        shuffled = torch.randperm(len(pairs), generator=generator)
        by_length = shuffled[pairs.length[shuffled].argsort(stable=True)]
        n_batch = len(pairs) // n_pair
        for i in torch.randperm(n_batch, generator=generator).tolist():
            yield by_length[i * n_pair : (i + 1) * n_pair]
