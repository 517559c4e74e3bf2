"""Does the model need the circuit? The full model with the circuit's nodes at their ablation values."""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_circuits.candidates import Evaluator
from sparse_circuits.circuit import Circuit
from sparse_circuits.edges import EDGE_ENDS
from sparse_circuits.faithfulness.intervals import A_LOSS, Estimate, estimate
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import (
    Calibration,
    all_logit_differences,
    calibrated,
    fit_calibration,
    fit_calibrations,
    pair_loss,
    paired_auroc,
    task_loss,
)
from sparse_circuits.taps import reading, replacing
from sparse_circuits.tasks.pairs import Pairs

N_SET = 200
"""Random sets."""

N_SET_PAIR = 48
"""Pairs that each random set is refitted and measured on."""

N_AGAIN = 40
"""Random sets that are measured again: so many with the highest losses, and so many that were drawn first."""

N_AGAIN_PAIR = 256
"""Pairs that they are refitted on, and as many that they are then measured on."""

N_NEAREST = 10
"""A random set's node is drawn from this many of nearest activity at the same location."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Necessity:
    """The full model without the circuit.

    A loss near ln 2 and an AUROC near 0.5 after refitting mean that the information is gone: the circuit is
    necessary under this ablation. Both must be read beside the random sets.
    """

    loss: Estimate
    """Task loss in nats after scale (> 0) and shift were refitted on `select`."""

    loss_before_refit: float
    """Task loss of the logits as they come."""

    auroc: float
    """How often the difference ranks side 0 of a pair above its side 1; 0.5 is no information."""

    calibration: Calibration
    """What was refitted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSets:
    """The full model without random sets of nodes outside the circuit, alike in location and in something else.

    Each set goes through the same measure as the circuit, refitting included; the losses before it stand beside. The
    highest of many losses that few pairs give is too high, for it is where chance was worst, of the refit above all;
    so the highest ones are measured again on more pairs, beside as many that are just the first that were drawn. The
    worst is the highest of all these, the mean is that of the first ones.
    """

    n_set: int
    """Sets drawn."""

    n_pair: int
    """Pairs that each was first measured on, to find the highest."""

    n_again: int
    """Sets measured again: those with the highest losses, and as many that were drawn first."""

    n_again_pair: int
    """Pairs that these were measured on."""

    model_loss: float
    """The full model on these pairs, refitted as the sets are, nats."""

    loss_mean: float
    """Mean over the sets drawn first, after scale (> 0) and shift were refitted on `select` for each."""

    loss_worst: float
    """Highest of the sets that were measured again, refitted."""

    loss_mean_before_refit: float
    """Mean over the sets drawn first, of the logits as they come."""

    loss_worst_before_refit: float
    """Highest of the sets that were measured again, of the logits as they come."""


def without_circuit(circuit: Circuit, pairs: Pairs) -> Float[Tensor, "pair 2"]:
    """Return the full model's logit differences with the circuit's nodes at their ablation values."""
    with replacing(circuit.model, circuit.space.masks(~circuit.keep[None], circuit.values)):
        return all_logit_differences(circuit.model, pairs)[0]


def necessity(circuit: Circuit, pairs: Pairs, *, select: Pairs, may_shift: bool) -> Necessity:
    """Ablate the circuit in the full model and refit the calibration before measuring."""
    refit = fit_calibration(without_circuit(circuit, select), may_shift=may_shift)
    difference = without_circuit(circuit, pairs)
    return Necessity(
        loss=estimate(pair_loss(refit(difference)), pairs.templates, within=A_LOSS),
        loss_before_refit=float(task_loss(difference)),
        auroc=float(paired_auroc(difference)),
        calibration=refit,
    )


@torch.no_grad()
def activity(circuit: Circuit, pairs: Pairs) -> Float[Tensor, " node"]:
    """Return each node's mean magnitude in the full model over the prompts' tokens."""
    space, total = circuit.space, 0.0
    sums = torch.zeros(space.n_node, dtype=torch.double)
    for part in pairs.batches(128):
        tokens = part.tokens.flatten(0, 1)
        is_prompt = torch.arange(tokens.shape[1]) < part.length.repeat_interleave(2)[:, None]
        with reading(circuit.model, *space.widths) as seen:
            circuit.model.run(circuit.model.embed(tokens))
        sums += space.join({name: seen[name][is_prompt].abs().double().sum(0) for name in space.widths})
        total += float(is_prompt.sum())
    return (sums / total).float()


def matched_sets(
    keep: Bool[Tensor, " node"], active: Float[Tensor, " node"], space: NodeSpace, *, n_set: int, seed: int = 0
) -> Bool[Tensor, "set node"]:
    """Draw sets of nodes outside a circuit with as many nodes at each location, of like activity.

    Each circuit node draws one of the `N_NEAREST` free outside nodes of its location that are nearest in activity;
    a location whose outside is smaller than its inside gives all it has.
    """
    generator = torch.Generator().manual_seed(seed)
    sets = torch.zeros(n_set, space.n_node, dtype=torch.bool)
    for _, part in space.slices():
        inside = (keep[part].nonzero().flatten() + part.start).tolist()
        outside = (~keep[part]).nonzero().flatten() + part.start
        for chosen in sets:
            free = outside
            for node in inside[: len(outside)]:
                nearest = (active[free] - active[node]).abs().argsort(stable=True)[:N_NEAREST]
                pick = nearest[int(torch.randint(len(nearest), (1,), generator=generator))]
                chosen[free[pick]] = True
                free = torch.cat((free[:pick], free[pick + 1 :]))
    return sets


def throughput(circuit: Circuit, active: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """Return each node's magnitude of effect on what follows: mean magnitude times the norm of its outgoing weights.

    Queries, keys and writes have no outgoing weights of their own; there it is the mean magnitude.
    """
    found = dict(circuit.space.split(active.clone()))
    for name, linear in circuit.model.linears().items():
        layer, kind = name.split(".", 1)
        found[f"{layer}.{EDGE_ENDS[kind][0]}"] *= linear.weight.detach().norm(dim=0)
    return circuit.space.join(found)


def random_sets(
    circuit: Circuit,
    pairs: Pairs,
    *,
    select: Pairs,
    may_shift: bool,
    n_set: int = N_SET,
    n_again: int | None = None,
    alike: Callable[[Circuit, Float[Tensor, " node"]], Float[Tensor, " node"]] = lambda _, active: active,
) -> RandomSets:
    """Ablate matched random sets in the full model, and refit the calibration for each as `necessity` does.

    Args:
        circuit: Whose nodes the sets are matched to.
        pairs: What is measured.
        select: What each set is calibrated on, and what nodes' activity is taken from.
        may_shift: Whether a calibration has a shift.
        n_set: Sets.
        n_again: How many of the highest, and of those drawn first, are measured again; `N_AGAIN` if left out.
        alike: Given the mean magnitudes of all nodes, what is matched within each location: these, or `throughput`.
    """
    sets = matched_sets(circuit.keep, alike(circuit, activity(circuit, select)), circuit.space, n_set=n_set)
    whole = torch.ones(1, circuit.space.n_node, dtype=torch.bool)

    def measured(
        sets: Bool[Tensor, "set node"], n_pair: int
    ) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"], int]:
        """Return the losses of sets and, last, of the model, as they come and refitted; and the number of pairs."""
        found = []
        for split in (select, pairs):
            part = split.part(n_pair)
            evaluator = Evaluator(model=circuit.model, pairs=part, values=circuit.values, may_shift=may_shift)
            found.append(evaluator.differences(torch.cat((~sets, whole)), base=whole[0]))
        fitted = fit_calibrations(found[0], may_shift=may_shift)
        return task_loss(found[1]), task_loss(calibrated(found[1], fitted)), found[1].shape[1]

    _, refitted, n_pair = measured(sets, N_SET_PAIR)
    n_again = min(n_again or N_AGAIN, n_set)
    again = torch.cat((torch.arange(n_again), refitted[:-1].topk(n_again).indices)).unique()
    before, refitted, n_again_pair = measured(sets[again], N_AGAIN_PAIR)
    is_drawn = again < n_again  # not chosen for its loss
    return RandomSets(
        n_set=n_set,
        n_pair=n_pair,
        n_again=len(again),
        n_again_pair=n_again_pair,
        model_loss=float(refitted[-1]),
        loss_mean=float(refitted[:-1][is_drawn].mean()),
        loss_worst=float(refitted[:-1].max()),
        loss_mean_before_refit=float(before[:-1][is_drawn].mean()),
        loss_worst_before_refit=float(before[:-1].max()),
    )
