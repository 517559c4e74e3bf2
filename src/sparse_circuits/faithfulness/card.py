"""The task card: how hard a task is and how it could be cheated; computed, never written."""

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.candidates import Evaluator
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import accuracy, task_loss
from sparse_circuits.tasks.pairs import Pairs, Task

BIGRAM_SOLVABLE = 0.55
"""A task that the model does better than this with every node ablated is answered by its tables alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shortcut:
    """What a simple rule reaches on `test` after learning from `fit`."""

    loss: float
    """Task loss in nats; chance is ln 2."""

    accuracy: float
    """Share of prompts answered right, in [0, 1]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskCard:
    """What a task asks, in numbers."""

    n_pair: dict[str, int]
    """Pairs by split."""

    length_mean: float
    """Tokens of a prompt of `test`, on average."""

    length_range: tuple[int, int]
    """Shortest and longest."""

    n_differing_mean: float
    """Positions at which the two sides differ."""

    all_ablated: Shortcut
    """The model with every node at its ablation value: biases and bigram table alone."""

    is_bigram_solvable: bool
    """Whether that is right more often than `BIGRAM_SOLVABLE`; such a task is left out of means."""

    last_two_tokens: Shortcut
    """A count table by the prompt's last two tokens."""

    bag_of_tokens: Shortcut
    """Logistic regression on which tokens occur in the prompt."""

    answer_mass: float
    """Probability that the full model gives to the two answers together, on average."""

    dropped: dict[str, float]
    """Share of the pairs drawn that the tokenizer broke, by reason."""


def task_card(model: Transformer, task: Task, values: Float[Tensor, " node"]) -> TaskCard:
    """Compute a task's card for a model.

    Args:
        model: The full model.
        task: The task.
        values: Ablation values.
    """
    test, fit = task.split("test"), task.split("fit")
    nothing = torch.zeros(1, NodeSpace.of(model.config).n_node, dtype=torch.bool)
    evaluator = Evaluator(model=model, pairs=test, values=values, may_shift=False)
    empty = evaluator.differences(nothing)[0]
    n_kept = sum(len(pairs) for pairs in task.splits.values())
    n_drawn = n_kept + sum(task.n_dropped.values())
    is_prompt = torch.arange(test.tokens.shape[2]) < test.length[:, None]
    differs = (test.tokens[:, 0] != test.tokens[:, 1]) & is_prompt
    all_ablated = _shortcut(empty)
    return TaskCard(
        n_pair={name: len(pairs) for name, pairs in task.splits.items()},
        length_mean=float(test.length.double().mean()),
        length_range=(int(test.length.min()), int(test.length.max())),
        n_differing_mean=float(differs.sum(1).double().mean()),
        all_ablated=all_ablated,
        is_bigram_solvable=all_ablated.accuracy > BIGRAM_SOLVABLE,
        last_two_tokens=_shortcut(_last_two_tokens(fit, test)),
        bag_of_tokens=_shortcut(_bag_of_tokens(fit, test, model.config.n_vocab)),
        answer_mass=answer_mass(model, test),
        dropped={reason: n / n_drawn for reason, n in task.n_dropped.items()},
    )


@torch.no_grad()
def answer_mass(model: Transformer, pairs: Pairs) -> float:
    """Return the probability of the two answers together, averaged over prompts."""
    total = 0.0
    for part in pairs.batches(64):
        at = (part.length - 1).repeat_interleave(2)
        probability = model(part.tokens.flatten(0, 1), at=at)[:, 0].softmax(-1)  # (pair · 2, n_vocab)
        total += float(probability.gather(1, part.answers.repeat_interleave(2, 0)).double().sum())
    return total / (2 * len(pairs))


def _shortcut(difference: Float[Tensor, "pair 2"]) -> Shortcut:
    return Shortcut(loss=float(task_loss(difference)), accuracy=float(accuracy(difference)))


def _last_two_tokens(fit: Pairs, test: Pairs) -> Float[Tensor, "pair 2"]:
    """Log odds of side 0 by the last two tokens, counted on `fit` with one added to each side."""

    def keys(pairs: Pairs) -> list[list[tuple[int, int]]]:
        return [
            [(int(side[n - 2]), int(side[n - 1])) for side in pair]
            for pair, n in zip(pairs.tokens, pairs.length.tolist(), strict=True)
        ]

    counts: dict[tuple[int, int], list[int]] = {}
    for pair in keys(fit):
        for side, key in enumerate(pair):
            counts.setdefault(key, [1, 1])[side] += 1
    table = {key: torch.tensor(n[0] / n[1]).log().item() for key, n in counts.items()}
    return torch.tensor([[table.get(key, 0.0) for key in pair] for pair in keys(test)])


def _bag_of_tokens(fit: Pairs, test: Pairs, n_vocab: int) -> Float[Tensor, "pair 2"]:
    """Logistic regression on token occurrence, with a small L2 penalty, fitted to its optimum."""

    def bags(pairs: Pairs) -> Float[Tensor, "prompt n_vocab"]:
        is_prompt = (torch.arange(pairs.tokens.shape[2]) < pairs.length[:, None]).repeat_interleave(2, 0)
        bag = torch.zeros(2 * len(pairs), n_vocab)
        return bag.scatter_reduce_(1, pairs.tokens.flatten(0, 1), is_prompt.float(), "amax")

    x, target = bags(fit), torch.tensor([1.0, 0.0]).repeat(len(fit))
    weight = torch.zeros(n_vocab, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ weight, target) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return (bags(test) @ weight.detach()).unflatten(0, (-1, 2))
