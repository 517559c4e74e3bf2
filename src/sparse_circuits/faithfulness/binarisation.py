"""Would two values for each node do? Nodes replaced by a step, learned with a temperature that falls."""

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_circuits.faithfulness.intervals import A_LOSS, Estimate, estimate
from sparse_circuits.faithfulness.subject import Subject
from sparse_circuits.scoring import calibrated, fit_calibrations, logit_difference, pair_loss, task_loss
from sparse_circuits.taps import reading, replacing
from sparse_circuits.tasks.pairs import Pairs

N_PAIR = 16
"""Pairs of `fit` a step."""

RATE = 0.02
"""Adam's rate, in standard deviations of a node."""

CONSTANT = 1e-5
"""A node whose standard deviation over the prompts' tokens is at most this does not vary."""

FIRST, LAST = 0.5, 0.02
"""Temperature at the start and at the end, in standard deviations of a node; it falls geometrically."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binarisation:
    """The circuit with each node that varies replaced by a step between two values.

    A loss that stays low shows that one bit a node and token is enough to do the task, so that each node can be
    described as on or off. A loss that rises is no fault of the circuit: a node may carry a quantity.
    """

    loss: Estimate
    """Task loss on `test` with hard steps, calibrated on `select`, nats."""

    loss_before: Estimate
    """The circuit itself on the same pairs, calibrated the same way."""

    n_step_node: int
    """Nodes replaced by a step."""

    n_constant: int
    """Nodes of the circuit that do not vary on the task, left as they are."""

    share_binary: float
    """Share of the replaced nodes' variance in the circuit, node by node and averaged, that the two values explain."""


class _Steps:
    """The edit low + (high − low) · s((x − threshold) / temperature) of some channels; s a sigmoid, or a step at 0."""

    acts_at_each_position = True

    def __init__(
        self,
        chosen: Bool[Tensor, " channel"],
        parameters: Float[Tensor, "3 chosen"],
        width: Float[Tensor, " chosen"],
        temperature: float,
    ) -> None:
        self.chosen, self.parameters, self.width, self.temperature = chosen, parameters, width, temperature

    def __call__(self, x: Float[Tensor, "batch pos channel"]) -> Float[Tensor, "batch pos channel"]:
        threshold, low, high = self.parameters * self.width
        above = (x[..., self.chosen] - threshold) / self.width
        gate = torch.sigmoid(above / self.temperature) if self.temperature else (above >= 0).to(x.dtype)
        out = x.clone()
        out[..., self.chosen] = low + (high - low) * gate
        return out


class _Binary:
    """The steps of all nodes that vary: their parameters, and the edits that put them in force."""

    def __init__(self, subject: Subject) -> None:
        circuit = subject.circuit
        found, pull = _values_and_pull(subject)  # (token, node of the circuit) each
        width = found.std(0, correction=0)
        varies = width > CONSTANT
        chosen = torch.zeros_like(circuit.keep)
        chosen[circuit.keep.nonzero().flatten()[varies]] = True
        self.splits = [two_groups(found[:, i], pull[:, i]) for i in varies.nonzero().flatten().tolist()]
        self.places = circuit.space.split(chosen)
        self.width = width[varies]
        starts = torch.tensor([split[:3] for split in self.splits]).reshape(-1, 3).T  # (threshold low high, node)
        self.parameters = (starts / self.width).requires_grad_()

    def edits(self, temperature: float) -> dict[str, _Steps]:
        """Return the steps at a temperature in standard deviations; 0 for hard ones."""
        found, start = {}, 0
        for name, part in self.places.items():
            stop = start + int(part.sum())
            if stop > start:
                found[name] = _Steps(part, self.parameters[:, start:stop], self.width[start:stop], temperature)
            start = stop
        return found


def binarisation(subject: Subject, *, n_step: int, seed: int = 0) -> Binarisation:
    """Learn thresholds and values on `fit`, then harden the steps.

    Each node's threshold and values start from the split of its activations on `select` into two groups that leaves the
    least variance within them, tokens weighted by how much the logit difference depends on the node there. They are
    learned together by Adam on the task loss of differences that are calibrated batch by batch.

    Source: paper appendix C replaces nodes by a step between two values with a temperature annealed to 0. Start,
    schedule and rates are ours.
    """
    circuit, steps = subject.circuit, _Binary(subject)
    before = estimate(
        pair_loss(subject.under(lambda tokens, at: circuit.applied())), subject.test.templates, within=A_LOSS
    )
    n_step_node = len(steps.splits)
    if n_step_node == 0:
        counts = {"n_step_node": 0, "n_constant": circuit.n_node}
        return Binarisation(loss=before, loss_before=before, share_binary=1.0, **counts)
    adam = torch.optim.Adam([steps.parameters], lr=RATE)
    batches = _batches(subject.task.split("fit"), torch.Generator().manual_seed(seed))
    for step in range(n_step):
        temperature = FIRST * (LAST / FIRST) ** (step / max(n_step - 1, 1))
        with circuit.applied(), replacing(circuit.model, steps.edits(temperature)):
            difference = logit_difference(circuit.model, next(batches))
        fitted = fit_calibrations(difference.detach(), may_shift=subject.may_shift)
        loss = task_loss(calibrated(difference, fitted)).sum()
        (steps.parameters.grad,) = torch.autograd.grad(loss, steps.parameters)
        adam.step()

    @contextlib.contextmanager
    def hard(tokens: Tensor, at: Tensor) -> Iterator[None]:
        with circuit.applied(), replacing(circuit.model, steps.edits(0.0)):
            yield

    return Binarisation(
        loss=subject.loss_under(hard),
        loss_before=before,
        n_step_node=n_step_node,
        n_constant=circuit.n_node - n_step_node,
        share_binary=sum(split[3] for split in steps.splits) / n_step_node,
    )


def two_groups(
    x: Float[Tensor, " token"], weight: Float[Tensor, " token"] | None = None
) -> tuple[float, float, float, float]:
    """Split values into two groups of least variance within.

    Args:
        x: Two different values at least.
        weight: How much each counts, positive; one each if left out.

    Returns:
        Threshold, mean of the lower and of the upper group, share of the variance between them. The threshold lies
        in the middle of the two values that it separates.
    """
    order = x.argsort()
    values = x[order].double()
    weights = torch.ones_like(values) if weight is None else weight[order].double()
    weights = weights / weights.sum()
    mean = (weights * values).sum()
    below, sums = weights.cumsum(0)[:-1], (weights * values).cumsum(0)[:-1]
    between = (sums - below * mean).square() / (below * (1 - below)).clamp(min=1e-12)
    best = int(between.masked_fill(values[1:] == values[:-1], -1.0).argmax())
    low, high = float(sums[best] / below[best]), float((mean - sums[best]) / (1 - below[best]))
    spread = float((weights * (values - mean).square()).sum())
    return float(values[best] + values[best + 1]) / 2, low, high, min(float(between[best]) / spread, 1.0)


def _values_and_pull(subject: Subject) -> tuple[Float[Tensor, "token chosen"], Float[Tensor, "token chosen"]]:
    """Return the circuit's activations at each token of `select`, and how much the logit difference depends on each."""
    circuit, space = subject.circuit, subject.circuit.space
    model, chosen, found, pulls = circuit.model, space.split(circuit.keep), [], []
    for part in subject.select.batches(64):
        tokens, at = part.tokens.flatten(0, 1), (part.length - 1).repeat_interleave(2)
        is_prompt = torch.arange(tokens.shape[1]) <= at[:, None]
        with circuit.applied(), reading(model, *space.widths) as seen:
            x = model.run(model.embed(tokens).detach().requires_grad_())
        logits = model.unembed(x, tokens, at=at, vocab=part.answers.repeat_interleave(2, 0))[:, 0]
        names = [name for name, keep in chosen.items() if keep.any()]
        grads = torch.autograd.grad(
            (logits[:, 0] - logits[:, 1]).sum(), [seen[name] for name in names], allow_unused=True
        )
        found.append(torch.cat([seen[name].detach()[is_prompt][:, chosen[name]] for name in names], 1))
        whole = [torch.zeros_like(seen[name]) if g is None else g for name, g in zip(names, grads, strict=True)]
        pulls.append(torch.cat([g[is_prompt][:, chosen[n]].abs() for n, g in zip(names, whole, strict=True)], 1))
    pull = torch.cat(pulls)
    return torch.cat(found), pull + 1e-3 * pull.mean(0) + 1e-12  # no token counts for nothing


def _batches(pairs: Pairs, generator: torch.Generator) -> Iterator[Pairs]:
    while True:
        yield pairs.take(torch.randint(len(pairs), (min(N_PAIR, len(pairs)),), generator=generator))
