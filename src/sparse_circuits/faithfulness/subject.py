"""What is checked: a circuit on its task, with the part of the pairs that checks of many variants look at."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.candidates import Evaluator
from sparse_circuits.circuit import Circuit
from sparse_circuits.errors import TaskError
from sparse_circuits.faithfulness.intervals import A_LOSS, Estimate, estimate
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import calibrated, fit_calibration, fit_calibrations, logit_difference, pair_loss
from sparse_circuits.taps import reading
from sparse_circuits.tasks.pairs import Pairs, Task

Under = Callable[[Int[Tensor, "batch pos"], Int[Tensor, " batch"]], contextlib.AbstractContextManager[None]]
"""Given tokens and the position read in each row, puts edits in force."""


@torch.no_grad()
def differences_under(circuit: Circuit, pairs: Pairs, under: Under) -> Float[Tensor, "pair 2"]:
    """Return the model's uncalibrated logit differences with edits that may depend on the very prompts."""
    out = torch.empty(len(pairs), 2)
    for index in pairs.length.argsort(descending=True, stable=True).split(128):
        part = pairs.take(index)
        with under(part.tokens.flatten(0, 1), (part.length - 1).repeat_interleave(2)):
            out[index] = logit_difference(circuit.model, part)[0]
    return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A circuit on its task; `select` calibrates each variant, `test` measures it."""

    circuit: Circuit
    """The circuit."""

    task: Task
    """Its task."""

    n_pair: int
    """Pairs of `select` and of `test` that variants are measured on."""

    n_split_pair: int | None = None
    """Most pairs of a split that whole splits are measured on."""

    @property
    def may_shift(self) -> bool:
        """Whether a calibration has a shift."""
        return not self.task.answers_vary

    @functools.cached_property
    def select(self) -> Pairs:
        """Part of the split that variants are calibrated on."""
        return self.task.split("select").part(self.n_pair)

    @functools.cached_property
    def test(self) -> Pairs:
        """Part of the split that they are measured on."""
        return self.task.split("test").part(self.n_pair)

    def splits(self) -> dict[str, Pairs]:
        """Return the splits that circuits are tested on, as much of them as is asked for."""
        found = {name: self.task.splits[name] for name in ("test", "hard", "mined") if name in self.task.splits}
        return {name: pairs.part(self.n_split_pair or len(pairs)) for name, pairs in found.items() if len(pairs)}

    def under(self, under: Under) -> Float[Tensor, "pair 2"]:
        """Return the differences on `test` under edits, with scale and shift fitted on `select` under the same."""
        parts = (differences_under(self.circuit, pairs, under)[None] for pairs in (self.select, self.test))
        select, test = parts
        return calibrated(test, fit_calibrations(select, may_shift=self.may_shift))[0]

    def loss_under(self, under: Under) -> Estimate:
        """Return the task loss on `test` of what `under` returns, in nats."""
        return estimate(pair_loss(self.under(under)), self.test.templates, within=A_LOSS)

    def masked(
        self, keep: Bool[Tensor, "run node"], *, base: Bool[Tensor, " node"] | None = None
    ) -> Float[Tensor, "run pair 2"]:
        """Return the differences on `test` of the model with some nodes kept, each run calibrated on `select`.

        Args:
            keep: The other nodes are at their ablation values.
            base: A mask that most agree with.
        """
        found = []
        for pairs in (self.select, self.test):
            evaluator = Evaluator(
                model=self.circuit.model, pairs=pairs, values=self.circuit.values, may_shift=self.may_shift
            )
            found.append(evaluator.differences(keep, base=base))
        return calibrated(found[1], fit_calibrations(found[0], may_shift=self.may_shift))


def of_task(circuit: Circuit, task: Task, *, n_pair: int, n_split_pair: int | None = None) -> Subject:
    """Return the subject, if the circuit was cut for these prompts or does not say for which.

    An imported circuit does not, and comes without scale and shift; they are fitted on `select`.

    Raises:
        TaskError: The task's prompts are not those that the circuit was cut for.
    """
    if not circuit.task["hash"]:
        bare = circuit.logit_difference(task.split("select"), calibrated=False)
        fitted = fit_calibration(bare, may_shift=not task.answers_vary)
        circuit = dataclasses.replace(circuit, calibration=fitted)
    _refuse_other_prompts(
        circuit, task, where="the circuit", remedy="make the task with the same tokenizer, seed and corpus"
    )
    return Subject(circuit=circuit, task=task, n_pair=n_pair, n_split_pair=n_split_pair)


def kept_circuit(folder: Path, model: Transformer, task: Task) -> Circuit:
    """Open a circuit that was cut out by an earlier call, if it is one of this task.

    Raises:
        TaskError: It was cut for other prompts, so that it may have been decided on those that are now its test.
    """
    circuit = Circuit.load(folder, model)
    _refuse_other_prompts(
        circuit, task, where=f"{folder}: the circuit there", remedy="name another folder or remove it"
    )
    return circuit


def _refuse_other_prompts(circuit: Circuit, task: Task, *, where: str, remedy: str) -> None:
    """Refuse a circuit that says that it was cut for other prompts; an imported one doesn't say."""
    found = circuit.task["hash"]
    if found and found != task.hash:
        raise TaskError(
            f"{where} was cut for {circuit.task['name']} with other prompts ({found[:12]}) than "
            f"these of {task.name} ({task.hash[:12]}); {remedy}"
        )


class Swapped:
    """An edit that gives all nodes but those kept what they are in another run, recorded at the same positions."""

    acts_at_each_position = True

    def __init__(self, keep: Bool[Tensor, " channel"], other: Float[Tensor, "batch pos channel"]) -> None:
        self.keep, self.other = keep, other

    def __call__(self, x: Float[Tensor, "batch pos channel"]) -> Float[Tensor, "batch pos channel"]:
        """Take the other run's channels where they are not kept."""
        return torch.where(self.keep, x, self.other)


def recorded(
    circuit: Circuit,
    tokens: Int[Tensor, "batch pos"],
    at: Int[Tensor, " batch"],
    *,
    in_circuit: bool,
) -> dict[str, Float[Tensor, "batch pos channel"]]:
    """Return every location's activations on these tokens, in the circuit or in the model as it is."""
    model = circuit.model
    run = circuit.applied() if in_circuit else contextlib.nullcontext()
    with run, reading(model, *circuit.space.widths) as seen:
        model.run(model.embed(tokens), at=at)
    return seen


@torch.no_grad()
def activations(
    circuit: Circuit, pairs: Pairs, nodes: Bool[Tensor, " node"], *, in_circuit: bool
) -> Float[Tensor, "token chosen"]:
    """Return some nodes' activations at each token of the prompts, in the circuit or in the full model.

    Tokens stand batch after batch, in the same order for both.
    """
    model, space, found = circuit.model, NodeSpace.of(circuit.model.config), []
    chosen = space.split(nodes)
    for part in pairs.batches(128):
        tokens = part.tokens.flatten(0, 1)
        is_prompt = torch.arange(tokens.shape[1]) < part.length.repeat_interleave(2)[:, None]
        run = circuit.applied() if in_circuit else contextlib.nullcontext()
        with run, reading(model, *space.widths) as seen:
            model.run(model.embed(tokens))
        found.append(space.join({name: seen[name][is_prompt][:, chosen[name]] for name in space.widths}))
    return torch.cat(found)
