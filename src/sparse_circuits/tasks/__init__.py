"""The tasks by name."""

from pathlib import Path

from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import TaskError, did_you_mean
from sparse_circuits.tasks.brackets import BracketBrace, BracketCounting
from sparse_circuits.tasks.branches import ElseElif, IfEquals, IfTernary, VarIf
from sparse_circuits.tasks.definitions import ClassInit, FinalKwarg, LambdaFunc
from sparse_circuits.tasks.loops import EnumerateRange, ForWhile, IndentFor, WhileReturnTrue
from sparse_circuits.tasks.nonsense import Initial, UnrelatedAnswers
from sparse_circuits.tasks.open_files import WithAs, WithOpen
from sparse_circuits.tasks.own_pairs import MAX_TOKENS_OF_FILE, task_from_file
from sparse_circuits.tasks.pairs import MAX_TOKENS, Task
from sparse_circuits.tasks.quotes import FstringBrace, SingleDoubleQuote
from sparse_circuits.tasks.sampling import Behaviour, SplitSizes, sample_task
from sparse_circuits.tasks.values import SetOrString, SetOrStringFixedVarname, VarSwap
from sparse_circuits.tokenizer import Tokenizer

BEHAVIOURS: dict[str, Behaviour] = {
    behaviour.name: behaviour
    for behaviour in (
        SingleDoubleQuote(),
        FinalKwarg(),
        SetOrString(),
        SetOrStringFixedVarname(),
        ClassInit(),
        WithAs(),
        BracketBrace(),
        WithOpen(),
        BracketCounting(),
        ForWhile(),
        ElseElif(),
        FstringBrace(),
        IfTernary(),
        VarSwap(),
        IndentFor(),
        LambdaFunc(),
        IfEquals(),
        EnumerateRange(),
        VarIf(),
        WhileReturnTrue(),
    )
}
"""Every behaviour that there is a task for, in the order of the paper's Table 1."""

CONTROLS: dict[str, Behaviour] = {
    behaviour.name: behaviour
    for behaviour in (
        UnrelatedAnswers(BEHAVIOURS["single_double_quote"], (" in", ":\n")),
        UnrelatedAnswers(BEHAVIOURS["bracket_counting"], (".add", " +=")),
        UnrelatedAnswers(BEHAVIOURS["for_while"], ('")\n', "')\n")),
        UnrelatedAnswers(BEHAVIOURS["with_as"], (" enumerate", " range")),
        UnrelatedAnswers(BEHAVIOURS["if_equals"], ("]]\n", "]\n")),
        Initial(),
    )
}
"""Rules that the corpus never follows."""


def task(
    name: str,
    tokenizer: Tokenizer | None,
    *,
    seed: int = 0,
    corpus: Corpus | None = None,
    sizes: SplitSizes | None = None,
    max_token: int | None = None,
) -> Task:
    """Draw the pairs of a task, or read those of a file.

    Args:
        name: Such as `single_double_quote`, or the path of a `.jsonl` or `.csv` file (see `own_pairs`).
        tokenizer: The model's.
        seed: Decides the pairs.
        corpus: Adds the split `mined`, from the held-out files.
        sizes: Pairs wanted of each split.
        max_token: Longer prompts are dropped; 64 if left out, or 256 of a file. A circuit remembers it.

    Raises:
        TaskError: No such task, no tokenizer, `max_token` below 1, or too few pairs survive.
    """
    if max_token is not None and max_token < 1:
        raise TaskError(f"max_token is {max_token}, expected 1 or more")
    known = BEHAVIOURS | CONTROLS
    if name not in known and name.lower().endswith((".jsonl", ".csv")):
        return task_from_file(name, _checked(tokenizer), seed=seed, max_token=max_token or MAX_TOKENS_OF_FILE)
    if name not in known:
        if Path(name).is_file():
            raise TaskError(f"{name}: a file of pairs is called *.jsonl or *.csv, after its format")
        raise TaskError(
            f"no task is called {name!r}{did_you_mean(name, CONTROLS if name.startswith('nons') else BEHAVIOURS)}"
        )
    most = max_token or MAX_TOKENS
    return sample_task(known[name], _checked(tokenizer), seed=seed, corpus=corpus, sizes=sizes, max_token=most)


def _checked(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise TaskError("the model has no tokenizer; a task needs the one that it was trained with")
    return tokenizer
