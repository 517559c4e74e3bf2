"""Is the circuit needed for its own task more than for others, and do others' circuits matter less to its task?"""

import dataclasses
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparse_circuits.circuit import Circuit
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.faithfulness.intervals import A_LOSS, Estimate, estimate
from sparse_circuits.faithfulness.subject import Subject
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import pair_loss
from sparse_circuits.taps import replacing
from sparse_circuits.tasks.pairs import Task
from sparse_circuits.training import next_token_loss

CONTEXT = 64
"""Tokens of a window that the corpus loss is measured on, or the model's context if that is shorter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selectivity:
    """The full model without one circuit after the other, measured on every task and on text; losses in nats.

    A circuit whose loss is high on its own task alone is selective. Circuits that share nodes share effects, so a high
    loss on a related task is no fault; one on all tasks and on the corpus says that the nodes do something general.
    """

    losses: dict[str, dict[str, Estimate]]
    """By circuit ablated, then by task: task loss, scale and shift refitted on the task's `select`. The circuit `none`
    is the model as it is."""

    corpus_losses: dict[str, dict[str, float]]
    """By circuit ablated, then by source: loss a token on held-out text. Empty where there is no corpus."""

    shared: dict[str, dict[str, float]]
    """Jaccard of the nodes of every two circuits."""

    n_node: dict[str, int]
    """Nodes of each circuit."""

    def others_hurt(self, name: str) -> float | None:
        """Return the mean rise of the other tasks' losses without this circuit over the rise of its own task's.

        None if there is no other task, or its own loss does not rise.
        """
        rises = {task: found.value - self.losses["none"][task].value for task, found in self.losses[name].items()}
        own = rises.pop(name, 0.0)
        return sum(rises.values()) / len(rises) / own if rises and own > 0 else None

    def corpus_rise(self, name: str) -> float | None:
        """Return the mean rise of the loss on text without this circuit, in nats a token."""
        rises = [loss - self.corpus_losses["none"][source] for source, loss in self.corpus_losses.get(name, {}).items()]
        return sum(rises) / len(rises) if rises else None


def selectivity(
    circuits: Mapping[str, Circuit],
    tasks: Mapping[str, Task],
    *,
    n_pair: int,
    corpus: Corpus | None = None,
    n_corpus_token: int = 8192,
) -> Selectivity:
    """Ablate each of a model's circuits and measure each task, and text.

    Args:
        circuits: By the name of their task; all of one model.
        tasks: What is measured.
        n_pair: Pairs of `select` and of `test`, for each task.
        corpus: For the loss on text; None leaves it out.
        n_corpus_token: Held-out tokens of each source.
    """
    first = next(iter(circuits.values()))
    n_node = first.n_node_total
    masks = torch.stack([torch.ones(n_node, dtype=torch.bool), *(~circuit.keep for circuit in circuits.values())])
    names = ["none", *circuits]
    losses: dict[str, dict[str, Estimate]] = {name: {} for name in names}
    for task in tasks.values():
        subject = Subject(circuit=first, task=task, n_pair=n_pair)
        found = pair_loss(subject.masked(masks, base=masks[0]))
        for name, of_pairs in zip(names, found, strict=True):
            losses[name][task.name] = estimate(of_pairs, subject.test.templates, within=A_LOSS)
    corpus_losses = {}
    if corpus is not None:
        windows = _windows(first.model, corpus, n_corpus_token)
        corpus_losses = {
            name: {source: _text_loss(first, mask, tokens) for source, tokens in windows.items()}
            for name, mask in zip(names, masks, strict=True)
        }
    return Selectivity(
        losses=losses,
        corpus_losses=corpus_losses,
        shared={
            one: {name: jaccard(circuit.keep, other.keep) for name, other in circuits.items()}
            for one, circuit in circuits.items()
        },
        n_node={name: circuit.n_node for name, circuit in circuits.items()},
    )


def jaccard(one: Bool[Tensor, " node"], other: Bool[Tensor, " node"]) -> float:
    """Return how many nodes two circuits share, over how many they have together; 1 if both are empty."""
    together = int((one | other).sum())
    return int((one & other).sum()) / together if together else 1.0


def _windows(model: Transformer, corpus: Corpus, n_token: int) -> dict[str, Int[Tensor, "window pos"]]:
    context = min(CONTEXT, model.config.n_ctx)
    return {name: corpus.windows(name, "validation", context=context, n_token=n_token) for name in corpus.sources}


@torch.no_grad()
def _text_loss(circuit: Circuit, keep: Bool[Tensor, " node"], windows: Int[Tensor, "window pos"]) -> float:
    """Return the loss a token with some nodes kept, the others at their ablation values."""
    space = NodeSpace.of(circuit.model.config)
    with replacing(circuit.model, space.masks(keep[None], circuit.values)):
        total = sum(float(next_token_loss(circuit.model, part)) * len(part) for part in windows.split(16))
    return total / len(windows)
