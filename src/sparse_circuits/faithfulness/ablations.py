"""Is the circuit enough whatever else is set to? Sufficiency under four ablations, free and strict."""

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.ablation import ablation_values
from sparse_circuits.circuit import Circuit, norms_frozen
from sparse_circuits.edges import edges_between, source_values
from sparse_circuits.errors import SparseCircuitsError
from sparse_circuits.faithfulness.intervals import A_LOSS, Estimate, estimate
from sparse_circuits.faithfulness.subject import Subject, Swapped
from sparse_circuits.scoring import calibrated, fit_calibrations, logit_difference, pair_loss
from sparse_circuits.taps import EdgeCut, cutting, reading, replacing
from sparse_circuits.tasks.pairs import Pairs

N_MEAN_TOKEN = 500_000
"""Least tokens that corpus means are taken over, where none are stored."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablations:
    """The circuit's task loss in nats, calibrated for each variant on `select`.

    Shows how much the answer depends on what the rest is set to. It does not show that the model computes it so: a
    circuit may be sufficient under all four and still be a second way to the answer.
    """

    losses: dict[str, dict[str, Estimate]]
    """By ablation (`zero`, `mean`, `task_mean`, `resample`), then by reading: `ordinary`, `norms_frozen` (each norm has
    the full model's scale), `sealed` (weights that are no edges carry constants, norms frozen), `sealed_norms_free`.
    `resample` sets a node outside to what it is in another prompt and has the ordinary readings alone, since a sealed
    weight carries one constant."""

    left_out: dict[str, str]
    """Ablations that could not be made, and why."""

    @property
    def worst_ordinary(self) -> float:
        """Highest loss over ablations, norms free."""
        return max(found["ordinary"].value for found in self.losses.values())


def ablations(subject: Subject, *, seed: int = 0) -> Ablations:
    """Measure the circuit under every ablation and reading.

    Source: the four ablations and frozen norms are those that a replication of February 2026 compared; the paper has
    the corpus mean alone. Zero ablation makes smaller circuits than the mean, so one of them alone says little.
    """
    circuit, left_out = subject.circuit, {}
    losses: dict[str, dict[str, Estimate]] = {}
    for how in ("zero", "mean", "task_mean"):
        try:
            values = ablation_values(circuit.model, how, fit=subject.task.split("fit"), n_token=N_MEAN_TOKEN)
        except SparseCircuitsError as error:
            left_out[how] = str(error)
            continue
        other = dataclasses.replace(circuit, values=values)
        readings = {
            "ordinary": lambda tokens, at, other=other: other.applied(),
            "norms_frozen": lambda tokens, at, other=other: _frozen(other, tokens, at),
            "sealed": lambda tokens, at, other=other: other.sealed(tokens, at=at),
            "sealed_norms_free": lambda tokens, at, other=other: other.sealed(tokens, at=at, freezes_norms=False),
        }
        losses[how] = {name: subject.loss_under(under) for name, under in readings.items()}
    losses["resample"] = _resampled(subject, seed)
    return Ablations(losses=losses, left_out=left_out)


@contextlib.contextmanager
def _frozen(circuit: Circuit, tokens: Tensor, at: Tensor) -> Iterator[None]:
    with norms_frozen(circuit.model, tokens, at=at), circuit.applied():
        yield


def other_prompts(length: Int[Tensor, " prompt"], generator: torch.Generator) -> Int[Tensor, " prompt"]:
    """Choose for each prompt another one that is at least as long, any of them; the longest alone gets itself."""
    order = length.argsort(descending=True, stable=True)
    chosen = torch.empty_like(order)
    n_as_long = (length[order][None] >= length[order][:, None]).sum(1)  # (prompt,) in order
    for place, (prompt, n) in enumerate(zip(order.tolist(), n_as_long.tolist(), strict=True)):
        pick = int(torch.randint(max(n - 1, 1), (1,), generator=generator))
        chosen[prompt] = order[pick + (pick >= place) if n > 1 else 0]
    return chosen


def _resampled(subject: Subject, seed: int) -> dict[str, Estimate]:
    found = {}
    for name, freezes in (("ordinary", False), ("norms_frozen", True)):
        generator = torch.Generator().manual_seed(seed)
        parts = [
            _resampled_differences(subject.circuit, pairs, generator, freezes_norms=freezes)[None]
            for pairs in (subject.select, subject.test)
        ]
        difference = calibrated(parts[1], fit_calibrations(parts[0], may_shift=subject.may_shift))[0]
        found[name] = estimate(pair_loss(difference), subject.test.templates, within=A_LOSS)
    return found


@torch.no_grad()
def _resampled_differences(
    circuit: Circuit, pairs: Pairs, generator: torch.Generator, *, freezes_norms: bool
) -> Float[Tensor, "pair 2"]:
    model, space = circuit.model, circuit.space
    keeps, values = space.split(circuit.keep), space.split(circuit.values)
    whole = edges_between(model, circuit.keep)
    # An edge that was cut carries its source's ablation value here too.
    cuts = {
        name: EdgeCut(~whole[name] | edges, source_values(values, name))
        for name, edges in circuit.edges.items()
        if not torch.equal(edges, whole[name])
    }
    all_tokens = pairs.tokens.flatten(0, 1)
    other = other_prompts(pairs.length.repeat_interleave(2), generator)
    out = torch.empty(len(pairs), 2)
    for index in pairs.length.argsort(descending=True, stable=True).split(64):
        part = pairs.take(index)
        tokens, at = part.tokens.flatten(0, 1), (part.length - 1).repeat_interleave(2)
        prompts = torch.stack((2 * index, 2 * index + 1), 1).flatten()
        with reading(model, *space.widths) as seen:
            model.run(model.embed(all_tokens[other[prompts], : tokens.shape[1]]), at=at)
        edits = {name: Swapped(keeps[name], seen[name]) for name in space.widths}
        frozen = norms_frozen(model, tokens, at=at) if freezes_norms else contextlib.nullcontext()
        with frozen, cutting(model, cuts), replacing(model, edits):
            out[index] = logit_difference(model, part)[0]
    return out
