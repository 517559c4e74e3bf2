"""Do some nodes hold a variable that a user says they hold? Interchange interventions between prompts."""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from sparse_circuits.circuit import Circuit
from sparse_circuits.errors import TaskError
from sparse_circuits.faithfulness.intervals import A_SHARE, Estimate, estimate
from sparse_circuits.faithfulness.subject import Subject, Swapped, recorded
from sparse_circuits.taps import replacing
from sparse_circuits.tasks.pairs import Pairs

Value = bool | int | float | str
"""What a variable may be."""

Variable = Callable[[str], Value]
"""A hypothesis: the variable's value for a prompt, given as text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterchangeInterventions:
    """Nodes given the values that they have in a prompt where the variable differs; does the answer follow it?

    A high accuracy shows that these nodes carry what decides the answer; it does not show that the variable is all that
    they carry, nor that no other nodes carry it too.
    """

    name: str
    """Of the user's function."""

    nodes: list[str]
    """Nodes that were exchanged."""

    accuracy: Estimate
    """Share of exchanges after which the model's answer is the one that goes with the variable's new value."""

    accuracy_without: float
    """Share of the same prompts for which that holds without any exchange: what chance and errors give."""

    accuracy_elsewhere: float
    """The same for as many random nodes outside the circuit of the same locations."""

    n_value: int
    """Different values of the variable on `test`."""


def interchange_interventions(
    subject: Subject, variable: Variable, nodes: Sequence[str] | None = None, *, n_exchange: int = 256, seed: int = 0
) -> InterchangeInterventions:
    """Test in the full model whether nodes hold a variable.

    Each prompt of `test` is run with the nodes' activations at its last position and before taken from another prompt
    of the same length with another value of the variable. The answer that the hypothesis predicts is that of the
    prompts with the new value, so the value must decide which of the two answers is right.

    Args:
        subject: Circuit and task.
        variable: The hypothesis; called with the text of each prompt.
        nodes: Names of the nodes; the whole circuit if left out.
        n_exchange: Most prompts exchanged.
        seed: Decides the partners.

    Raises:
        TaskError: The function raises, gives no single number or word, or a value that goes with both answers; the
            message shows the prompt.
        TapError: A node has no such name.

    Source: interchange interventions as in Geiger et al. 2021 (arXiv 2106.02997), on nodes in place of subspaces.
    """
    circuit, pairs = subject.circuit, subject.task.split("test")
    names = list(nodes) if nodes else circuit.node_names()
    chosen = circuit.space.marked(names)
    values = _values(subject, variable, pairs)
    side_of = _sides(values)
    generator = torch.Generator().manual_seed(seed)
    base, source = _partners(values, pairs.length.repeat_interleave(2), n_exchange, generator)
    wanted = torch.tensor([side_of[values[i]][0] for i in source.tolist()])
    templates = [pairs.templates[i // 2] for i in base.tolist()]
    elsewhere = _elsewhere(circuit, chosen, generator)
    right = _answers_after(circuit, pairs, base, source, chosen) == wanted
    return InterchangeInterventions(
        name=getattr(variable, "__name__", "variable"),
        nodes=names,
        accuracy=estimate(right.double(), templates, within=A_SHARE),
        accuracy_without=float((_answers_after(circuit, pairs, base, source, None) == wanted).double().mean()),
        accuracy_elsewhere=float((_answers_after(circuit, pairs, base, source, elsewhere) == wanted).double().mean()),
        n_value=len(side_of),
    )


def load_variable(reference: str) -> Variable:
    """Return the function that a user names as `path/to/file.py:function`.

    Raises:
        TaskError: There is no such file or function, or the file can't be run.
    """
    path, _, name = reference.rpartition(":")
    if not path or not Path(path).is_file():
        raise TaskError(f"{reference!r} names no Python file; expected path/to/file.py:function")
    spec = importlib.util.spec_from_file_location("hypothesis_of_user", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise TaskError(f"{path} can't be run: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, name, None)):
        raise TaskError(f"{path} has no function {name!r}")
    return getattr(module, name)


def _values(subject: Subject, variable: Variable, pairs: Pairs) -> list[Value]:
    """Return the variable's value for each prompt, the sides of a pair one after the other."""
    tokenizer, found = subject.circuit.model.tokenizer, []
    for row in range(2 * len(pairs)):
        tokens = pairs.tokens[row // 2, row % 2, : int(pairs.length[row // 2])].tolist()
        prompt = tokenizer.decode(tokens) if tokenizer is not None else " ".join(map(str, tokens))
        where = f"pair {row // 2}, side {row % 2} of test: {prompt!r}"
        try:
            value = variable(prompt)
        except Exception as error:
            raise TaskError(f"the hypothesis raised {type(error).__name__}: {error} at {where}") from error
        if not isinstance(value, Value):
            size = f" of {len(value)}" if isinstance(value, list | tuple) else ""
            kind = f"{type(value).__name__}{size}"
            raise TaskError(f"the hypothesis gave a {kind}, expected one number or word, at {where}")
        found.append(value)
    return found


def _sides(values: Sequence[Value]) -> dict[Value, tuple[int, int]]:
    """Return for each value the side whose answer goes with it, and the row where it was first seen."""
    sides: dict[Value, tuple[int, int]] = {}
    for row, value in enumerate(values):
        side, first = sides.setdefault(value, (row % 2, row))
        if side != row % 2:
            raise TaskError(
                f"the hypothesis gives {value!r} for prompts with different right answers: pair {first // 2}, side "
                f"{side}, and pair {row // 2}, side {row % 2} of test; a variable must decide the answer"
            )
    return sides


def _partners(
    values: Sequence[Value], length: Int[Tensor, " prompt"], n_exchange: int, generator: torch.Generator
) -> tuple[Int[Tensor, " exchange"], Int[Tensor, " exchange"]]:
    """Return prompts and, for each, another one of the same length with another value."""
    by_length: dict[int, list[int]] = {}
    for row, n in enumerate(length.tolist()):
        by_length.setdefault(n, []).append(row)
    base, source = [], []
    for row in torch.randperm(len(values), generator=generator).tolist():
        others = [other for other in by_length[int(length[row])] if values[other] != values[row]]
        if others and len(base) < n_exchange:
            base.append(row)
            source.append(others[int(torch.randint(len(others), (1,), generator=generator))])
    return torch.tensor(base), torch.tensor(source)


def _elsewhere(circuit: Circuit, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Return as many random nodes of the same locations, outside the circuit and the chosen."""
    other = torch.zeros_like(chosen)
    for _, part in circuit.space.slices():
        free = (~(circuit.keep | chosen)[part]).nonzero().flatten() + part.start
        order = torch.randperm(len(free), generator=generator)[: int(chosen[part].sum())]
        other[free[order]] = True
    return other


@torch.no_grad()
def _answers_after(
    circuit: Circuit, pairs: Pairs, base: Tensor, source: Tensor, chosen: Tensor | None
) -> Int[Tensor, " exchange"]:
    """Return the side whose answer the model gives after each exchange; none of nodes if `chosen` is None."""
    prompts, answers = pairs.tokens.flatten(0, 1), pairs.answers.repeat_interleave(2, 0)
    length, model = pairs.length.repeat_interleave(2), circuit.model
    sides = torch.empty(len(base), dtype=torch.long)
    for index in length[base].argsort(descending=True, stable=True).split(64):
        rows, others = base[index], source[index]
        n_pos, at = int(length[rows].max()), length[rows] - 1
        edits: dict[str, Callable[[Tensor], Tensor]] = {}
        if chosen is not None:
            seen = recorded(circuit, prompts[others, :n_pos], at, in_circuit=False)
            swaps = circuit.space.split(chosen)
            edits = {name: Swapped(~swap, seen[name]) for name, swap in swaps.items() if swap.any()}
        with replacing(model, edits):
            logits = model(prompts[rows, :n_pos], at=at, vocab=answers[rows])[:, 0]  # (exchange, 2)
        sides[index] = (logits[:, 1] > logits[:, 0]).long()
    return sides
