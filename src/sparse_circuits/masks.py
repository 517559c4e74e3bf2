"""Learning which nodes to keep: step masks with a sigmoid's derivative, many runs side by side."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.configs import PruneConfig
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import CHANCE, logit_difference, task_loss
from sparse_circuits.taps import replacing
from sparse_circuits.tasks.pairs import Pairs


class _StepMask(torch.autograd.Function):
    """`where(keep, x, value)` with keep = tau >= 0; with `complement` a second half of the runs keeps the others.

    tau's gradient is what the mask's would be, times the sigmoid's derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: Tensor, value: Tensor, temperature: float, complement: bool) -> Tensor:
        keep = _kept(tau, complement)  # (run, channel)
        runs = x.unflatten(0, (len(keep), -1))  # (run, batch, pos, channel)
        ctx.save_for_backward(x, tau, value)
        ctx.temperature, ctx.complement = temperature, complement
        offset = torch.where(keep, 0.0, value)[:, None, None]
        return torch.addcmul(offset, runs, keep.to(x.dtype)[:, None, None]).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        x, tau, value = ctx.saved_tensors
        keep = _kept(tau, ctx.complement)
        grad = grads[0].unflatten(0, (len(keep), -1)).flatten(1, 2)  # (run, batch · pos, channel)
        runs = x.unflatten(0, (len(keep), -1)).flatten(1, 2)
        by_mask = (grad * (runs - value)).sum(1)  # (run, channel)
        if ctx.complement:
            by_mask = by_mask[: len(tau)] - by_mask[len(tau) :]
        grad_tau = by_mask * surrogate_derivative(tau, ctx.temperature)
        grad_x = (grad * keep[:, None]).view_as(x) if ctx.needs_input_grad[0] else None
        return grad_x, grad_tau, None, None, None


def _kept(tau: Tensor, complement: bool) -> Tensor:
    return torch.cat((tau >= 0, tau < 0)) if complement else tau >= 0


def surrogate_derivative(tau: Float[Tensor, "..."], temperature: float) -> Float[Tensor, "..."]:
    """Return the derivative of sigmoid(tau / temperature), which stands in for the step's."""
    s = torch.sigmoid(tau / temperature)
    return s * (1 - s) / temperature


def information_left(difference: Float[Tensor, "run pair 2"]) -> Float[Tensor, " run"]:
    """Return how far the answers of a pair's two sides are apart, whichever way round, in nats; 0 is not at all.

    With d half the difference of the two sides' logit differences, it is (softplus(d) + softplus(−d)) / 2 − ln 2.
    Flipped answers count as much as right ones, so a minimum has no information rather than wrong information.

    Source: ours; the paper prunes for sufficiency alone.
    """
    d = (difference[..., 0] - difference[..., 1]) / 2
    return ((F.softplus(d) + F.softplus(-d)) / 2 - CHANCE).mean(-1)


class LearnedMask:
    """The edit of one location while its mask is learned."""

    acts_at_each_position = True

    def __init__(
        self,
        tau: Float[Tensor, "run channel"],
        value: Float[Tensor, " channel"],
        *,
        temperature: float,
        complement: bool,
    ) -> None:
        self.tau, self.value, self.temperature, self.complement = tau, value, temperature, complement

    def __call__(self, x: Float[Tensor, "batch pos channel"]) -> Float[Tensor, "batch pos channel"]:
        """Apply the masks."""
        return _StepMask.apply(x, self.tau, self.value, self.temperature, self.complement)  # pyright: ignore


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedMasks:
    """What mask learning found."""

    tau: Float[Tensor, "run node"]
    """Parameter of each node in [−1, 1]; kept from 0 on, and ranked by it."""

    history: list[dict[str, float]]
    """Mean loss and number of nodes by step."""

    @property
    def keep(self) -> Bool[Tensor, "run node"]:
        """Nodes that each run keeps."""
        return self.tau >= 0


def learn_masks(
    model: Transformer,
    fit: Pairs,
    values: Float[Tensor, " node"],
    config: PruneConfig,
    *,
    on_step: Callable[[int, dict[str, float]], None] = lambda *_: None,
) -> LearnedMasks:
    """Minimise task loss + count_coefficient · nodes over the nodes to keep.

    Args:
        model: Its weights stay as they are.
        fit: Prompts to learn on.
        values: What a removed node is set to.
        config: Rates, price and number of runs; run r has the seed `config.seed + r`.
        on_step: Called with each step and its record.

    Source: paper section 2.2 and appendix A.2: AdamW on clamped parameters, rates rise over 5 % and fall linearly.
    """
    space = NodeSpace.of(model.config)
    generators = [torch.Generator().manual_seed(config.seed + run) for run in range(config.n_run)]
    noise = torch.stack([torch.randn(space.n_node, generator=g) for g in generators])
    tau = (config.init_bias + config.init_noise * noise).clamp(-1, 1).requires_grad_()
    adam = torch.optim.AdamW(
        [tau], lr=config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True
    )
    batches = [_endless_batches(fit, config.n_pair, g) for g in generators]
    with_complement = config.necessity_coefficient > 0
    history = []
    was_trainable = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    try:
        for step in range(config.n_step):
            adam.param_groups[0]["lr"] = config.lr * _rate_at(step, config)
            parts = space.split(tau)
            split_values = space.split(values)
            edits = {
                name: LearnedMask(
                    parts[name], split_values[name], temperature=config.temperature, complement=with_complement
                )
                for name in space.widths
            }
            pairs = Pairs.join([fit.take(next(b)) for b in batches])
            with replacing(model, edits):
                difference = logit_difference(model, pairs, n_run=1 + with_complement)
            difference = difference.unflatten(1, (config.n_run, -1))  # (circuit and complement, run, pair, 2)
            losses = task_loss(difference[0])  # (run,)
            objective = losses.sum()
            if with_complement:
                left = information_left(difference[1])
                objective = objective + config.necessity_coefficient * left.sum()
            objective.backward()
            assert tau.grad is not None
            tau.grad += config.count_coefficient * surrogate_derivative(tau.detach(), config.temperature)
            adam.step()
            adam.zero_grad()
            with torch.no_grad():
                tau.clamp_(-1, 1)
            record = {
                "loss": float(losses.detach().mean()),
                "n_node": float((tau.detach() >= 0).sum()) / config.n_run,
            }
            history.append({"step": step, **record})
            on_step(step, record)
    finally:
        for parameter, trainable in zip(model.parameters(), was_trainable, strict=True):
            parameter.requires_grad_(trainable)
    return LearnedMasks(tau=tau.detach(), history=history)


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
