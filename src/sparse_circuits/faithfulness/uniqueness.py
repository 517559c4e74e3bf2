"""Is it the only circuit? Other seeds, and pruning again with the circuit forbidden."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from jaxtyping import Bool
from torch import Tensor

from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import PruneConfig, VerifyConfig
from sparse_circuits.faithfulness.controls import circuit_or_reason
from sparse_circuits.faithfulness.intervals import Spread, mean_of
from sparse_circuits.faithfulness.selectivity import jaccard
from sparse_circuits.faithfulness.subject import Subject, kept_circuit
from sparse_circuits.files import is_done, sha256_of_json
from sparse_circuits.pruning import prune
from sparse_circuits.scoring import r_squared, task_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherCircuit:
    """A circuit of the same task and settings from another seed."""

    seed: int
    """Of mask learning."""

    n_node: int
    """Its nodes."""

    jaccard: float
    """Nodes shared with this circuit over nodes of both."""

    r_squared: float
    """Of its logit differences with this circuit's, on `test`."""

    loss_without_shared: float
    """Its task loss on `test` with the shared nodes ablated too, calibrated, in nats: near ln 2 the shared nodes do the
    work in both."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exclusion:
    """One round of pruning with all circuits so far forbidden."""

    n_forbidden: int
    """Nodes that were forbidden."""

    n_node: int | None
    """Nodes of the circuit found; None if the target was not reached."""

    loss: float | None
    """Its calibrated loss on `select`, in nats."""

    reason: str | None
    """Why there is none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniqueness:
    """How far this circuit is the only one that can be cut out.

    Few shared nodes with a high functional overlap mean that the pruner chooses among equals. A circuit found with this
    one forbidden shows that the model has a second way; that none is found shows that the pruner found none.
    """

    others: list[OtherCircuit]
    """One a seed."""

    jaccard: Spread | None
    """Mean over seeds; None without any."""

    exclusions: list[Exclusion]
    """Round after round, until the target was not reached or the rounds ended."""

    @property
    def n_disjoint(self) -> int:
        """Circuits found without any node of this one or of each other."""
        return sum(one.n_node is not None for one in self.exclusions)


def uniqueness(
    subject: Subject,
    config: VerifyConfig,
    *,
    cache: Path,
    progress: TextIO | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Uniqueness:
    """Prune the task from other seeds, then again and again with what was found forbidden.

    Exclusion rounds prune for sufficiency alone: forbidden nodes stay in the model, so what is left without the new
    circuit can't be made small.

    Args:
        subject: Circuit and task.
        config: Seeds and rounds.
        cache: Folder of this circuit's own; circuits that are there are kept.
        progress: Where the pruner's progress goes.
        on_step: Told what is pruned next.

    Source: forbid-and-prune-again and functional overlap as in Hao and Goldstein 2026 ("Exhausting backup circuits"),
    who found that single circuits are not unique; the measures of overlap are ours.
    """
    circuit, task = subject.circuit, subject.task
    prune_config = PruneConfig.from_json(circuit.settings, where="the circuit's settings")
    home = cache / sha256_of_json([prune_config.to_json(), circuit.node_names()])[:12]
    others = []
    # A pruning takes n_run seeds in a row.
    for seed in (prune_config.seed + (1 + i) * prune_config.n_run for i in range(config.n_seed)):
        on_step(f"seed {seed}")
        folder = home / f"seed-{seed}"
        if not is_done(folder):
            prune(circuit.model, task, prune_config, seed=seed, folder=folder, progress=progress)
        others.append(compare(subject, kept_circuit(folder, circuit.model, task), seed))
    alone = dataclasses.replace(prune_config, necessity_coefficient=0.0, max_auroc=1.0)
    forbidden, exclusions = circuit.keep.clone(), []
    for number in range(config.n_exclusion):
        if forbidden.all():
            break
        on_step(f"pruning with {int(forbidden.sum())} nodes forbidden")
        names = (*prune_config.exclude, *circuit.space.names(forbidden))
        without = dataclasses.replace(alone, exclude=names)
        found = circuit_or_reason(circuit.model, task, home / f"exclusion-{number}", without, progress)
        if isinstance(found, str):
            exclusions.append(Exclusion(n_forbidden=int(forbidden.sum()), n_node=None, loss=None, reason=found))
            break
        loss = found.losses["circuit"]
        exclusions.append(Exclusion(n_forbidden=int(forbidden.sum()), n_node=found.n_node, loss=loss, reason=None))
        forbidden |= found.keep
    shares = mean_of([other.jaccard for other in others]) if others else None
    return Uniqueness(others=others, jaccard=shares, exclusions=exclusions)


def compare(subject: Subject, other: Circuit, seed: int) -> OtherCircuit:
    """Compare another circuit of the same task with this one."""
    circuit = subject.circuit
    pairs = subject.test
    left: Bool[Tensor, " node"] = other.keep & ~circuit.keep
    alone = dataclasses.replace(
        subject, circuit=Circuit.of_nodes(circuit.model, left, values=other.values, task=other.task)
    )
    return OtherCircuit(
        seed=seed,
        n_node=other.n_node,
        jaccard=jaccard(circuit.keep, other.keep),
        r_squared=r_squared(other.logit_difference(pairs), circuit.logit_difference(pairs)),
        loss_without_shared=float(task_loss(alone.masked(left[None])[0])),
    )
