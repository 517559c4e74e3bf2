"""All checks of a circuit in one report: `sc.verify`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparse_circuits.checkpoint import model_hash
from sparse_circuits.circuit import Circuit
from sparse_circuits.errors import TaskError
from sparse_circuits.faithfulness.card import TaskCard, task_card
from sparse_circuits.faithfulness.intervals import FEW_TEMPLATES
from sparse_circuits.faithfulness.necessity import N_SET, Necessity, RandomSets, activity, necessity, random_sets
from sparse_circuits.faithfulness.sufficiency import (
    Differences,
    Sufficiency,
    fit_sealed_calibration,
    measure,
    sufficiency,
)
from sparse_circuits.files import write_json
from sparse_circuits.scoring import CHANCE, MAX_SCALE
from sparse_circuits.tables import aligned
from sparse_circuits.taps import reading
from sparse_circuits.tasks.pairs import Level, Pairs, Task

FORMAT, VERSION = "sparse-circuits report", 1

LEVELS: tuple[Level, ...] = ("i", "ii")
"""Levels of the test split, told apart."""

FLAGGED_SCALE = 0.99 * MAX_SCALE
"""A calibration at the limit would rather be larger, and is said to be at it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was found out about one circuit, on prompts that nothing was decided on."""

    task: str
    """Name of the task."""

    model_hash: str
    """The model."""

    n_node: int
    """Nodes of the circuit."""

    n_node_total: int
    """Nodes of the model."""

    n_node_alive: int
    """Nodes of the model that are ever nonzero on the task's prompts."""

    n_node_constant: int
    """Nodes of the circuit whose value never changes on the task's prompts, in the circuit."""

    n_edge: int
    """Edges in the six matrices."""

    n_embedding_edge: dict[str, int]
    """Edges with embedding and unembedding."""

    calibration: dict[str, float]
    """Scale and shift of the circuit's answers, fitted on `select`."""

    sufficiency: dict[str, Sufficiency]
    """By split: `test` (levels i and ii together), `test i`, `test ii`, `hard`, and `mined` where there is any."""

    necessity: Necessity
    """On `test`."""

    random_sets: RandomSets
    """On `test`."""

    card: TaskCard
    """The task."""

    notes: list[str]
    """What a reader must know before trusting a number here."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    def save(self, path: Path | str) -> None:
        """Write `report.json`."""
        write_json(Path(path), self.to_json())

    def __str__(self) -> str:
        rows = [("", "model", "circuit", "sealed", "accuracy: model", "circuit")]
        for split, found in self.sufficiency.items():
            rows.append(
                (
                    f"{split} ({found.model.loss.n_pair} pairs)",
                    str(found.model.loss),
                    str(found.circuit.loss),
                    str(found.sealed.loss),
                    f"{found.model.accuracy:.3f}",
                    f"{found.circuit.accuracy:.3f}",
                )
            )
        table = "\n".join(aligned(rows))
        need, rand = self.necessity, self.random_sets
        lines = [
            f"{self.task}: {self.n_node} nodes of {self.n_node_total:,} ({self.n_node_alive:,} alive on the task, "
            f"{self.n_node_constant} of the circuit constant), {self.n_edge} edges",
            f"loss in nats a side, chance {CHANCE:.3f}",
            table,
            f"model without the circuit, refitted: loss {need.loss}, AUROC {need.auroc:.3f}",
            f"{rand.n_set} random sets alike, refitted: loss mean {rand.loss_mean:.3f}, worst {rand.loss_worst:.3f}; "
            f"before refitting {rand.loss_mean_before_refit:.3f}, {rand.loss_worst_before_refit:.3f} "
            f"(model {rand.model_loss:.3f} on the same {rand.n_pair} pairs)",
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def verify(
    circuit: Circuit,
    task: Task,
    *,
    folder: Path | str | None = None,
    n_set: int = N_SET,
    on_step: Callable[[str], None] = lambda _: None,
) -> Report:
    """Test a circuit on prompts that neither masks nor sizes were chosen on.

    Args:
        circuit: The circuit.
        task: The task that it was cut for, or another one of the same splits.
        folder: The circuit's folder: the reading of `test` is noted in it and `report.json` written.
        n_set: Random sets.
        on_step: Called with a sentence before each check.

    Raises:
        TaskError: The task's prompts are not those that the circuit was cut for.
    """
    if circuit.task["hash"] != task.hash:
        raise TaskError(
            f"the circuit was cut for {circuit.task['name']} with other prompts ({circuit.task['hash'][:12]}) than "
            f"these of {task.name} ({task.hash[:12]}); make the task with the same tokenizer, seed and corpus"
        )
    select, test, may_shift = task.split("select"), task.split("test"), not task.answers_vary
    on_step("sufficiency")
    sealed_calibration = fit_sealed_calibration(circuit, select, may_shift=may_shift)
    parts = _parts(task)
    found = {}
    for name, pairs in parts.items():
        differences = measure(circuit, pairs)
        found[name] = sufficiency(circuit, pairs, differences, sealed_calibration=sealed_calibration)
        if name == "test":
            for level in LEVELS:
                index = pairs.index_of_level(level)
                some = Differences(*(difference[index] for difference in differences))
                found[f"test {level}"] = sufficiency(
                    circuit, pairs.take(index), some, sealed_calibration=sealed_calibration
                )
    on_step("necessity")
    need = necessity(circuit, test, select=select, may_shift=may_shift)
    on_step(f"{n_set} random sets")
    sets = random_sets(circuit, test, select=select, may_shift=not task.answers_vary, n_set=n_set)
    on_step("the task card")
    card = task_card(circuit.model, task, circuit.values)
    report = Report(
        task=task.name,
        model_hash=model_hash(circuit.model),
        n_node=circuit.n_node,
        n_node_total=circuit.n_node_total,
        n_node_alive=int((activity(circuit, select) > 0).sum()),
        n_node_constant=count_constant_nodes(circuit, select),
        n_edge=circuit.n_edge,
        n_embedding_edge=circuit.n_embedding_edge(),
        calibration=dataclasses.asdict(circuit.calibration),
        sufficiency=found,
        necessity=need,
        random_sets=sets,
        card=card,
        notes=_notes(circuit, found, card, parts),
    )
    if folder is not None:
        circuit.log_test_reading(Path(folder), "verify")
        report.save(Path(folder) / "report.json")
    return report


@torch.no_grad()
def count_constant_nodes(circuit: Circuit, pairs: Pairs) -> int:
    """Count the circuit's nodes whose value is the same at every token of the prompts, in the circuit."""
    space = circuit.space
    low = torch.full((space.n_node,), torch.inf)
    high = -low
    for part in pairs.batches(128):
        tokens = part.tokens.flatten(0, 1)
        is_prompt = torch.arange(tokens.shape[1]) < part.length.repeat_interleave(2)[:, None]
        with circuit.applied(), reading(circuit.model, *space.widths) as seen:
            circuit.model.run(circuit.model.embed(tokens))
        values = space.join({name: seen[name][is_prompt] for name in space.widths})  # (token, node)
        low, high = torch.minimum(low, values.amin(0)), torch.maximum(high, values.amax(0))
    return int(((high - low < 1e-6) & circuit.keep).sum())


def _parts(task: Task) -> dict[str, Pairs]:
    """Return the splits that circuits are tested on."""
    parts = {name: task.splits[name] for name in ("test", "hard", "mined") if name in task.splits}
    return {name: pairs for name, pairs in parts.items() if len(pairs)}


def _notes(circuit: Circuit, found: dict[str, Sufficiency], card: TaskCard, parts: dict[str, Pairs]) -> list[str]:
    notes = []
    if circuit.calibration.scale > FLAGGED_SCALE:
        notes.append(
            f"the calibration's scale is {circuit.calibration.scale:.1f}: small differences are promoted to answers"
        )
    few = [name for name, part in found.items() if part.model.loss.n_template < FEW_TEMPLATES]
    if few:
        notes.append(f"* fewer than {FEW_TEMPLATES} templates: the intervals of {', '.join(few)} are rough")
    if card.is_bigram_solvable:
        notes.append("bigram-solvable: right too often with every node ablated; leave this task out of means")
    if "mined" not in parts:
        notes.append("no mined pairs: no place in the held-out files asks for this behaviour")
    return notes
