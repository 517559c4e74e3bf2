"""The numbers that other work reports: faithfulness f, and CPR and CMD over a grid of sizes."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.attribution import gradient_ranking
from sparse_circuits.candidates import Evaluator
from sparse_circuits.faithfulness.intervals import Estimate, ratio_estimate
from sparse_circuits.faithfulness.subject import Subject
from sparse_circuits.refinement import keep_top
from sparse_circuits.scoring import all_logit_differences

GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the model's nodes, those of MIB (there of edges)."""

N_RANKING_PAIR = 64
"""Pairs of `fit` that rank what is outside the circuit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Numbers for comparison. m is the mean logit difference towards the right answer, uncalibrated, on `test`.

    f near 1 shows that the circuit's answers are as large as the model's; an f above 1 is no better than one below.
    """

    m_model: float
    """m(M): the full model, in nats."""

    m_circuit: float
    """m(C): the circuit with its edges."""

    m_empty: float
    """m(∅): every node at its ablation value."""

    faithfulness: Estimate | None
    """f = (m(C) − m(∅)) / (m(M) − m(∅)); None where the model does no better than nothing, as on a nonsense rule."""

    sizes: list[int]
    """Nodes kept, for the shares of the grid."""

    curve: list[float]
    """f of the best-ranked nodes at each size: the circuit's by their effects, then all others by gradient times
    activation on `fit`. Empty where f is None."""

    cpr: float | None
    """Area under the curve over shares, trapezoids from the first share of the grid to 1; higher is better."""

    cmd: float | None
    """Area between the curve and 1; lower is better."""


def benchmark(subject: Subject) -> Benchmark:
    """Compute f for the circuit, and CPR and CMD for the ranking that it begins.

    Source: Mueller et al. 2025, "MIB: a mechanistic interpretability benchmark" (arXiv 2504.13151), section 3: f, CPR
    and CMD with its ten shares and linear trapezoids; there edges of dense models are counted and kept with resampled
    ablations, here nodes at the circuit's ablation values.
    """
    circuit, pairs = subject.circuit, subject.test
    sign = torch.tensor([1.0, -1.0])

    def m(difference: Float[Tensor, "*run pair 2"]) -> Float[Tensor, "*run pair"]:
        return (difference * sign).mean(-1)

    n_node = circuit.n_node_total
    sizes = [max(1, round(share * n_node)) for share in GRID]
    masks = keep_top(_ranking(subject), torch.tensor([0, *sizes]))
    evaluator = Evaluator(model=circuit.model, pairs=pairs, values=circuit.values, may_shift=subject.may_shift)
    empty, *kept = m(evaluator.differences(masks))
    model = m(all_logit_differences(circuit.model, pairs)[0])
    own = m(circuit.logit_difference(pairs, calibrated=False))
    gain = float((model - empty).mean())
    found = {"m_model": float(model.mean()), "m_circuit": float(own.mean()), "m_empty": float(empty.mean())}
    if gain <= 0:
        return Benchmark(**found, faithfulness=None, sizes=sizes, curve=[], cpr=None, cmd=None)
    curve = [float((one - empty).mean()) / gain for one in kept]
    return Benchmark(
        **found,
        faithfulness=ratio_estimate(own - empty, model - empty, pairs.templates),
        sizes=sizes,
        curve=curve,
        cpr=area(GRID, curve),
        cmd=area(GRID, [abs(1 - f) for f in curve]),
    )


def area(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the area under a curve by trapezoids."""
    return sum((x[i + 1] - x[i]) * (y[i] + y[i + 1]) / 2 for i in range(len(x) - 1))


def _ranking(subject: Subject) -> Float[Tensor, " node"]:
    """Rank the circuit's nodes before all others."""
    circuit = subject.circuit
    fit = subject.task.split("fit")
    by_gradient = gradient_ranking(circuit.model, fit.take(torch.arange(min(N_RANKING_PAIR, len(fit)))), circuit.values)
    rank = _ranks(by_gradient)
    effects = torch.tensor([circuit.effects.get(name, 0.0) for name in circuit.node_names()])
    rank[circuit.keep] = len(rank) + _ranks(effects)
    return rank


def _ranks(score: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    return score.argsort(stable=True).argsort().float()
