"""Are circuits of meaningless tasks, or of models that never learned, as small at equal target and budget?"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from sparse_circuits.checkpoint import model_hash
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import PruneConfig, VerifyConfig
from sparse_circuits.control_models import KINDS, control_run
from sparse_circuits.errors import PruneError, SparseCircuitsError
from sparse_circuits.faithfulness.intervals import Spread, geometric_mean_of
from sparse_circuits.faithfulness.subject import Subject, kept_circuit
from sparse_circuits.files import is_done, read_json, sha256_of_json, write_json
from sparse_circuits.model import Transformer
from sparse_circuits.pruning import prune
from sparse_circuits.tasks import CONTROLS
from sparse_circuits.tasks import task as make_task
from sparse_circuits.tasks.pairs import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
    """One control and the circuit that the pruner found for it."""

    kind: str
    """`nonsense` (a rule that the corpus never follows, in this model), `random` or `shuffled` (this task in a model
    with such weights)."""

    name: str
    """The nonsense task, or the seed of the weights."""

    n_node: int
    """Nodes of its circuit; all of the model where the target was not reached."""

    is_reached: bool
    """Whether any size reached the target."""

    ratio: float
    """Its nodes over the circuit's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controls:
    """Sizes of circuits of controls over the size of this one, with the same target and settings.

    A ratio well above 1 shows that the size of this circuit is not what the pruner finds for anything at all. A ratio
    near 1 shows that its size is no evidence.
    """

    controls: list[Control]
    """Every control."""

    ratio: Spread | None
    """Geometric mean of the ratios, with its interval over controls; None if there are none."""

    ratio_by_kind: dict[str, Spread]
    """The same by kind."""

    left_out: dict[str, str]
    """Controls that could not be made, and why."""


def controls(
    subject: Subject,
    config: VerifyConfig,
    *,
    cache: Path,
    progress: TextIO | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Controls:
    """Prune controls with the circuit's own settings, or take those that are in the cache.

    Args:
        subject: Circuit and task.
        config: How many controls.
        cache: A folder that all circuits of a run may share; what was pruned there before is not pruned again.
        progress: Where the pruner's progress goes.
        on_step: Told what is pruned next.

    Source: the controls are those of a replication of February 2026; equal target and budget, the count of a control
    that fails at the size of the whole model, and the interval are ours.
    """
    circuit, task = subject.circuit, subject.task
    prune_config = PruneConfig.from_json(circuit.settings, where="the circuit's settings")
    home = cache / sha256_of_json(prune_config.to_json())[:12]
    found, left_out = [], {}

    def add(kind: str, name: str, model: Transformer, made: Task, folder: Path) -> None:
        on_step(f"control: {kind}, {name}")
        small = circuit_or_reason(model, made, folder, prune_config, progress)
        n_node = circuit.n_node_total if isinstance(small, str) else small.n_node
        ratio = n_node / max(circuit.n_node, 1)
        is_reached = not isinstance(small, str)
        found.append(Control(kind=kind, name=name, n_node=n_node, is_reached=is_reached, ratio=ratio))

    for name in list(CONTROLS)[: config.n_nonsense]:
        try:
            made = make_task(name, circuit.model.tokenizer, seed=task.seed, max_token=task.max_token)
            add("nonsense", name, circuit.model, made, home / "nonsense" / f"{name}-{made.hash[:8]}")
        except SparseCircuitsError as error:
            left_out[f"nonsense {name}"] = str(error)
    for kind in KINDS:
        for seed in range(config.n_control_seed):
            try:
                model = control_run(circuit.model, kind, cache / f"{kind}-model-{seed}", seed=seed)
                made = dataclasses.replace(task, is_control=True)
                add(kind, f"seed {seed}", model, made, home / f"{kind}-{seed}" / f"{task.name}-{task.hash[:8]}")
            except SparseCircuitsError as error:
                left_out[f"{kind} {seed}"] = str(error)
    kinds = {kind: [one.ratio for one in found if one.kind == kind] for kind in ("nonsense", *KINDS)}
    return Controls(
        controls=found,
        ratio=geometric_mean_of([one.ratio for one in found]) if found else None,
        ratio_by_kind={kind: geometric_mean_of(ratios) for kind, ratios in kinds.items() if ratios},
        left_out=left_out,
    )


def circuit_or_reason(
    model: Transformer, task: Task, folder: Path, config: PruneConfig, progress: TextIO | None
) -> Circuit | str:
    """Return a circuit, the one that is there or a new one, or why no size reaches the target; the folder keeps either.

    Why it was not reached with other settings, for other prompts or in another model is no answer, and is overwritten.

    Raises:
        TaskError: The circuit that is there was cut for other prompts.
    """
    unreached = folder / "unreached.json"
    if is_done(folder):
        return kept_circuit(folder, model, task)
    made_of = {"task_hash": task.hash, "model_hash": model_hash(model), "config": config.to_json()}
    if unreached.exists():
        held = read_json(unreached)
        if all(held.get(name) == made for name, made in made_of.items()):
            return held["reason"]
    try:
        circuit = prune(model, task, config, folder=folder, progress=progress)
    except PruneError as error:
        write_json(unreached, {"task": task.name, **made_of, "reason": str(error)})
        return str(error)
    unreached.unlink(missing_ok=True)
    return circuit
