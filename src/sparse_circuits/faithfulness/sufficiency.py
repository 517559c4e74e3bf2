"""Is the circuit enough? Its loss with every other node at its ablation value."""

import dataclasses
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from sparse_circuits.circuit import Circuit
from sparse_circuits.faithfulness.intervals import A_LOSS, Estimate, estimate
from sparse_circuits.scoring import Calibration, accuracy, all_logit_differences, fit_calibration, pair_loss
from sparse_circuits.tasks.pairs import Pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """How well one thing answers one split; losses in nats a side, chance is ln 2."""

    loss: Estimate
    """Task loss."""

    accuracy: float
    """Share of prompts answered right."""

    worst_template: tuple[str, float]
    """The template with the highest loss, and that loss."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sufficiency:
    """Model and circuit on one split.

    A low circuit loss shows that these nodes suffice under this ablation; it does not show that the model uses them
    in the same way, nor that no others would do.
    """

    model: Answers
    """The full model, as it is."""

    circuit: Answers
    """The circuit, calibrated on `select`."""

    circuit_uncalibrated: Answers
    """The circuit's own logits."""

    sealed: Answers
    """The strict reading (see `Circuit.sealed`), with the circuit's calibration."""

    sealed_recalibrated: Answers
    """The strict reading, calibrated for itself on `select`."""

    sealed_uncalibrated: Answers
    """The strict reading's own logits."""


def answers(difference: Float[Tensor, "pair 2"], pairs: Pairs) -> Answers:
    """Summarise logit differences on a split."""
    losses = pair_loss(difference)
    by_template: dict[str, list[float]] = {}
    for name, loss in zip(pairs.templates, losses.tolist(), strict=True):
        by_template.setdefault(name, []).append(loss)
    means = {name: sum(found) / len(found) for name, found in by_template.items()}
    worst = max(means, key=lambda name: means[name])
    return Answers(
        loss=estimate(losses, pairs.templates, within=A_LOSS),
        accuracy=float(accuracy(difference)),
        worst_template=(worst, means[worst]),
    )


class Differences(NamedTuple):
    """Logit differences of model and circuit on one split, uncalibrated."""

    model: Float[Tensor, "pair 2"]
    """The full model."""

    own: Float[Tensor, "pair 2"]
    """The circuit."""

    sealed: Float[Tensor, "pair 2"]
    """The circuit, sealed."""


def measure(circuit: Circuit, pairs: Pairs) -> Differences:
    """Run model and circuit on one split."""
    return Differences(
        model=all_logit_differences(circuit.model, pairs)[0],
        own=circuit.logit_difference(pairs, calibrated=False),
        sealed=circuit.logit_difference(pairs, sealed=True, calibrated=False),
    )


def sufficiency(circuit: Circuit, pairs: Pairs, found: Differences, *, sealed_calibration: Calibration) -> Sufficiency:
    """Summarise model and circuit on one split.

    Args:
        circuit: With its calibration.
        pairs: The split.
        found: What `measure` found on it.
        sealed_calibration: Fitted to the sealed run on `select`; see `fit_sealed_calibration`.
    """
    model, own, sealed = found
    return Sufficiency(
        model=answers(model, pairs),
        circuit=answers(circuit.calibration(own), pairs),
        circuit_uncalibrated=answers(own, pairs),
        sealed=answers(circuit.calibration(sealed), pairs),
        sealed_recalibrated=answers(sealed_calibration(sealed), pairs),
        sealed_uncalibrated=answers(sealed, pairs),
    )


def fit_sealed_calibration(circuit: Circuit, select: Pairs, *, may_shift: bool) -> Calibration:
    """Return the calibration that suits the sealed run best on `select`."""
    return fit_calibration(circuit.logit_difference(select, sealed=True, calibrated=False), may_shift=may_shift)
