"""What a task is: pairs of prompts that differ minimally and call for different answers, in splits."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from sparse_circuits.errors import TaskError
from sparse_circuits.files import sha256_of_json
from sparse_circuits.shared_prefixes import SharedPrefixes
from sparse_circuits.tokenizer import Tokenizer

Form = Literal["plain", "hard"]
Level = Literal["i", "ii", "iii"]
"""i: templates that the model trained on and the pruner didn't; ii: neither; iii: mined from held-out files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One prompt and what must follow it."""

    prompt: str
    """Source code up to the answer."""

    answer: str
    """The right next token's text."""

    continuation: str
    """What natural code goes on with; it decides how the answer is cut into tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPair:
    """Two prompts that differ minimally, each other's wrong answer the right one."""

    sides: tuple[Side, Side]
    """In the task's own order: side 0's answer is the same kind for every pair."""

    template: str
    """Name of what it was made from; intervals leave out one of these at a time."""

    level: Level
    """Whether model or pruner saw the template."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Tokenised pairs of one split, right-padded."""

    tokens: Int[Tensor, "pair 2 pos"]
    """Token ids; what lies beyond a prompt's length has no meaning."""

    length: Int[Tensor, " pair"]
    """Tokens of each prompt, the same on both sides."""

    answers: Int[Tensor, "pair 2"]
    """Right answer of side 0 and of side 1."""

    templates: tuple[str, ...]
    """Template of each pair."""

    levels: tuple[Level, ...]
    """Level of each pair."""

    def __len__(self) -> int:
        return len(self.length)

    def take(self, index: Int[Tensor, " chosen"]) -> "Pairs":
        """Return some pairs, trimmed to the longest of them."""
        length = self.length[index]
        n_pos = int(length.max()) if len(index) else 0
        chosen = index.tolist()
        return Pairs(
            tokens=self.tokens[index, :, :n_pos],
            length=length,
            answers=self.answers[index],
            templates=tuple(self.templates[i] for i in chosen),
            levels=tuple(self.levels[i] for i in chosen),
        )

    @classmethod
    def join(cls, parts: Sequence["Pairs"]) -> "Pairs":
        """Put pairs one after the other, padded to a common length."""
        n_pos = max(part.tokens.shape[2] for part in parts)
        return cls(
            tokens=torch.cat([F.pad(p.tokens, (0, n_pos - p.tokens.shape[2])) for p in parts]),
            length=torch.cat([p.length for p in parts]),
            answers=torch.cat([p.answers for p in parts]),
            templates=tuple(name for p in parts for name in p.templates),
            levels=tuple(level for p in parts for level in p.levels),
        )

    def shared(self, n_row: int = 1) -> SharedPrefixes:
        """Return the prompts in rows of tokens, equally many pairs in each."""
        if n_row not in self._shared:
            self._shared[n_row] = SharedPrefixes.of(
                *(one.unflatten(0, (n_row, -1)) for one in (self.tokens, self.length))
            )
        return self._shared[n_row]

    @functools.cached_property
    def _shared(self) -> dict[int, SharedPrefixes]:
        return {}

    def spread(self, n_pair: int) -> Int[Tensor, " chosen"]:
        """Return the places of `n_pair` pairs, or of all if there are fewer, that stand for the whole.

        Each level has its share; in a level one of each template comes first, then a second of each, and so on.
        """
        seen: Counter[tuple[Level, str]] = Counter()
        turns: dict[Level, list[tuple[int, int]]] = {level: [] for level in self.levels}
        for i, kind in enumerate(zip(self.levels, self.templates, strict=True)):
            turns[kind[0]].append((seen[kind], i))
            seen[kind] += 1
        places = sorted(((k + 0.5) / len(turn), i) for turn in turns.values() for k, (_, i) in enumerate(sorted(turn)))
        return torch.tensor([i for _, i in places[:n_pair]], dtype=torch.long)

    def part(self, n_pair: int) -> "Pairs":
        """Return the pairs that `spread` chooses, in the order in which they stand here."""
        return self.take(self.spread(n_pair).sort().values)

    def at_level(self, level: Level) -> "Pairs":
        """Return the pairs of one level."""
        return self.take(self.index_of_level(level))

    def index_of_level(self, level: Level) -> Int[Tensor, " chosen"]:
        """Return the places of the pairs of one level."""
        return torch.tensor([i for i, other in enumerate(self.levels) if other == level], dtype=torch.long)

    def batches(self, n_pair: int) -> Iterator["Pairs"]:
        """Yield all pairs in parts of alike length, longest first."""
        for index in self.length.argsort(descending=True, stable=True).split(n_pair):
            yield self.take(index)


MAX_TOKENS = 64
"""Longer prompts are dropped, where nothing else is asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A behaviour as pairs of prompts: `fit` for masks, `select` for choices, `test` and `hard` for verification."""

    name: str
    """Name of the behaviour."""

    seed: int
    """What the pairs were drawn with."""

    splits: dict[str, Pairs]
    """Pairs by split."""

    n_dropped: dict[str, int]
    """Pairs that the tokenizer broke, by reason."""

    answers_vary: bool
    """Whether the answers differ from pair to pair; then calibration has no shift."""

    hash: str
    """Of all tokens and answers but the mined ones, which depend on the corpus at hand; of the templates too where a
    file names them."""

    max_token: int = MAX_TOKENS
    """Longer prompts were dropped."""

    is_control: bool = False
    """Whether its rule is one that no corpus follows."""

    path: str | None = None
    """The file that the pairs were read from."""

    dropped_rows: dict[int, str] = dataclasses.field(default_factory=dict)
    """By line of that file, why its pair was dropped."""

    def split(self, name: str) -> Pairs:
        """Return a split.

        Raises:
            TaskError: The task has no such split.
        """
        if name not in self.splits:
            raise TaskError(f"task {self.name} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]

    def refuse_longer_than(self, n_ctx: int) -> None:
        """Refuse a task with prompts that a model can't read.

        Args:
            n_ctx: The model's longest context, in tokens.

        Raises:
            TaskError: A prompt is longer.
        """
        longest = max(int(pairs.length.max()) for pairs in self.splits.values() if len(pairs))
        if longest > n_ctx:
            raise TaskError(
                f"a prompt of {self.name} has {longest} tokens, the model's context {n_ctx}; "
                f"make the task with max_token {n_ctx} or less"
            )


class PairFilter:
    """Turns text pairs into tokens, drops what the tokenizer breaks or what was there before, and counts why."""

    def __init__(self, tokenizer: Tokenizer, *, max_token: int = MAX_TOKENS, last_token_tells: bool = False) -> None:
        self.tokenizer, self.max_token, self.last_token_tells = tokenizer, max_token, last_token_tells
        self.n_dropped: Counter[str] = Counter()
        self.reason = ""  # why the last one was dropped
        self._seen: set[tuple[int, ...]] = set()

    def __call__(self, pair: TextPair) -> tuple[list[list[int]], list[int]] | None:
        """Return both prompts' ids and both answers, or None if a rule is broken (DESIGN: pairs)."""
        prompts, answers = [], []
        for side in pair.sides:
            if not side.prompt or not side.answer:
                return self._drop("a prompt is empty" if side.answer else "an answer is empty")
            ids = self.tokenizer.encode(side.prompt)
            whole = self.tokenizer.encode(side.prompt + side.answer + side.continuation)
            if whole[: len(ids)] != ids:
                return self._drop("the answer joins the prompt's last token")
            answer = whole[len(ids)]
            if self.tokenizer.decode([answer]) != side.answer:
                return self._drop(f"the answer {side.answer!r} is not one token")
            prompts.append(ids)
            answers.append(answer)
        if answers[0] == answers[1]:
            return self._drop("both sides call for the same answer")
        if len(prompts[0]) != len(prompts[1]):
            return self._drop("the sides differ in length")
        if prompts[0] == prompts[1]:
            return self._drop("both sides are the same prompt")
        if prompts[0][-1] != prompts[1][-1] and not self.last_token_tells:
            return self._drop("the last tokens differ")
        if len(prompts[0]) > self.max_token:
            return self._drop(f"longer than {self.max_token} tokens")
        both = {tuple(prompt) for prompt in prompts}
        if both & self._seen:
            return self._drop("a repetition")
        self._seen |= both
        return prompts, answers

    def _drop(self, reason: str) -> None:
        self.reason = reason
        self.n_dropped[reason] += 1


def collect(
    source: Iterator[TextPair], accept: PairFilter, *, n_pair: int, n_try: int, n_in_vain: int | None = None
) -> Pairs:
    """Tokenise pairs until there are enough, the source or the tries end, or `n_in_vain` after another are dropped."""
    rows: list[tuple[list[list[int]], list[int]]] = []
    kept: list[TextPair] = []
    n_dropped = 0
    for _, pair in zip(range(n_try), source, strict=False):
        if len(rows) == n_pair or n_dropped == n_in_vain:
            break
        row = accept(pair)
        n_dropped = n_dropped + 1 if row is None else 0
        if row is not None:
            rows.append(row)
            kept.append(pair)
    n_pos = max((len(prompts[0]) for prompts, _ in rows), default=0)
    tokens = torch.zeros(len(rows), 2, n_pos, dtype=torch.long)
    for i, (prompts, _) in enumerate(rows):
        tokens[i, :, : len(prompts[0])] = torch.tensor(prompts)
    return Pairs(
        tokens=tokens,
        length=torch.tensor([len(prompts[0]) for prompts, _ in rows], dtype=torch.long),
        answers=torch.tensor([answers for _, answers in rows], dtype=torch.long).reshape(-1, 2),
        templates=tuple(pair.template for pair in kept),
        levels=tuple(pair.level for pair in kept),
    )


def hash_splits(splits: dict[str, Pairs], *, named_templates: bool = False) -> str:
    """Hash everything that decides a task's numbers.

    Args:
        splits: Pairs by split.
        named_templates: Whether somebody named the templates, which decide what stands for the whole and every
            interval; those of a generated task follow from its code.
    """
    return sha256_of_json(
        {
            name: [p.tokens.tolist(), p.length.tolist(), p.answers.tolist()]
            + ([list(p.templates), list(p.levels)] if named_templates else [])
            for name, p in splits.items()
        }
    )
