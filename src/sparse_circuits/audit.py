"""Do a corpus and the tasks fit together? Prevalence, leaked prompts, missing tokens."""

import random
from typing import Any

import numpy as np

from sparse_circuits.corpus.grams import hash_grams, is_among
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import TaskError
from sparse_circuits.files import write_json
from sparse_circuits.tables import aligned
from sparse_circuits.tasks import BEHAVIOURS, task
from sparse_circuits.tasks.pairs import Pairs, Task
from sparse_circuits.tasks.sampling import Behaviour, SplitSizes

MOST_PREVALENT = 0.03
"""Largest share of a source's characters that one task's places may take."""

N_CHARACTER = 1_000_000
"""Characters of each source in which places are counted."""

ASKED = SplitSizes(fit=2, select=2, hard=2)
"""Pairs drawn of each task: those of `test`."""

NEEDED = (
    *('("', "('", '")\n', "')\n", '",', "=None", "):\n", "():\n", "(self", "()\n", ".add", " +=", " set", " str"),
    *(
        ")",
        ")\n",
        " as",
        " with",
        " return",
        " {",
        " [",
        " [[",
        "]\n",
        "]]\n",
        "],",
        ":",
        ",",
        ":\n",
        "\n",
        "r",
        "w",
        ' "',
    ),
    *(
        " in",
        " for",
        " while",
        " else",
        " elif",
        " if",
        " lambda",
        " def",
        " class",
        " ==",
        " =",
        " True",
        " enumerate",
    ),
    *(" range", '}")\n', "(f", " " * 3, " " * 7, " " * 11, " " * 15),
)
"""Tokens that the tasks' prompts and answers are made of."""


def audit(corpus: Corpus, *, seed: int = 0) -> dict[str, Any]:
    """Check a corpus against every task, and note the report in its `index.json`; the corpus's hash stays.

    Args:
        corpus: A finished corpus.
        seed: Of the tasks' prompts.

    Returns:
        `missing_tokens`; by task `prevalence` (share of each source's characters that the task's places take),
        `is_too_prevalent`, `leaked` (share of the prompts of `test` with 13 tokens in a row from the training text, by
        level) or `refused`, if this tokenizer makes no task of it.
    """
    grams = _corpus_grams(corpus)
    texts = {source: _some_text(corpus, source, seed) for source in corpus.sources}
    tasks: dict[str, Any] = {}
    for name, behaviour in BEHAVIOURS.items():
        shares = {source: _prevalence(behaviour, text) for source, text in texts.items()}
        tasks[name] = {"prevalence": shares, "is_too_prevalent": max(shares.values()) > MOST_PREVALENT}
        try:
            made = task(name, corpus.tokenizer, seed=seed, sizes=ASKED)
        except TaskError as error:
            tasks[name]["refused"] = str(error)
            continue
        tasks[name]["leaked"] = _leaked(made, grams)
    report = {
        "seed": seed,
        "missing_tokens": [text for text in NEEDED if corpus.tokenizer.token(text) is None],
        "tasks": tasks,
    }
    write_json(corpus.folder / "index.json", corpus.index | {"audit": report})
    return report


def table(report: dict[str, Any]) -> str:
    """Write an audit as a table."""
    sources = list(next(iter(report["tasks"].values()))["prevalence"])
    rows = [["task", *(f"share of {source}" for source in sources), "leaked: level i", "level ii"]]
    for name, row in report["tasks"].items():
        leaked = row.get("leaked", {})
        shares = [f"{row['prevalence'][source]:.2%}" for source in sources]
        rows.append([name, *shares, *(f"{leaked[level]:.1%}" if level in leaked else "—" for level in ("i", "ii"))])
    lines = aligned(rows)
    lines += [f"refused {name}: {row['refused']}" for name, row in report["tasks"].items() if "refused" in row]
    many = [name for name, row in report["tasks"].items() if row["is_too_prevalent"]]
    lines.append(f"above {MOST_PREVALENT:.0%} of a source: {', '.join(many) or 'none'}")
    lines.append(f"tokens that are missing: {', '.join(map(repr, report['missing_tokens'])) or 'none'}")
    return "\n".join(lines)


def _corpus_grams(corpus: Corpus) -> np.ndarray:
    """Return the sorted hashes of all training text."""
    parts = [hash_grams(np.asarray(corpus.tokens(source, "train"))) for source in corpus.sources]
    return np.sort(np.concatenate(parts))


def _leaked(made: Task, grams: np.ndarray) -> dict[str, float]:
    test = made.split("test")
    return {level: share_leaked(test.at_level(level), grams) for level in sorted(set(test.levels))}


def share_leaked(pairs: Pairs, grams: np.ndarray) -> float:
    """Return the share of prompts with a row of tokens that the corpus has."""
    found = 0
    for sides, length in zip(pairs.tokens.numpy(), pairs.length.tolist(), strict=True):
        for prompt in sides:
            found += bool(is_among(hash_grams(prompt[:length]), grams).any())
    return found / (2 * len(pairs))


def _some_text(corpus: Corpus, source: str, seed: int) -> list[str]:
    """Return training documents in random order, about `N_CHARACTER` characters."""
    documents = list(corpus.documents(source, "train"))
    random.Random(seed).shuffle(documents)
    texts, n_character = [], 0
    for ids in documents:
        texts.append(corpus.tokenizer.decode(ids))
        n_character += len(texts[-1])
        if n_character >= N_CHARACTER:
            break
    return texts


def _prevalence(behaviour: Behaviour, texts: list[str]) -> float:
    matched = sum(match.end() - match.start() for text in texts for match in behaviour.pattern.finditer(text))
    return matched / max(1, sum(map(len, texts)))
