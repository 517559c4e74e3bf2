"""What a circuit says about prompts that it was not cut on, beside what the full model does there: `sc.predict`."""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.circuit import Circuit
from sparse_circuits.corpus import words
from sparse_circuits.errors import TaskError
from sparse_circuits.faithfulness.intervals import A_SHARE, Estimate, estimate
from sparse_circuits.faithfulness.stored import to_json
from sparse_circuits.scoring import all_logit_differences
from sparse_circuits.tables import aligned
from sparse_circuits.tasks.own_pairs import read_rows
from sparse_circuits.tasks.pairs import PairFilter, Pairs, Side, TextPair, collect
from sparse_circuits.tokenizer import Tokenizer

FORMAT, VERSION = "sparse-circuits predictions", 1

FAILS = 0.75
"""A side is said to fail where it is right less often than this: half way to chance."""

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
"""Numbers in a list, as far as the context allows."""

N_PAIR = 48
"""Pairs at each point of a family."""

N_LEAST = 8
"""Fewest pairs of a point; one with fewer is left out."""

Family = Mapping[float | str, Pairs] | Mapping[float, Pairs] | Mapping[str, Pairs]
"""Pairs of prompts by a number or a word that tells them apart, such as the length of a list."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """Who is right, and by how much."""

    accuracy: tuple[Estimate, Estimate]
    """Share of prompts answered right, of side 0 and of side 1."""

    difference: tuple[float, float]
    """Mean logit difference towards the answer of side 0, on either side, in nats."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One member of a family."""

    x: float | str
    """What tells it apart."""

    predicted: Answers
    """The circuit's, calibrated."""

    measured: Answers
    """The full model's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """A family of prompts: what the circuit says and what the model does.

    Agreement on prompts far from those that the circuit was cut on is evidence that it computes the answer as the model
    does. Disagreement shows that it does not, there.
    """

    name: str
    """Of the family."""

    question: str
    """What is asked."""

    points: list[Point]
    """In the family's order."""

    left_out: list[str]
    """Members with too few pairs, such as lists longer than the context."""

    predicted_failure: float | str | None
    """First member on which a side of the circuit's answers fails; None if none does."""

    measured_failure: float | str | None
    """The same of the model's."""

    diluted_failure: float | None
    """For numbers: where side 0's mean difference, fitted as a + b / x to the circuit on the first half of the members,
    crosses zero; None where it does not fall. An average of one mark among x tokens falls as 1 / x."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """All families of one circuit."""

    task: str
    """The circuit's."""

    families: list[Prediction]
    """One a family."""

    def to_json(self) -> dict[str, Any]:
        """Return the predictions as JSON values."""
        return {"format": FORMAT, "version": VERSION, **to_json(self)}

    def __str__(self) -> str:
        lines = []
        for found in self.families:
            lines += ["", f"{found.name}: {found.question}"] if lines else [f"{found.name}: {found.question}"]
            rows = [["", "circuit: side 0", "side 1", "model: side 0", "side 1"]]
            for point in found.points:
                cells = [str(share) for answers in (point.predicted, point.measured) for share in answers.accuracy]
                rows.append([_shown(point.x), *cells])
            lines += aligned(rows)
            first = [_shown(x) for x in (found.predicted_failure, found.measured_failure)]
            lines.append(f"a side first fails (right less than {FAILS:.0%}): predicted {first[0]}, measured {first[1]}")
            if found.diluted_failure is not None:
                lines.append(f"by the fit a + b / x of the circuit's first half: {found.diluted_failure:.1f}")
        return "\n".join(lines)


def predict(circuit: Circuit, families: Mapping[str, Family] | None = None) -> Predictions:
    """Run a circuit and its model on families of prompts.

    Args:
        circuit: What predicts; its answers are calibrated as it was cut.
        families: By name; those that the package has for the circuit's task if left out.

    Raises:
        TaskError: There are none for this task, or no member of a family has enough pairs.

    Source: the paper derives from its bracket circuit that long lists and unmatched brackets fool the model, and
    measures both (section 3, figures 5 and 8); running the circuit and the fit of the dilution are ours.
    """
    questions = {}
    if families is None:
        name = circuit.task["name"]
        if name != "bracket_counting" or circuit.model.tokenizer is None:
            raise TaskError(f"the package has no families of prompts for {name}; give your own")
        families = bracket_families(circuit.model.tokenizer, max_token=circuit.model.config.n_ctx)
        questions = QUESTIONS
    found = [_prediction(circuit, name, family, questions.get(name, "")) for name, family in families.items()]
    return Predictions(task=circuit.task["name"], families=found)


QUESTIONS = {
    "list length": "an average over the context dilutes with every number: at which length is ]] no longer seen?",
    "comment": "does an unmatched bracket in a comment before the list count as one of it?",
}
"""What the families of bracket_counting ask."""


def bracket_families(tokenizer: Tokenizer, *, max_token: int, seed: int = 0) -> dict[str, Family]:
    """Make the families for bracket_counting: longer and longer lists, and brackets in a comment before a list."""
    lengths: dict[float | str, Pairs] = {}
    for n in LENGTHS:
        rng = random.Random(f"list length:{n}:{seed}")
        lengths[float(n)] = _drawn(_lists(rng, n, ""), tokenizer, max_token)
    comments: dict[float | str, Pairs] = {}
    for name, before in COMMENTS.items():
        rng = random.Random(f"comment:{seed}")
        comments[name] = _drawn(_lists(rng, 3, before), tokenizer, max_token)
    return {"list length": lengths, "comment": comments}


COMMENTS = {
    "no comment": "",
    "comment": "# see note\n",
    "closed [ ]": "# see [note]\n",
    "unmatched [": "# see [note\n",
    "unmatched [[": "# see [[note\n",
}
"""What stands before the list, by name."""


def _lists(rng: random.Random, n_number: int, before: str) -> Iterator[TextPair]:
    while True:
        name = rng.choice(words.LIST_NAMES)
        numbers = ", ".join(str(rng.randrange(10 ** rng.randint(1, 2))) for _ in range(n_number))
        first, second = (
            Side(
                prompt=f"{before}{name} = {'[' * depth}{numbers}", answer="]" * depth + "\n", continuation="name = 1\n"
            )
            for depth in (2, 1)
        )
        yield TextPair(sides=(first, second), template=name, level="i")


def _drawn(source: Iterator[TextPair], tokenizer: Tokenizer, max_token: int) -> Pairs:
    return collect(source, PairFilter(tokenizer, max_token=max_token), n_pair=N_PAIR, n_try=20 * N_PAIR)


def family_from_file(path: Path | str, tokenizer: Tokenizer, *, max_token: int) -> Family:
    """Read a family from a JSONL or CSV file of pairs (see `own_pairs`), whose column `template` tells members apart.

    Templates that are all numbers are numbers, in their order; others stay in the order of the file.

    Raises:
        TaskError: The file can't be read, or a row has no template.
    """
    groups: dict[str, list[TextPair]] = {}
    for line, row in read_rows(Path(path)).items():
        if not row.get("template"):
            raise TaskError(
                f"{path}, line {line}: a family needs the column template: a number or a word for each member"
            )
        first, second = (
            Side(prompt=row[f"prompt_{s}"], answer=row[f"answer_{s}"], continuation=row.get(f"continuation_{s}") or "")
            for s in "ab"
        )
        pair = TextPair(sides=(first, second), template=f"row {line}", level="i")
        groups.setdefault(row["template"], []).append(pair)
    accept = {name: PairFilter(tokenizer, max_token=max_token) for name in groups}
    pairs: dict[str, Pairs] = {
        n: collect(iter(rows), accept[n], n_pair=len(rows), n_try=len(rows)) for n, rows in groups.items()
    }
    try:
        numbers = {name: float(name) for name in pairs}
    except ValueError:
        return {**pairs}
    names = sorted(pairs, key=numbers.__getitem__)
    for one, other in itertools.pairwise(names):
        if numbers[one] == numbers[other]:
            raise TaskError(f"{path}: the templates {one!r} and {other!r} are the same number; write it in one way")
    return {numbers[name]: pairs[name] for name in names}


def _prediction(circuit: Circuit, name: str, family: Family, question: str) -> Prediction:
    points, left_out = [], []
    for x, pairs in family.items():
        if len(pairs) < N_LEAST:
            left_out.append(_shown(x))
            continue
        own, model = circuit.logit_difference(pairs), all_logit_differences(circuit.model, pairs)[0]
        points.append(Point(x=x, predicted=_answers(own, pairs), measured=_answers(model, pairs)))
    if not points:
        raise TaskError(f"family {name}: no member has {N_LEAST} pairs or more that fit the tokenizer and the context")
    return Prediction(
        name=name,
        question=question,
        points=points,
        left_out=left_out,
        predicted_failure=_first_failure([(point.x, point.predicted) for point in points]),
        measured_failure=_first_failure([(point.x, point.measured) for point in points]),
        diluted_failure=_diluted_failure([(point.x, point.predicted.difference[0]) for point in points]),
    )


def _answers(difference: Float[Tensor, "pair 2"], pairs: Pairs) -> Answers:
    right = torch.stack((difference[:, 0] > 0, difference[:, 1] < 0), 1).double()  # (pair, side)
    first, second = (estimate(right[:, side], pairs.templates, within=A_SHARE) for side in (0, 1))
    means = difference.double().mean(0)
    return Answers(accuracy=(first, second), difference=(float(means[0]), float(means[1])))


def _first_failure(points: list[tuple[float | str, Answers]]) -> float | str | None:
    return next((x for x, found in points if min(side.value for side in found.accuracy) < FAILS), None)


def _diluted_failure(points: list[tuple[float | str, float]]) -> float | None:
    """Return where a + b / x, fitted by least squares to the first half of the points, falls to zero."""
    known = [(x, d) for x, d in points[: max(3, (len(points) + 1) // 2)] if not isinstance(x, str) and x > 0]
    if len(known) < 3:
        return None
    inverse = torch.tensor([[1.0, 1 / x] for x, _ in known], dtype=torch.double)
    a, b = torch.linalg.lstsq(inverse, torch.tensor([d for _, d in known], dtype=torch.double)[:, None]).solution[:, 0]
    return float(-b / a) if a < 0 < b else None


def _shown(x: float | str | None) -> str:
    if x is None:
        return "nowhere"
    return x if isinstance(x, str) else f"{x:g}"
