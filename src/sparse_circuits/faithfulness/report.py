"""The report of a circuit: every check's result, the verdict, and how both are written for a terminal."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparse_circuits.faithfulness.ablations import Ablations
from sparse_circuits.faithfulness.agreement import Agreement
from sparse_circuits.faithfulness.attention import AttentionPatterns
from sparse_circuits.faithfulness.benchmark import Benchmark
from sparse_circuits.faithfulness.binarisation import Binarisation
from sparse_circuits.faithfulness.card import TaskCard
from sparse_circuits.faithfulness.controls import Controls
from sparse_circuits.faithfulness.hypothesis import InterchangeInterventions
from sparse_circuits.faithfulness.interchange import Interchange
from sparse_circuits.faithfulness.necessity import Necessity, RandomSets
from sparse_circuits.faithfulness.selectivity import Selectivity
from sparse_circuits.faithfulness.stored import from_json, to_json
from sparse_circuits.faithfulness.subsets import SubsetAblation
from sparse_circuits.faithfulness.sufficiency import Sufficiency
from sparse_circuits.faithfulness.uniqueness import Uniqueness
from sparse_circuits.faithfulness.verdict import Finding, verdict_table
from sparse_circuits.files import read_json, write_json
from sparse_circuits.scoring import CHANCE
from sparse_circuits.tables import aligned

FORMAT, VERSION = "sparse-circuits report", 1


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
    """On `test`: sets alike in location and activity."""

    strong_sets: RandomSets | None
    """On `test`: sets alike in location and in magnitude of effect; see `throughput`."""

    card: TaskCard
    """The task."""

    ablations: Ablations | None
    """Sufficiency under other ablations."""

    subsets: SubsetAblation | None
    """Subset ablation."""

    selectivity: Selectivity | None
    """This circuit and those beside it, on each other's tasks and on text."""

    interchange: Interchange | None
    """Activations swapped with the model's."""

    hypothesis: InterchangeInterventions | None
    """Interchange interventions against a variable of the user's."""

    attention: AttentionPatterns | None
    """Attention patterns against the model's."""

    agreement: Agreement | None
    """Agreement with the model's answers."""

    binarisation: Binarisation | None
    """Nodes of two values."""

    benchmark: Benchmark | None
    """Numbers that other work reports."""

    controls: Controls | None
    """Sizes of controls."""

    uniqueness: Uniqueness | None
    """Other circuits of the same task."""

    left_out: dict[str, str]
    """Checks that were not made, and why."""

    verdict: list[Finding]
    """Each number against its limits."""

    notes: list[str]
    """What a reader must know before trusting a number here."""

    seconds: dict[str, float]
    """What each check took, when it was made."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        shows = {name: sentence(getattr(self, name)) for name in CHECK_FIELDS if getattr(self, name) is not None}
        return {"format": FORMAT, "version": VERSION, **to_json(self), "shows": shows}

    def save(self, path: Path | str) -> None:
        """Write `report.json`."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> "Report":
        """Read what `save` wrote.

        Raises:
            FormatError: It is no report, or of a newer version.
        """
        data = read_json(Path(path), expect=FORMAT, version=VERSION)
        known = {field.name for field in dataclasses.fields(cls)}
        empty: dict[str, Any] = dict.fromkeys(known) | {
            "left_out": {}, "verdict": [], "notes": [], "seconds": {},
        }  # fmt: skip
        return from_json(cls, empty | {name: value for name, value in data.items() if name in known})

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [found.check for found in self.verdict if found.status == "failed"]

    def __str__(self) -> str:
        need = self.necessity
        lines = [
            f"{self.task}: {self.n_node} nodes of {self.n_node_total:,} ({self.n_node_alive:,} alive on the task, "
            f"{self.n_node_constant} of the circuit constant), {self.n_edge} edges",
            f"loss in nats a side, chance {CHANCE:.3f}",
            *self._splits(),
            f"model without the circuit, refitted: loss {need.loss}, AUROC {need.auroc:.3f}",
            *_told_sets("alike in activity", self.random_sets),
            *(_told_sets("alike in effect", self.strong_sets) if self.strong_sets else ()),
            *self._details(),
            "",
            *verdict_table(self.verdict),
            "No row is a proof, and no number of passed rows adds up to one; docs/method.md has what each shows.",
            *(f"left out: {name}: {why}" for name, why in self.left_out.items()),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def _splits(self) -> list[str]:
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
        return aligned(rows)

    def _details(self) -> Iterator[str]:
        """Yield the tables of the checks that have more than one number."""
        if self.ablations is not None:
            kinds = list(self.ablations.losses["resample" if "zero" not in self.ablations.losses else "zero"])
            rows = [["ablation", *(kind.replace("_", " ") for kind in kinds)]]
            for how, found in self.ablations.losses.items():
                cells = [f"{found[kind].value:.3f}" if kind in found else "—" for kind in kinds]
                rows.append([how.replace("_", " "), *cells])
            yield from ("", *aligned(rows))
        if self.subsets is not None:
            rows = [["share ablated", "random subsets", "worst", "adversary"]]
            for point in self.subsets.points:
                adversary = "—" if point.adversary is None else f"{point.adversary.value:.3f}"
                rows.append(
                    [f"{point.share:.0%}", f"{point.loss_mean.value:.3f}", f"{point.loss_worst:.3f}", adversary]
                )
            yield from ("", *aligned(rows))
        if self.attention is not None and self.attention.heads:
            rows = [["head", "divergence", "uniform: model", "circuit", ""]]
            for name, head in self.attention.heads.items():
                flag = "turned uniform" if name in self.attention.turned_uniform else ""
                cells = [f"{x:.3f}" for x in (head.divergence, head.uniformity_model, head.uniformity_circuit)]
                rows.append([name, *cells, flag])
            yield from ("", *aligned(rows))
        if self.selectivity is not None and len(self.selectivity.n_node) > 1:
            tasks = list(self.selectivity.losses["none"])
            rows = [["ablated \\ loss on", *tasks]]
            for name, found in self.selectivity.losses.items():
                rows.append([name, *(f"{found[task].value:.3f}" for task in tasks)])
            yield from ("", *aligned(rows))
        if self.hypothesis is not None:
            hypothesis = self.hypothesis
            yield from (
                "",
                f"{hypothesis.name} exchanged in {len(hypothesis.nodes)} nodes: the answer follows in "
                f"{hypothesis.accuracy} of the prompts, {hypothesis.accuracy_elsewhere:.3f} with as many other nodes, "
                f"{hypothesis.accuracy_without:.3f} without any exchange",
            )


CHECK_FIELDS = (
    "necessity",
    "random_sets",
    "ablations",
    "subsets",
    "selectivity",
    "interchange",
    "hypothesis",
    "attention",
    "agreement",
    "binarisation",
    "benchmark",
    "controls",
    "uniqueness",
)
"""Fields of a report whose results say in their docstring what they show."""


def sentence(result: object) -> str:
    """Return what a check's result does and does not show: the second paragraph of its docstring."""
    paragraphs = (type(result).__doc__ or "").split("\n\n")
    return " ".join(paragraphs[1 if len(paragraphs) > 1 else 0].split())


def _told_sets(what: str, sets: RandomSets) -> Iterator[str]:
    yield (
        f"{sets.n_set} random sets {what}, refitted: loss mean {sets.loss_mean:.3f}, worst {sets.loss_worst:.3f}, "
        f"model {sets.model_loss:.3f}; before refitting {sets.loss_mean_before_refit:.3f}, "
        f"{sets.loss_worst_before_refit:.3f} (the worst of {sets.n_again} measured again on {sets.n_again_pair} pairs)"
    )
