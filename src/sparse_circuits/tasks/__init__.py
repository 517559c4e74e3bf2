"""The tasks by name."""

from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import TaskError, did_you_mean
from sparse_circuits.tasks.brackets import BracketCounting
from sparse_circuits.tasks.pairs import Task
from sparse_circuits.tasks.quotes import SingleDoubleQuote
from sparse_circuits.tasks.sampling import Behaviour, SplitSizes, sample_task
from sparse_circuits.tokenizer import Tokenizer

BEHAVIOURS: dict[str, Behaviour] = {b.name: b for b in (SingleDoubleQuote(), BracketCounting())}
"""Every behaviour that there is a task for."""


def task(
    name: str,
    tokenizer: Tokenizer | None,
    *,
    seed: int = 0,
    corpus: Corpus | None = None,
    sizes: SplitSizes | None = None,
) -> Task:
    """Draw the pairs of a task.

    Args:
        name: Such as `single_double_quote`.
        tokenizer: The model's.
        seed: Decides the pairs.
        corpus: Adds the split `mined`, from the held-out files.
        sizes: Pairs wanted of each split.

    Raises:
        TaskError: No such task, no tokenizer, or too few pairs survive it.
    """
    if name not in BEHAVIOURS:
        raise TaskError(f"no task is called {name!r}{did_you_mean(name, BEHAVIOURS)}")
    if tokenizer is None:
        raise TaskError("the model has no tokenizer; a task needs the one that it was trained with")
    return sample_task(BEHAVIOURS[name], tokenizer, seed=seed, corpus=corpus, sizes=sizes)
