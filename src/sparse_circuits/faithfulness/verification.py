"""All checks of a circuit in one report, each kept as soon as it is there: `sc.verify`."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO, TypeVar

from sparse_circuits.checkpoint import model_hash
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import COSTLY, Check, VerifyConfig
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import SparseCircuitsError
from sparse_circuits.faithfulness.ablations import Ablations, ablations
from sparse_circuits.faithfulness.agreement import Agreement, agreement
from sparse_circuits.faithfulness.attention import AttentionPatterns, attention_patterns
from sparse_circuits.faithfulness.benchmark import Benchmark, benchmark
from sparse_circuits.faithfulness.binarisation import Binarisation, binarisation
from sparse_circuits.faithfulness.card import TaskCard, task_card
from sparse_circuits.faithfulness.controls import Controls, controls
from sparse_circuits.faithfulness.hypothesis import Variable, interchange_interventions
from sparse_circuits.faithfulness.interchange import Interchange, interchange
from sparse_circuits.faithfulness.intervals import FEW_TEMPLATES
from sparse_circuits.faithfulness.necessity import Necessity, RandomSets, activity, necessity, random_sets, throughput
from sparse_circuits.faithfulness.report import Report
from sparse_circuits.faithfulness.selectivity import Selectivity, selectivity
from sparse_circuits.faithfulness.stored import Store, identity
from sparse_circuits.faithfulness.subject import Subject, activations, of_task
from sparse_circuits.faithfulness.subsets import SubsetAblation, subset_ablation
from sparse_circuits.faithfulness.sufficiency import (
    Differences,
    Sufficiency,
    fit_sealed_calibration,
    measure,
    sufficiency,
)
from sparse_circuits.faithfulness.uniqueness import Uniqueness, uniqueness
from sparse_circuits.faithfulness.verdict import verdict
from sparse_circuits.scoring import MAX_SCALE
from sparse_circuits.tasks.pairs import Level, Pairs, Task

LEVELS: tuple[Level, ...] = ("i", "ii")
"""Levels of the test split, told apart."""

FLAGGED_SCALE = 0.99 * MAX_SCALE
"""A calibration at the limit would rather be larger, and is said to be at it."""

AGAIN_SHARE = 5
"""One random set of this many, those with the highest losses, is measured again on more pairs."""

STRONG_SHARE = 4
"""One set matched by effect is drawn for this many matched by activity."""

TARGET_LOSS = 0.15
"""The target of a circuit that does not say what it was cut for, in nats."""

Result = TypeVar("Result")


def verify(
    circuit: Circuit,
    task: Task,
    config: VerifyConfig | None = None,
    *,
    folder: Path | str | None = None,
    others: Mapping[str, tuple[Circuit, Task]] | None = None,
    corpus: Corpus | None = None,
    hypothesis: Variable | None = None,
    hypothesis_nodes: Sequence[str] = (),
    cache: Path | str | None = None,
    progress: TextIO | None = None,
    on_step: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> Report:
    """Test a circuit on prompts that neither masks nor sizes were chosen on.

    Args:
        circuit: The circuit.
        task: The task that it was cut for.
        config: Which checks, and on how much; `VerifyConfig.quick()` for a first look.
        folder: The circuit's folder: the reading of `test` is noted in it, each finished check is kept in its
            `checks/`, and `report.json` is written. A check that lies there and was made
            of the same things is not made again.
        others: Other circuits of the model with their tasks, by name: is this one needed for its own task alone?
        corpus: The model's corpus, for the loss on text.
        hypothesis: A function of a prompt's text that says which value a variable has, tested in the circuit's nodes.
        hypothesis_nodes: Test it in these nodes only.
        cache: Where `controls` and `uniqueness` keep what they prune; `controls` in the model's run folder and
            `uniqueness` in the circuit's if left out.
        progress: Where the pruner's progress goes.
        on_step: Called with a sentence before each check.
        settings: Fields of `config` to change, such as `n_set=50`.

    Raises:
        TaskError: The task's prompts are not those that the circuit was cut for, or the hypothesis does not fit them.
        ConfigError: A setting is out of range.
    """
    config = dataclasses.replace(config or VerifyConfig(), **settings)
    subject = of_task(circuit, task, n_pair=config.n_pair, n_split_pair=config.n_split_pair)
    home = None if folder is None else Path(folder)
    found: dict[str, Any] = {"hypothesis": None}
    if hypothesis is not None:  # first: a mistake of the user's shows at once
        found["hypothesis"] = interchange_interventions(subject, hypothesis, hypothesis_nodes, seed=config.seed)
    run = _Checks(subject, config, home, on_step)
    found |= _in_every_report(subject, run)
    found |= _on_request(subject, run, others=dict(others or {}), corpus=corpus)
    places = _places(circuit, home, None if cache is None else Path(cache))
    found |= _pruned_again(subject, run, places, progress)
    report = _composed(subject, found, run)
    if home is not None:
        if (home / "circuit.json").exists():
            circuit.log_test_reading(home, "verify")
        report.save(home / "report.json")
    return report


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Splits:
    by_name: dict[str, Sufficiency]


class _Checks:
    """Makes checks, keeps them, and remembers what was left out and why."""

    def __init__(
        self, subject: Subject, config: VerifyConfig, folder: Path | None, on_step: Callable[[str], None]
    ) -> None:
        self.config, self.on_step = config, on_step
        about = {
            "circuit": identity(subject.circuit),
            "task": subject.task.hash,
            "mined": len(subject.task.splits.get("mined", ())),
            "version": version("sparse-circuits"),
        }
        self.store = Store(folder=None if folder is None else folder / "checks", about=about)
        self.left_out: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def made(
        self, name: str, kind: type[Result], compute: Callable[[], Result], *fields: str, beside: Any = None
    ) -> Result:
        """Make a check that every report has; `fields` of the settings are what it depends on."""

        def timed() -> Result:
            self.on_step(name)
            started = time.monotonic()
            result = compute()
            self.seconds[name] = round(time.monotonic() - started, 2)
            return result

        settings = {field: self.config.to_json()[field] for field in fields}
        return self.store.result(name.replace(" ", "_"), kind, settings | {"beside": beside}, timed)

    def asked(
        self, name: Check, kind: type[Result], compute: Callable[[], Result], *fields: str, beside: Any = None
    ) -> Result | None:
        """Make a check if it was asked for and can be made; else say why not."""
        if name not in self.config.checks:
            self.left_out[name] = (
                "it prunes again, so it is made on request only" if name in COSTLY else "not asked for"
            )
            return None
        try:
            return self.made(name, kind, compute, "n_pair", "seed", *fields, beside=beside)
        except SparseCircuitsError as error:
            self.left_out[name] = str(error)
            return None


def _in_every_report(subject: Subject, run: _Checks) -> dict[str, Any]:
    circuit, task, shift = subject.circuit, subject.task, subject.may_shift
    select, test = task.split("select"), task.split("test")

    def sets(n_set: int, **alike: Any) -> RandomSets:
        n_again = max(1, n_set // AGAIN_SHARE)
        return random_sets(circuit, test, select=select, may_shift=shift, n_set=n_set, n_again=n_again, **alike)

    n_set = run.config.n_set
    n_strong = max(1, n_set // STRONG_SHARE)

    return {
        "sufficiency": run.made(
            "sufficiency", _Splits, lambda: _Splits(by_name=_sufficiency(subject)), "n_split_pair"
        ).by_name,
        "necessity": run.made("necessity", Necessity, lambda: necessity(circuit, test, select=select, may_shift=shift)),
        "random_sets": run.made("random sets", RandomSets, lambda: sets(n_set), "n_set"),
        "strong_sets": run.made("strong sets", RandomSets, lambda: sets(n_strong, alike=throughput), "n_set"),
        "card": run.made("card", TaskCard, lambda: task_card(circuit.model, task, circuit.values)),
    }


def _on_request(
    subject: Subject, run: _Checks, *, others: dict[str, tuple[Circuit, Task]], corpus: Corpus | None
) -> dict[str, Any]:
    seed, config = run.config.seed, run.config
    subset_fields = ("n_subset", "shares", "n_adversary_step")
    beside = {name: [identity(circuit), task.hash] for name, (circuit, task) in others.items()}
    return {
        "ablations": run.asked("ablations", Ablations, lambda: ablations(subject, seed=seed)),
        "subsets": run.asked("subsets", SubsetAblation, lambda: subset_ablation(subject, config), *subset_fields),
        "selectivity": run.asked(
            "selectivity",
            Selectivity,
            lambda: _selectivity(subject, config, others, corpus),
            "n_corpus_token",
            beside=[beside, None if corpus is None else corpus.hash],
        ),
        "interchange": run.asked("interchange", Interchange, lambda: interchange(subject, seed=seed)),
        "attention": run.asked("attention", AttentionPatterns, lambda: attention_patterns(subject)),
        "agreement": run.asked("agreement", Agreement, lambda: agreement(subject), "n_split_pair"),
        "binarisation": run.asked(
            "binarisation", Binarisation, lambda: binarisation(subject, n_step=config.n_step, seed=seed), "n_step"
        ),
        "benchmark": run.asked("benchmark", Benchmark, lambda: benchmark(subject)),
    }


def _pruned_again(subject: Subject, run: _Checks, places: dict[str, Path], progress: TextIO | None) -> dict[str, Any]:
    def pruned(make: Callable[..., Result], name: str) -> Callable[[], Result]:
        def made() -> Result:
            if name not in places:
                raise SparseCircuitsError("nowhere to keep what is pruned: give the circuit's folder or `cache`")
            return make(subject, run.config, cache=places[name], progress=progress, on_step=run.on_step)

        return made

    return {
        "controls": run.asked("controls", Controls, pruned(controls, "controls"), "n_nonsense", "n_control_seed"),
        "uniqueness": run.asked("uniqueness", Uniqueness, pruned(uniqueness, "uniqueness"), "n_seed", "n_exclusion"),
    }


def _composed(subject: Subject, found: dict[str, Any], run: _Checks) -> Report:
    """Return the report, its verdict and notes included."""
    circuit, task = subject.circuit, subject.task
    select = task.split("select")
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
        left_out=run.left_out,
        seconds=run.seconds,
        verdict=[],
        notes=[],
        **found,
    )
    target = circuit.settings.get("target_loss", TARGET_LOSS)
    return dataclasses.replace(report, verdict=verdict(report, target_loss=target), notes=_notes(circuit, report))


def _sufficiency(subject: Subject) -> dict[str, Sufficiency]:
    circuit, task = subject.circuit, subject.task
    sealed_calibration = fit_sealed_calibration(circuit, task.split("select"), may_shift=subject.may_shift)
    found = {}
    for name, pairs in subject.splits().items():
        differences = measure(circuit, pairs)
        found[name] = sufficiency(circuit, pairs, differences, sealed_calibration=sealed_calibration)
        for level in LEVELS if name == "test" else ():
            index = pairs.index_of_level(level)
            if len(index):
                some = Differences(*(difference[index] for difference in differences))
                part = pairs.take(index)
                found[f"test {level}"] = sufficiency(circuit, part, some, sealed_calibration=sealed_calibration)
    return found


def _selectivity(
    subject: Subject,
    config: VerifyConfig,
    others: dict[str, tuple[Circuit, Task]],
    corpus: Corpus | None,
) -> Selectivity:
    if not others and corpus is None:
        raise SparseCircuitsError("no other circuits of this model, and no corpus: nothing else to measure it on")
    name = subject.task.name
    return selectivity(
        {name: subject.circuit, **{other: circuit for other, (circuit, _) in others.items() if other != name}},
        {name: subject.task, **{other: task for other, (_, task) in others.items() if other != name}},
        n_pair=config.n_pair,
        corpus=corpus,
        n_corpus_token=config.n_corpus_token,
    )


def _places(circuit: Circuit, folder: Path | None, cache: Path | None) -> dict[str, Path]:
    """Return where costly checks keep what they prune."""
    run = circuit.model.folder
    found = {
        "controls": cache / "controls" if cache else run / "controls" if run else None,
        "uniqueness": cache / "uniqueness" if cache else folder / "uniqueness" if folder else None,
    }
    return {name: place for name, place in found.items() if place is not None}


def count_constant_nodes(circuit: Circuit, pairs: Pairs) -> int:
    """Count the circuit's nodes whose value is the same at every token of the prompts, in the circuit."""
    values = activations(circuit, pairs, circuit.keep, in_circuit=True)  # (token, node of the circuit)
    return int((values.amax(0) - values.amin(0) < 1e-6).sum()) if values.shape[1] else 0


def _notes(circuit: Circuit, report: Report) -> list[str]:
    notes = []
    if not circuit.task["hash"]:
        notes.append(
            "imported: it does not say which prompts it was cut on, some may be among these; scale and shift were "
            "fitted on select here"
        )
    if circuit.calibration.scale > FLAGGED_SCALE:
        notes.append(
            f"the calibration's scale is {circuit.calibration.scale:.1f}: small differences are promoted to answers"
        )
    n_template = {name: part.model.loss.n_template for name, part in report.sufficiency.items()}
    none = [name for name, n in n_template.items() if n < 2]
    few = [name for name, n in n_template.items() if 2 <= n < FEW_TEMPLATES]
    if none:
        notes.append(f"one template: {', '.join(none)} say nothing of others, so there is no interval")
    if few:
        notes.append(f"* fewer than {FEW_TEMPLATES} templates: the intervals of {', '.join(few)} are rough")
    if report.card.is_bigram_solvable:
        notes.append("bigram-solvable: right too often with every node ablated; leave this task out of means")
    if "mined" not in report.sufficiency:
        notes.append("no mined pairs: no place in the held-out files asks for this behaviour")
    if report.controls is not None:
        unreached = [f"{one.kind} {one.name}" for one in report.controls.controls if not one.is_reached]
        if unreached:
            notes.append(f"controls that missed the target count at the size of the model: {', '.join(unreached)}")
    return notes
