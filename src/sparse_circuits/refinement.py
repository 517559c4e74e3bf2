"""From learned masks to a small circuit: a scan of sizes, calibration, elimination of leftovers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import calibrated, fit_calibrations, logit_difference, paired_auroc, task_loss
from sparse_circuits.taps import replacing
from sparse_circuits.tasks.pairs import Pairs

WORTH_TRYING = 1.5
"""Nodes whose removal costs more than this share of the target loss, on a part of the split, are not tried again."""

N_SIDE_BY_SIDE = 8
"""Masks that are evaluated in one pass."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Losses of many candidate circuits on one split, calibrated for each."""

    model: Transformer
    """The model."""

    pairs: Pairs
    """The split."""

    values: Float[Tensor, " node"]
    """What removed nodes are set to."""

    may_shift: bool
    """Whether the calibration has a shift."""

    @torch.no_grad()
    def differences(self, keep: Bool[Tensor, "run node"]) -> Float[Tensor, "run pair 2"]:
        """Return the uncalibrated logit differences of each candidate."""
        space = NodeSpace.of(self.model.config)
        out = torch.empty(len(keep), len(self.pairs), 2)
        for runs in torch.arange(len(keep)).split(N_SIDE_BY_SIDE):
            with replacing(self.model, space.masks(keep[runs], self.values)):
                n_pair = max(1, 256 // len(runs))
                for index in self.pairs.length.argsort(descending=True, stable=True).split(n_pair):
                    part = logit_difference(self.model, self.pairs.take(index), n_run=len(runs))
                    out[runs[:, None], index] = part
        return out

    def losses(self, keep: Bool[Tensor, "run node"]) -> Float[Tensor, " run"]:
        """Return each candidate's task loss after its own calibration, in nats."""
        difference = self.differences(keep)
        fitted = fit_calibrations(difference, may_shift=self.may_shift)
        return task_loss(calibrated(difference, fitted))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """What a candidate circuit must reach on `select`."""

    evaluator: Evaluator
    """Measures candidates."""

    target_loss: float
    """Most loss that a circuit may have, calibrated, in nats."""

    max_auroc: float
    """Most AUROC that the model may have without the circuit, in [0.5, 1]; 1 asks for nothing."""

    def judge(self, keep: Bool[Tensor, "run node"]) -> tuple[Float[Tensor, " run"], Bool[Tensor, " run"]]:
        """Return the candidates' losses, and which reach the goal."""
        losses = self.evaluator.losses(keep)
        passed = losses <= self.target_loss
        if self.max_auroc < 1 and passed.any():
            passed[passed.clone()] = self.auroc(keep[passed]) <= self.max_auroc
        return losses, passed

    def auroc(self, keep: Bool[Tensor, "run node"]) -> Float[Tensor, " run"]:
        """Return the AUROC of the model without each candidate; whichever way round, so never below 0.5."""
        auroc = paired_auroc(self.evaluator.differences(~keep))
        return torch.maximum(auroc, 1 - auroc)


def keep_top(tau: Float[Tensor, " node"], sizes: Int[Tensor, " size"]) -> Bool[Tensor, "size node"]:
    """Return the masks that keep the best-ranked nodes; ties go to the lower index."""
    rank = torch.empty(len(tau), dtype=torch.long)
    rank[tau.argsort(descending=True, stable=True)] = torch.arange(len(tau))
    return rank < sizes[:, None]


def scan_sizes(goal: Goal, tau: Float[Tensor, " node"]) -> tuple[Bool[Tensor, " node"] | None, list[dict[str, float]]]:
    """Find the smallest number of top-ranked nodes that reaches the goal.

    Neither loss nor AUROC is monotone in the size, so sizes are scanned on a geometric grid around the number of
    nodes that were learned, then on a finer one below the smallest that passed.

    Returns:
        The mask, or None if no size passes, and the curve: size and loss of every size tried.
    """
    n_learned = max(int((tau >= 0).sum()), 8)
    grid = (n_learned * torch.logspace(-2, 1, 13, base=2)).round().long().clamp(1, len(tau)).unique()
    curve: list[dict[str, float]] = []
    best: Bool[Tensor, " node"] | None = None
    for _ in range(2):
        keep = keep_top(tau, grid)
        losses, passed = goal.judge(keep)
        curve += [{"n_node": int(n), "loss": float(x)} for n, x in zip(grid, losses, strict=True)]
        if not passed.any():
            break
        first = int(passed.nonzero()[0])
        best = keep[first]
        below = int(grid[first - 1]) if first else 0
        grid = torch.linspace(below + 1, int(grid[first]) - 1, 8).round().long().unique()
        grid = grid[(grid > below) & (grid < int(best.sum()))]
        if len(grid) == 0:
            break
    return best, sorted(curve, key=lambda point: point["n_node"])


def eliminate(
    goal: Goal,
    keep: Bool[Tensor, " node"],
    *,
    n_ranking_pair: int = 48,
    on_round: Callable[[dict[str, Any]], None] = lambda _: None,
) -> tuple[Bool[Tensor, " node"], list[dict[str, Any]]]:
    """Remove nodes in batches as long as what is left reaches the goal.

    Each round leaves out every kept node in turn, on a part of the split, and ranks the nodes by how near that comes
    to the limits of loss and AUROC. As many of the least missed as can go together are dropped, judged on the whole
    split; if no two can, nodes are tried alone. It ends when no node can go whose loss on the part was at most
    `WORTH_TRYING` times the target.

    Args:
        goal: What must be reached.
        keep: A circuit that reaches it.
        n_ranking_pair: Pairs that the ranking looks at.
        on_round: Called with the record of each round.

    Returns:
        The nodes left, and the rounds.

    Source: ours; the paper removed such leftovers by hand (footnote 9).
    """
    pairs = goal.evaluator.pairs
    part = pairs.take(torch.arange(0, len(pairs), max(1, len(pairs) // n_ranking_pair)))
    ranking = dataclasses.replace(goal, evaluator=dataclasses.replace(goal.evaluator, pairs=part))
    rounds: list[dict[str, Any]] = []
    while keep.sum() > 1:
        without = without_each(keep)
        loss_share = ranking.evaluator.losses(without) / goal.target_loss
        auroc_share = ranking.auroc(without) / goal.max_auroc if goal.max_auroc < 1 else torch.zeros_like(loss_share)
        rank = (loss_share + auroc_share).argsort(stable=True)
        order = keep.nonzero().flatten()[rank]
        n_loose = int(((loss_share <= 1) & (auroc_share <= 1)).sum())
        counts = [n for n in (64, 48, 36, 27, 20, 15, 11, 8, 6, 4, 3, 2) if n <= n_loose]
        together = [order[:count] for count in counts]
        alone = [node[None] for node in order[loss_share[rank] <= WORTH_TRYING]]
        found = _first_that_can_go(goal, keep, together) or _first_that_can_go(goal, keep, alone)
        if found is None:
            break
        left, loss = found
        names = NodeSpace.of(goal.evaluator.model.config).names(keep & ~left)
        keep = left
        rounds.append({"removed": names, "n_node": int(keep.sum()), "loss": loss})
        on_round(rounds[-1])
    return keep, rounds


def without_each(keep: Bool[Tensor, " node"]) -> Bool[Tensor, "kept node"]:
    """Return the circuits that lack one node each, in the nodes' order."""
    kept = keep.nonzero().flatten()
    without = keep.repeat(len(kept), 1)
    without[torch.arange(len(kept)), kept] = False
    return without


def _first_that_can_go(
    goal: Goal, keep: Bool[Tensor, " node"], groups: list[Int[Tensor, " gone"]]
) -> tuple[Bool[Tensor, " node"], float] | None:
    """Return the circuit without the first group that it can do without, and its loss; None if there is none."""
    for start in range(0, len(groups), N_SIDE_BY_SIDE):
        candidates = torch.stack([keep.index_fill(0, group, False) for group in groups[start : start + N_SIDE_BY_SIDE]])
        losses, passed = goal.judge(candidates)
        if passed.any():
            first = int(passed.nonzero()[0])
            return candidates[first], float(losses[first])
    return None
