"""From learned masks to a small circuit: a scan of sizes, then the elimination of needless nodes and edges."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.candidates import Evaluator
from sparse_circuits.edges import EdgeSpace, edges_between
from sparse_circuits.scoring import paired_auroc

GROUP_SIZES = (1024, 512, 256, 128, 96, 64, 48, 36, 27, 20, 15, 11, 8, 6, 4, 3, 2, 1)
"""How many items elimination tries to remove together."""

N_MEASURED = 128
"""Items that are left out in turn, those that matter least to first order; all others wait."""

HOPELESS = 0.05
"""Items whose removal, by what it does on a part of the split, would end this share of the target above it are judged
on the whole last."""

N_ERROR = 3.0
"""So are those that end this many standard errors of their effect above it: in a large circuit most items do little,
but surely something."""

SHUFFLE = 1.0
"""Noise on the ranking of removals in all orders but the first, in standard deviations of what is ranked, which are the
items that can go."""

N_RANKING_PAIR = 48
"""Pairs of the split that sizes and removals are tried on before the whole split decides."""

OnRound = Callable[[Bool[Tensor, " item"], dict[str, Any]], None]
"""What is called after each round of elimination: with the items left, and the record of the round."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """What a candidate circuit must reach."""

    evaluator: Evaluator
    """Measures candidates."""

    without: Evaluator
    """Measures the model without a candidate's nodes, whatever the goal and with all edges live."""

    target_loss: float
    """Most loss that a circuit may have, calibrated, in nats."""

    max_auroc: float
    """Most AUROC that the model may have without the circuit, in [0.5, 1]; 1 asks for nothing."""

    needed: Bool[Tensor, " node"]
    """Nodes that stay in the circuit whatever they do to its loss."""

    def removable(self, keep: Bool[Tensor, " item"]) -> Bool[Tensor, " item"]:
        """Mark the items that a candidate may lose; never its last node."""
        may_go, n_node = self.evaluator.removable(keep), len(self.needed)
        may_go[:n_node] &= ~self.needed & (keep[:n_node].sum() > 1)
        return may_go

    def judge(
        self, keep: Bool[Tensor, "run item"], *, base: Bool[Tensor, " item"] | None = None
    ) -> tuple[Float[Tensor, " run"], Bool[Tensor, " run"]]:
        """Return the candidates' losses, and which reach the goal.

        Args:
            keep: The candidates.
            base: A mask that they mostly agree with, and that reaches the goal.
        """
        losses = self.evaluator.losses(keep, base=base)
        passed = losses <= self.target_loss
        asked = passed.clone()
        if base is not None:  # a candidate with the same nodes leaves the same behind
            asked &= (keep != base)[:, : self.without.n_node].any(1)
        if self.max_auroc < 1 and asked.any():
            passed[asked] = self.auroc(keep[asked], base=base) <= self.max_auroc
        return losses, passed

    def auroc(
        self, keep: Bool[Tensor, "run item"], *, base: Bool[Tensor, " item"] | None = None
    ) -> Float[Tensor, " run"]:
        """Return the AUROC of the model without each candidate's nodes; whichever way round, so never below 0.5."""
        n_node = self.without.n_node
        auroc = paired_auroc(self.without.differences(~keep[:, :n_node], base=None if base is None else ~base[:n_node]))
        return torch.maximum(auroc, 1 - auroc).float()

    def on_part(self, n_pair: int = N_RANKING_PAIR) -> "Goal":
        """Return the same goal on some `n_pair` pairs."""
        return dataclasses.replace(self, evaluator=self.evaluator.on_part(n_pair), without=self.without.on_part(n_pair))

    def on_part_of(self, keep: Bool[Tensor, " item"]) -> "Goal":
        """Return the goal on a part, its target moved so that candidate and `keep` differ there by as much as they may.

        What a removal does to the loss is much alike on the part and on the whole; the losses themselves are not.
        """
        part = self.on_part()
        slack = self.target_loss - float(self.evaluator.losses(keep[None]))
        return dataclasses.replace(part, target_loss=slack + float(part.evaluator.losses(keep[None])))


def keep_top(tau: Float[Tensor, " node"], sizes: Int[Tensor, " size"]) -> Bool[Tensor, "size node"]:
    """Return the masks that keep the best-ranked nodes; ties go to the lower index."""
    rank = torch.empty(len(tau), dtype=torch.long)
    rank[tau.argsort(descending=True, stable=True)] = torch.arange(len(tau))
    return rank < sizes[:, None]


def scan_sizes(goal: Goal, tau: Float[Tensor, " node"]) -> tuple[Bool[Tensor, " node"] | None, list[dict[str, float]]]:
    """Find the smallest number of top-ranked nodes that reaches the goal; needed ones stand above all others.

    Neither loss nor AUROC is monotone in the size, so sizes are scanned on a geometric grid around the number of
    nodes that were learned, then on a finer one below the smallest that passed. Sizes that pass on a part of the split,
    its target moved by how much harder the learned nodes find it than the whole, are judged on the whole, from the
    smallest.

    Returns:
        The mask, or None if no size passes, and the curve: size and loss, on the part, of every size tried.
    """
    tau, n_least = tau.masked_fill(goal.needed, torch.inf), max(1, int(goal.needed.sum()))
    n_learned = max(int((tau >= 0).sum()), 8)
    grid = (n_learned * torch.logspace(-2, 3, 16, base=2)).round().long()
    grid = grid.clamp(n_least, int((tau > -torch.inf).sum())).unique()
    curve: list[dict[str, float]] = []
    best: Bool[Tensor, " node"] | None = None
    part = goal.on_part_of(keep_top(tau, torch.tensor([n_learned]))[0])
    for _ in range(2):
        keep = keep_top(tau, grid)
        losses, passed = part.judge(keep)
        curve += [{"n_node": int(n), "loss": float(x)} for n, x in zip(grid, losses, strict=True)]
        first = _first_to_pass(goal, keep, passed)
        if first is None:
            break
        best = keep[first]
        below = int(grid[first - 1]) if first else n_least - 1
        grid = torch.linspace(below + 1, int(grid[first]) - 1, 8).round().long().unique()
        grid = grid[(grid > below) & (grid < int(best.sum()))]
        if len(grid) == 0:
            break
    return best, sorted(curve, key=lambda point: point["n_node"])


def loss_at_sizes(evaluator: Evaluator, tau: Float[Tensor, " node"]) -> list[dict[str, float]]:
    """Return the loss of the best-ranked nodes at sizes of a geometric grid, two a doubling, up to all nodes."""
    sizes = torch.tensor([*(round(2 ** (i / 2)) for i in range(64) if 2 ** (i / 2) < len(tau)), len(tau)]).unique()
    losses = evaluator.losses(keep_top(tau, sizes))
    return [{"n_node": n, "loss": loss} for n, loss in zip(sizes.tolist(), losses.tolist(), strict=True)]


def _first_to_pass(goal: Goal, keep: Bool[Tensor, "run item"], likely: Bool[Tensor, " run"]) -> int | None:
    """Return the first candidate that reaches the goal among the likely ones."""
    for run in likely.nonzero().flatten().tolist():
        if goal.judge(keep[run][None])[1]:
            return run
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refined:
    """A circuit from which `refine` finds no single node or edge that can go."""

    keep: Bool[Tensor, " node"]
    """Its nodes."""

    edges: dict[str, Bool[Tensor, "target source"]]
    """Its edges, by linear map."""

    rounds: list[dict[str, Any]]
    """What was removed, round after round, and the loss after it."""

    effects: dict[str, float]
    """By node and edge: how much higher the loss that decides is without it, on a part of the split, in nats."""

    @property
    def n_node(self) -> int:
        """Nodes left."""
        return int(self.keep.sum())

    @property
    def n_edge(self) -> int:
        """Edges left."""
        return sum(int(mask.sum()) for mask in self.edges.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refining:
    """How far a refinement has come. What is left reaches the goal at any time."""

    stage: Literal["nodes", "edges", "alone"]
    """What is being removed: nodes in groups, edges in groups, or either alone."""

    nodes: Bool[Tensor, " node"]
    """Nodes that are left of the first stage; the edges are those between them."""

    items: Bool[Tensor, " item"]
    """Nodes, and from the second stage on edges, that are left."""

    rounds: list[dict[str, Any]]
    """What was removed so far."""


def refine(
    goal: Goal,
    keep: Bool[Tensor, " node"],
    *,
    cuts_edges: bool = True,
    order: int = 0,
    begun: Refining | None = None,
    on_round: Callable[[Refining], None] = lambda _: None,
) -> Refined:
    """Remove nodes, then edges, as long as what is left reaches the goal on the split.

    Nodes go in groups, then edges; at the end each node and edge that is left is tried alone, again and again, until a
    whole pass removes none. So the result is 1-minimal: without any one of them it misses the goal.

    Args:
        goal: What must be reached; its evaluator has no edges.
        keep: Nodes that reach it.
        cuts_edges: Whether edges are removed too.
        order: 0 removes the least missed first; any other number shuffles that ranking in its own way; see `SHUFFLE`.
        begun: Where an interrupted call with the same arguments stood. What is left is ranked anew then, so that the
            result may differ from that of a call that was not interrupted.
        on_round: Called after each round with what is left.

    Source: ours; the paper removed such leftovers by hand (footnote 9).
    """
    now = begun or Refining(stage="nodes", nodes=keep, items=keep, rounds=[])

    def note(left: Bool[Tensor, " item"], record: dict[str, Any]) -> None:
        nonlocal now
        nodes = left if now.stage == "nodes" else now.nodes
        now = dataclasses.replace(now, nodes=nodes, items=left, rounds=[*now.rounds, record])
        on_round(now)

    if now.stage == "nodes":
        eliminate(goal, now.nodes, torch.ones_like(keep), order=order, on_round=note)
    space = EdgeSpace.of(edges_between(goal.evaluator.model, now.nodes)) if cuts_edges else EdgeSpace({}, {})
    goal = dataclasses.replace(goal, evaluator=dataclasses.replace(goal.evaluator, edges=space))
    all_edges = torch.ones(space.n_edge, dtype=torch.bool)
    if now.stage == "nodes":
        now = dataclasses.replace(now, stage="edges", items=torch.cat((now.nodes, all_edges)))
    if now.stage == "edges":
        eliminate(goal, now.items, torch.cat((torch.zeros_like(keep), all_edges)), order=order, on_round=note)
        now = dataclasses.replace(now, stage="alone")
    items, losses = eliminate_alone(goal, now.items, on_round=note)
    left = items[: len(keep)]
    edges = edges_between(goal.evaluator.model, left)
    for name, mask in space.masks(items[len(keep) :]).items():
        edges[name] &= mask
    loss = float(goal.on_part().evaluator.losses(items[None]))
    effects = {name: without - loss for name, without in losses.items()}
    return Refined(keep=left, edges=edges, rounds=now.rounds, effects=effects)


def eliminate(
    goal: Goal,
    keep: Bool[Tensor, " item"],
    among: Bool[Tensor, " item"],
    *,
    order: int = 0,
    on_round: OnRound = lambda *_: None,
) -> Bool[Tensor, " item"]:
    """Remove items in groups.

    Items are left out in turn, on a part of the split, and ranked by how near that comes to the limits of loss and
    AUROC; where there are many, by first order. The largest group of the least missed that can go together goes, judged
    on the whole split, then the next along the same ranking; where no group can go, items are ranked anew. It ends when
    no group of a new ranking can go.

    Args:
        goal: What must be reached.
        keep: Items that reach it.
        among: Which may be removed.
        order: See `refine`.
        on_round: Called after each round.

    Returns:
        The items left.
    """
    generator = torch.Generator().manual_seed(order) if order else None
    while True:
        has_removed = False
        for loose in _rankings(goal.on_part_of(keep), keep, among, generator):
            loose = loose[keep[loose]]
            while (found := _largest_that_can_go(goal, keep, loose)) is not None:
                n_gone, loss = found
                keep, gone, loose = goal.evaluator.without(keep, loose[:n_gone]), loose[:n_gone], loose[n_gone:]
                has_removed = True
                on_round(keep, _record(goal, keep, gone, loss))
        if not has_removed:
            return keep


def eliminate_alone(
    goal: Goal, keep: Bool[Tensor, " item"], *, on_round: OnRound = lambda *_: None
) -> tuple[Bool[Tensor, " item"], dict[str, float]]:
    """Remove items that can go alone, judged on the whole split, until a pass over all of them finds none.

    Items are tried in parts, first those that matter least to first order. Of a part all go that can, in groups; then
    all are ranked anew. Items whose effect on a part of the split says that they can't go, see `HOPELESS` and
    `N_ERROR`, are judged on the whole at the end, when no other is left that can.

    Args:
        goal: What must be reached.
        keep: Items that reach it.
        on_round: Called after each removal.

    Returns:
        The items left, and by name of each the loss on the part without it.
    """
    evaluator = goal.evaluator
    while True:
        part = goal.on_part_of(keep)
        items = evaluator.removable(keep).nonzero().flatten()
        if len(items) > N_MEASURED:
            items = items[part.evaluator.estimated_effects(keep)[:, items].abs().mean(0).argsort(stable=True)]
        losses, found = torch.full((len(keep),), torch.nan), None
        unlikely: list[Tensor] = []
        for some in items.split(N_MEASURED):
            losses[some], likely, others = _as_the_part_says(goal, part, keep, some)
            unlikely.append(others)
            found = _those_that_can_go(goal, keep, likely)
            if found is not None:
                break
        if found is None and len(others := torch.cat(unlikely)):
            found = _those_that_can_go(goal, keep, _that_can_go_alone(goal, keep, others))
        if found is None:
            left = evaluator.removable(keep)
            return keep, dict(zip(evaluator.names(left), losses[left].tolist(), strict=True))
        gone, loss = found
        keep = evaluator.without(keep, gone)
        on_round(keep, _record(goal, keep, gone, loss))


def _as_the_part_says(
    goal: Goal, part: Goal, keep: Tensor, items: Int[Tensor, " some"]
) -> tuple[Float[Tensor, " some"], Int[Tensor, " likely"], Int[Tensor, " unlikely"]]:
    """Return the losses on the part without each item, and which may go by them and which not, least missed first."""
    own = part.evaluator.pair_losses(keep[None])[0]
    without = part.evaluator.pair_losses(part.evaluator.without_each(keep, items), base=keep)  # (some, pair)
    losses = without.mean(1)
    error = (without - own).std(1, correction=0) / len(own) ** 0.5
    margin = (N_ERROR * error).clamp(max=HOPELESS * goal.target_loss)
    order = losses.argsort(stable=True)
    may_go, is_likely = goal.removable(keep)[items[order]], (losses <= part.target_loss + margin)[order]
    return losses, items[order][may_go & is_likely], items[order][may_go & ~is_likely]


def _that_can_go_alone(goal: Goal, keep: Tensor, items: Int[Tensor, " item"]) -> Int[Tensor, " alone"]:
    """Return the items that can go alone, judged on the whole split, the least missed first."""
    losses, passed = goal.judge(goal.evaluator.without_each(keep, items), base=keep)
    order = losses.argsort(stable=True)
    return items[order][passed[order]]


def _those_that_can_go(
    goal: Goal, keep: Tensor, items: Int[Tensor, " item"]
) -> tuple[Int[Tensor, " gone"], float] | None:
    """Return items that can go together, and the loss then; None if not one of them can go alone.

    All are tried at once, on a part of the split and then on the whole; if they can't go, each quarter of them in the
    same way, without those before that went.
    """
    if len(items) == 0:
        return None
    left = goal.evaluator.without(keep, items)
    if len(items) == 1 or goal.on_part_of(keep).judge(left[None], base=keep)[1]:
        loss, passed = goal.judge(left[None], base=keep)
        if passed and left[: goal.evaluator.n_node].any():
            return items, float(loss)
        if len(items) == 1:
            return None
    gone, last = [], 0.0
    for quarter in items.split(-(-len(items) // 4)):
        quarter = quarter[goal.removable(keep)[quarter]]  # a node that went took its edges along
        found = _those_that_can_go(goal, keep, quarter)
        if found is not None:
            keep, last = goal.evaluator.without(keep, found[0]), found[1]
            gone.append(found[0])
    return (torch.cat(gone), last) if gone else None


def _rankings(
    part: Goal, keep: Tensor, among: Tensor, generator: torch.Generator | None
) -> list[Int[Tensor, " loose"]]:
    """Return the items that could each go alone on the part, the least missed first; for many edges in two orders.

    Of more than `N_MEASURED` nodes those that matter least to first order are measured, and the others wait. That many
    edges do so little each that first order alone ranks them: once those first that lower the loss by going, which
    makes room, and once those first that matter least to any prompt.
    """
    items = (part.removable(keep) & among).nonzero().flatten()
    if len(items) > N_MEASURED:
        effects = part.evaluator.estimated_effects(keep)[:, items]
        mean, magnitude = effects.mean(0), effects.abs().mean(0)
        if int(items.min()) >= part.evaluator.n_node:
            slack = part.target_loss - float(part.evaluator.losses(keep[None]))
            return [_ranked(items, missed, mean <= slack, generator) for missed in (mean, magnitude)]
        items = items[magnitude.argsort(stable=True)[:N_MEASURED]]
    if len(items) == 0:
        return [items]
    without = part.evaluator.without_each(keep, items)
    loss_share = part.evaluator.losses(without, base=keep) / part.target_loss
    auroc_share = torch.zeros_like(loss_share)
    likely = loss_share <= 1
    if part.max_auroc < 1 and likely.any() and int(items.min()) < part.evaluator.n_node:
        auroc_share[likely] = part.auroc(without[likely], base=keep) / part.max_auroc
    return [_ranked(items, loss_share + auroc_share, likely & (auroc_share <= 1), generator)]


def _ranked(
    items: Int[Tensor, " item"],
    missed: Float[Tensor, " item"],
    is_loose: Bool[Tensor, " item"],
    generator: torch.Generator | None,
) -> Int[Tensor, " loose"]:
    """Return the loose items from the least missed, the ranking shuffled by a generator if there is one."""
    items, missed = items[is_loose], missed[is_loose]
    if generator is not None and len(items):
        missed = missed + SHUFFLE * missed.std(correction=0) * torch.randn(len(missed), generator=generator)
    return items[missed.argsort(stable=True)]


def _largest_that_can_go(goal: Goal, keep: Tensor, loose: Int[Tensor, " loose"]) -> tuple[int, float] | None:
    """Return how many of the first loose items can go together, and the loss then; None if there is no such group."""
    sizes = [n for n in GROUP_SIZES if n <= len(loose)]
    if not sizes:
        return None
    candidates = torch.stack([goal.evaluator.without(keep, loose[:n]) for n in sizes])
    for i in goal.on_part_of(keep).judge(candidates, base=keep)[1].nonzero().flatten().tolist():
        loss, passed = goal.judge(candidates[i][None], base=keep)
        if passed and candidates[i][: goal.evaluator.n_node].any():
            return sizes[i], float(loss)
    return None


def _record(goal: Goal, keep: Tensor, gone: Int[Tensor, " gone"], loss: float) -> dict[str, Any]:
    n_node = goal.evaluator.n_node
    left = goal.evaluator.removable(keep)
    return {
        "removed": goal.evaluator.names(torch.zeros_like(keep).index_fill(0, gone, True)),
        "n_node": int(left[:n_node].sum()),
        "n_edge": int(left[n_node:].sum()) if goal.evaluator.edges.n_edge else None,
        "loss": loss,
    }
