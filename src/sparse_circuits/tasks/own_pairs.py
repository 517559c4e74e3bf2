"""A task of one's own: pairs of prompts from a JSONL or CSV file, checked row by row."""

import csv
import io
import json
import random
from pathlib import Path
from typing import Any, get_args

from sparse_circuits.errors import FormatError, TaskError
from sparse_circuits.tasks.pairs import Form, PairFilter, Side, Task, TextPair, collect, hash_splits
from sparse_circuits.tokenizer import Tokenizer

REQUIRED = ("prompt_a", "prompt_b", "answer_a", "answer_b")
"""Columns that a file must have."""

OPTIONAL = ("continuation_a", "continuation_b", "template", "form")
"""Columns that it may have: what follows each answer, a name for pairs made alike, and plain or hard."""

SHARES = {"fit": 0.5, "select": 0.2, "test": 0.3}
"""Shares of the plain pairs by split."""

N_LEAST = {"fit": 8, "select": 4, "test": 4}
"""Fewest pairs of each split."""

N_TEMPLATE = 8
"""With fewer templates than this, pairs are dealt to the splits one by one."""


def read_rows(path: Path) -> dict[int, dict[str, str]]:
    """Read a file of pairs.

    Returns:
        The columns of each row, by line: that of a JSONL row, and the row's last of a CSV row.

    Raises:
        TaskError: The file is missing, empty, no UTF-8, not of its format, or lacks a column.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise TaskError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    rows = _json_rows(path, text) if path.suffix.lower() == ".jsonl" else _csv_rows(path, text)
    if not rows:
        raise TaskError(f"{path}: holds no pairs; expected rows with {', '.join(REQUIRED)}")
    for line, row in rows.items():
        missing = [name for name in REQUIRED if not isinstance(row.get(name), str)]
        if missing:
            raise TaskError(f"{path}, line {line}: {missing[0]} is missing; found {', '.join(map(str, row))}")
        unknown = [name for name in row if name not in (*REQUIRED, *OPTIONAL)]
        if unknown:
            raise TaskError(
                f"{path}, line {line}: {unknown[0]!r} is no column; known are {', '.join((*REQUIRED, *OPTIONAL))}"
            )
        for name in OPTIONAL:
            if not isinstance(row.get(name), str | None):
                raise TaskError(f"{path}, line {line}: {name} is {row[name]!r:.60}, expected text")
        if (row.get("form") or "plain") not in get_args(Form):
            raise TaskError(f"{path}, line {line}: form is {row['form']!r}, expected plain or hard")
    return rows


MAX_TOKENS_OF_FILE = 256
"""Longer prompts of a file are dropped, where nothing else is asked for."""


def task_from_file(
    path: Path | str, tokenizer: Tokenizer, *, seed: int = 0, max_token: int = MAX_TOKENS_OF_FILE
) -> Task:
    """Make a task of a file's pairs.

    Pairs with one template stay together in one split; a file with few templates is dealt pair by pair. Every pair must
    keep the rules of all tasks: prompts of equal length, the same last token, answers of one token.

    Args:
        path: A `.jsonl` file with an object a line, or a `.csv` file with a header.
        tokenizer: The model's.
        seed: Decides the splits.
        max_token: Longer prompts are dropped.

    Returns:
        The task; `dropped_rows` says which lines were dropped and why.

    Raises:
        TaskError: The file can't be read, or too few of its pairs survive.
    """
    path = Path(path)
    accept = PairFilter(tokenizer, max_token=max_token)
    kept: list[TextPair] = []
    forms: list[str] = []
    dropped: dict[int, str] = {}
    rows = read_rows(path)
    names_templates = any(row.get("template") for row in rows.values())
    for line, row in rows.items():
        sides = tuple(
            Side(prompt=row[f"prompt_{x}"], answer=row[f"answer_{x}"], continuation=row.get(f"continuation_{x}") or "")
            for x in "ab"
        )
        pair = TextPair(sides=(sides[0], sides[1]), template=row.get("template") or f"line {line}", level="i")
        try:
            accepted = accept(pair)
        except FormatError as error:
            raise TaskError(f"{path}, line {line}: {error}") from None
        if accepted is None:
            dropped[line] = accept.reason
        else:
            kept.append(pair)
            forms.append(row.get("form") or "plain")
    plain = [pair for pair, form in zip(kept, forms, strict=True) if form == "plain"]
    dealt = _deal(plain, random.Random(seed))
    for split, least in N_LEAST.items():
        if len(dealt[split]) < least:
            told = "; ".join(f"line {line}: {reason}" for line, reason in list(dropped.items())[:3])
            raise TaskError(
                f"{path}: {len(plain)} plain pairs are left, {len(dropped)} were dropped{': ' + told if told else ''}; "
                f"that gives {len(dealt[split])} for {split}, expected {least} or more"
            )
    dealt["hard"] = [pair for pair, form in zip(kept, forms, strict=True) if form == "hard"]
    splits = {
        name: collect(iter(pairs), PairFilter(tokenizer, max_token=max_token), n_pair=len(pairs), n_try=len(pairs))
        for name, pairs in dealt.items()
        if pairs
    }
    answers = {tuple(row) for split in splits.values() for row in split.answers.tolist()}
    return Task(
        name=path.stem,
        seed=seed,
        splits=splits,
        n_dropped=dict(accept.n_dropped),
        answers_vary=len(answers) > 1,
        hash=hash_splits(splits, named_templates=names_templates),
        path=str(path.resolve()),
        max_token=max_token,
        dropped_rows=dropped,
    )


def _deal(pairs: list[TextPair], rng: random.Random) -> dict[str, list[TextPair]]:
    """Deal pairs to the splits, by template where there are enough."""
    groups: dict[str, list[TextPair]] = {}
    for pair in pairs:
        groups.setdefault(pair.template, []).append(pair)
    dealt_by = list(groups.values()) if len(groups) >= N_TEMPLATE else [[pair] for pair in pairs]
    rng.shuffle(dealt_by)
    dealt: dict[str, list[TextPair]] = {name: [] for name in SHARES}
    for group in dealt_by:
        neediest = min(SHARES, key=lambda name: (len(dealt[name]) + len(group) / 2) / SHARES[name])
        dealt[neediest] += group
    return dealt


def _json_rows(path: Path, text: str) -> dict[int, dict[str, Any]]:
    rows = {}
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise TaskError(f"{path}, line {line}: not JSON ({error.msg}, column {error.colno})") from None
        except (ValueError, RecursionError) as error:  # a number too long, or lists too deep
            raise TaskError(f"{path}, line {line}: not JSON that Python reads ({error})") from None
        if not isinstance(row, dict):
            raise TaskError(f"{path}, line {line}: expected an object with {', '.join(REQUIRED)}")
        rows[line] = row
    return rows


def _csv_rows(path: Path, text: str) -> dict[int, dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text.replace("\r\n", "\n"), newline=""), strict=True)
    rows = {}
    try:
        for row in reader:
            if None in row:
                raise TaskError(f"{path}, line {reader.line_num}: more fields than the header names; quote commas")
            rows[reader.line_num] = {name: value for name, value in row.items() if value is not None}
    except csv.Error as error:
        raise TaskError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
    return rows
