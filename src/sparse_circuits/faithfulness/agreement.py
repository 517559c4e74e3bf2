"""Does the circuit answer as the model does, where the model errs too, and on prompts longer than any it was cut on?"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.faithfulness.intervals import A_LOSS, A_SHARE, Estimate, estimate
from sparse_circuits.faithfulness.subject import Subject
from sparse_circuits.scoring import all_logit_differences, pair_loss, r_squared
from sparse_circuits.tasks import BEHAVIOURS, CONTROLS
from sparse_circuits.tasks.pairs import Pairs
from sparse_circuits.tasks.sampling import longer_pairs

FEW_ERRORS = 20
"""With fewer errors of the model, a share of them says little."""

N_LONGER = 96
"""Longer pairs that are drawn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitAgreement:
    """Circuit and model on one split, prompt by prompt; the circuit calibrated as it is in its artifact."""

    r_squared: float
    """Share of the variance of the model's logit differences that a line through the circuit's explains."""

    r_squared_within: float
    """The same after each side's mean is taken out of both: whether the circuit knows where the model is sure."""

    r_squared_contrast: float
    """The same of the difference between a pair's two sides."""

    same_answer: Estimate
    """Share of prompts that both answer alike, right or wrong."""

    n_model_error: int
    """Prompts that the model gets wrong."""

    error_shared: float | None
    """Share of these that the circuit gets wrong too; None if there are none."""

    error_added: float
    """Share of the other prompts that the circuit alone gets wrong."""

    model_loss: Estimate
    """The model's task loss on this split, nats."""

    circuit_loss: Estimate
    """The circuit's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement with the model by split.

    High agreement on all of them shows that the circuit stands for the model on such prompts; it says nothing of how.
    """

    splits: dict[str, SplitAgreement]
    """`test`, `test i`, `test ii`, and where there are any `hard`, `mined` (level iii) and `longer`."""

    longer_left_out: str | None
    """Why there are no longer prompts, if there are none."""


def agreement(subject: Subject) -> Agreement:
    """Compare the circuit's answers with the model's on every split.

    Source: agreement on the model's errors and on other prompts is what a replication of February 2026 found missing; a
    circuit that only does the task agrees with the labels rather than with the model.
    """
    splits, parts = {}, subject.splits()
    longer, why = _longer(subject)
    if longer is not None:
        parts["longer"] = longer
    for name, pairs in parts.items():
        model = all_logit_differences(subject.circuit.model, pairs)[0]
        own = subject.circuit.logit_difference(pairs)
        splits[name] = compare(own, model, pairs)
        for level in ("i", "ii") if name == "test" else ():
            index = pairs.index_of_level(level)
            if len(index):
                splits[f"test {level}"] = compare(own[index], model[index], pairs.take(index))
    return Agreement(splits=splits, longer_left_out=why)


def compare(own: Float[Tensor, "pair 2"], model: Float[Tensor, "pair 2"], pairs: Pairs) -> SplitAgreement:
    """Compare the answers of a circuit with those of the model on the same pairs.

    Args:
        own: The circuit's logit differences.
        model: The model's.
        pairs: For their templates.
    """
    sign = torch.tensor([1.0, -1.0])
    model_wrong, own_wrong = model * sign <= 0, own * sign <= 0
    n_error, n_right = int(model_wrong.sum()), int((~model_wrong).sum())
    return SplitAgreement(
        r_squared=r_squared(own, model),
        r_squared_within=r_squared(own - own.mean(0), model - model.mean(0)),
        r_squared_contrast=r_squared(_contrast(own), _contrast(model)),
        same_answer=estimate((model_wrong == own_wrong).double().mean(1), pairs.templates, within=A_SHARE),
        n_model_error=n_error,
        error_shared=int((model_wrong & own_wrong).sum()) / n_error if n_error else None,
        error_added=int((own_wrong & ~model_wrong).sum()) / n_right if n_right else 0.0,
        model_loss=estimate(pair_loss(model), pairs.templates, within=A_LOSS),
        circuit_loss=estimate(pair_loss(own), pairs.templates, within=A_LOSS),
    )


def _contrast(difference: Float[Tensor, "pair 2"]) -> Float[Tensor, "pair 1"]:
    return difference[:, :1] - difference[:, 1:]


def _longer(subject: Subject) -> tuple[Pairs | None, str | None]:
    """Draw pairs whose prompts are longer than any that the circuit was cut on, as long as the model can read."""
    model, task = subject.circuit.model, subject.task
    behaviour = (BEHAVIOURS | CONTROLS).get(task.name) if task.path is None else None  # a file may have any name
    if behaviour is None or model.tokenizer is None:
        return None, "only the tasks that come with the package can be drawn longer; give own pairs as a split `hard`"
    above = max(int(pairs.length.max()) for pairs in task.splits.values() if len(pairs))
    if above >= model.config.n_ctx:
        return None, f"the task's prompts have up to {above} tokens already, the model's context {model.config.n_ctx}"
    found = longer_pairs(
        behaviour, model.tokenizer, seed=task.seed, above=above, max_token=model.config.n_ctx, n_pair=N_LONGER
    )
    if len(found) < N_LONGER // 4:
        return None, f"only {len(found)} pairs of {above + 1} to {model.config.n_ctx} tokens were found"
    return found, None
