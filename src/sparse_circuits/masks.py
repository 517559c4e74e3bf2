"""Learning which nodes to keep: step masks with a sigmoid's derivative, many runs side by side."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.errors import ConfigError
from sparse_circuits.mask_runs import LearnedCalibration, MaskParameters, MaskRun, Price, step_gates
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import CHANCE, all_logit_differences, logit_difference, match_loss, task_loss
from sparse_circuits.sparse_products import sparse_products
from sparse_circuits.taps import Gate, replacing
from sparse_circuits.tasks.pairs import Pairs

PROMOTION = 10.0
"""What differences are multiplied with before they count as information."""

N_TOKEN_AT_ONCE = 16384
"""Tokens of prompts in one pass, as if both sides of a pair were whole. More were no faster, half as many took 6 %
longer (eight runs of 16 pairs of 64 tokens)."""


Stops = Callable[[int, list[dict[str, float]]], bool]
"""Takes a run's number and its history so far, says whether to give it up."""


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedMasks:
    """What mask learning found."""

    tau: Float[Tensor, "run node"]
    """Rank of each node: its parameter in [0, 1] if it is kept, else in [−2, −1], the higher the longer it was kept, as
    the parameters of dropped nodes all end at the same bound. −∞ for nodes that are excluded."""

    history: list[list[dict[str, float]]]
    """For each run, by step: the loss on its pairs and the nodes that it was measured with, price and scale."""

    @property
    def keep(self) -> Bool[Tensor, "run node"]:
        """Nodes that each run keeps."""
        return self.tau >= 0


def learn_masks(
    model: Transformer,
    runs: Sequence[MaskRun],
    *,
    memory: int = 2 << 30,
    on_step: Callable[[int, list[dict[str, float]]], None] = lambda *_: None,
    stops: Stops = lambda *_: False,
) -> LearnedMasks:
    """Learn the nodes to keep, in one pass over the shared weights as many runs as fit into memory and save time.

    Args:
        model: Its weights stay as they are.
        runs: Those that go together agree in n_step and n_pair; all else is each run's own, its random numbers too.
        memory: Bytes that the activations of one pass may take, an estimate; one run goes in any case.
        on_step: Called with each step and the record of every run that is under way.
        stops: Asked after each step of each run whether to give it up: its ranks say nothing then, its history ends.

    Raises:
        ConfigError: Runs differ in n_step or n_pair.
    """
    by_memory = memory // max(bytes_of_run(model, run) for run in runs)
    at_once = max(1, min(by_memory, N_TOKEN_AT_ONCE // max(tokens_of_run(run) for run in runs)))
    learned = [
        _learn_together(
            model, runs[first : first + at_once], on_step, lambda run, history, first=first: stops(first + run, history)
        )
        for first in range(0, len(runs), at_once)
    ]
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
    model: Transformer,
    runs: Sequence[MaskRun],
    on_step: Callable[[int, list[dict[str, float]]], None],
    stops: Stops,
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
    if len(found := {min(n_pair, len(run.fit)) for run in runs}) > 1:
        raise ConfigError(
            f"runs that are learned together need as many pairs a step, found {' and '.join(map(str, sorted(found)))}: "
            "the fit split of one has fewer; lower n_pair"
        )
    generators = [torch.Generator().manual_seed(config.seed) for config in configs]
    masks = MaskParameters(space, configs, generators)
    batches = [_endless_batches(run.fit, n_pair, g) for run, g in zip(runs, generators, strict=True)]
    calibration, price = LearnedCalibration(runs), Price(configs)
    targets = [all_logit_differences(model, run.fit)[0] if run.config.goal == "model" else None for run in runs]
    necessity = torch.tensor([config.necessity_coefficient for config in configs])
    with_complement = bool(necessity.any())
    values = torch.stack([run.values for run in runs])
    history: list[list[dict[str, float]]] = [[] for _ in runs]
    going = list(range(len(runs)))
    with _frozen(model), sparse_products(model, min_size=0):
        for step in range(n_step):
            tau, temperature = masks.tau()[going], masks.temperature[going]
            gates = space.split(step_gates(tau, temperature=temperature, complement=with_complement))
            ablated = space.split(values[going].repeat(1 + with_complement, 1))
            chosen = [next(batches[run]) for run in going]
            pairs = Pairs.join([runs[run].fit.take(index) for run, index in zip(going, chosen, strict=True)])
            with replacing(model, {name: Gate(gate, ablated[name]) for name, gate in gates.items()}):
                difference = logit_difference(model, pairs, n_run=1 + with_complement, n_group=len(going))
            difference = difference.unflatten(1, (len(going), -1))  # (circuit and complement, run, pair, 2)
            losses = _losses(calibration(difference[0], going), [targets[run] for run in going], chosen)
            objective = losses.sum()
            if with_complement:
                objective = objective + (necessity[going] * information_left(difference[1])).sum()
            objective.backward()
            n_node, paid = (masks.tau() >= 0).sum(1).tolist(), list(price.now)
            loss_of_each = price.target.clone()  # for a run that was given up nothing changes any more
            loss_of_each[going] = losses.detach()
            price.follow(loss_of_each)
            masks.remember(step, (loss_of_each <= price.target) & price.is_met())
            masks.step(step, paid)
            calibration.step()
            scales = calibration.scales()
            for run in going:
                record = {"loss": float(loss_of_each[run]), "n_node": n_node[run], "price": price.now[run]}
                history[run].append({"step": step, **record, "scale": scales[run]})
            on_step(step, [history[run][-1] for run in going])
            going = [run for run in going if not stops(run, history[run])]
            if not going:
                break
    return LearnedMasks(tau=masks.ranks(price.is_lost()), history=history)


def _losses(
    given: Float[Tensor, "run pair 2"], targets: Sequence[Tensor | None], chosen: Sequence[Int[Tensor, " pair"]]
) -> Float[Tensor, " run"]:
    """Return each run's task loss, or against its targets on the chosen pairs the loss that its goal asks for."""
    if all(wanted is None for wanted in targets):
        return task_loss(given)
    each = zip(given, targets, chosen, strict=True)
    return torch.stack([task_loss(d) if wanted is None else match_loss(d, wanted[index]) for d, wanted, index in each])


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


def _endless_batches(pairs: Pairs, n_pair: int, generator: torch.Generator) -> Iterator[Int[Tensor, " chosen"]]:
    """Yield batches of alike length in random order; what fills no batch of an epoch is drawn anew each time."""
    n_pair = min(n_pair, len(pairs))
    n_batch = len(pairs) // n_pair
    while True:
        shuffled = torch.randperm(len(pairs), generator=generator)[: n_batch * n_pair]
        by_length = shuffled[pairs.length[shuffled].argsort(stable=True)]
        for i in torch.randperm(n_batch, generator=generator).tolist():
            yield by_length[i * n_pair : (i + 1) * n_pair]
