"""What the live page asks, one question at a time: a prompt with some nodes changed, or explained; a rule scored."""

import dataclasses
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from sparse_circuits.circuit import Circuit
from sparse_circuits.editing import NodeEdit, edited
from sparse_circuits.errors import FormatError, TaskError
from sparse_circuits.explaining import N_NEXT, check_length, explain
from sparse_circuits.predicates import compile_predicate, score_reading
from sparse_circuits.readings import CorpusReading, read_corpus
from sparse_circuits.tokenizer import Tokenizer
from sparse_circuits.viewer.notes import read_notes, revision, save_notes
from sparse_circuits.viewer.packing import pack_numbers
from sparse_circuits.viewer.prompts import describe_head, heads_of, queries_and_keys

N_RULE_TOKEN = 8192
"""Tokens of the corpus that a rule is scored on, so that the answer comes while one looks."""

MOST_EDITS = 200
"""Changes in one question."""


class Session:
    """One circuit and its model behind a lock: the model's edits are state, so no two questions run at once."""

    def __init__(self, circuit: Circuit, folder: Path) -> None:
        if circuit.model.tokenizer is None:
            raise TaskError(f"{folder}: the model has no tokenizer, so prompts can't be typed for it")
        self.circuit, self.folder, self.tokenizer = circuit, folder, circuit.model.tokenizer
        self.lock = threading.Lock()
        self._readings: dict[str, CorpusReading] = {}

    def run(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the next tokens with and without changes.

        Args:
            asked: `prompt`, `edits` (objects of node, action, value, position), `where` ("model" or "circuit"), and
                `watch`, texts of one token each whose probabilities are told whatever they are.

        Raises:
            SparseCircuitsError: A part is missing or wrong; the message says which.
        """
        prompt = _text(asked, "prompt")
        where = asked.get("where", "circuit")
        if where not in ("model", "circuit"):
            raise FormatError(f"where is {where!r}, expected 'model' or 'circuit'")
        edits = _edits(asked.get("edits", []))
        watched = _watched(asked.get("watch", []), self.tokenizer)
        ids = self.tokenizer.encode(prompt)
        check_length(self.circuit.model, len(ids))
        with self.lock:
            before = self._next(ids, [], where)
            after = self._next(ids, edits, where) if edits else before
        top = after.topk(min(N_NEXT, len(after)))
        return {
            "tokens": [self.tokenizer.decode([token]) for token in ids],
            "next": [self._told(token, p) for token, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)],
            "before": [self._told(token, float(before[token])) for token in top.indices.tolist()],
            "watched": [(text, float(before[token]), float(after[token])) for text, token in watched],
            "python": _python(self.folder, prompt, edits, where),
        }

    def explain(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the explanation of a prompt, with `answers` if two are given.

        Of attention it has `heads`, those that the circuit has a node in, and each run's queries and keys in them,
        packed: the page makes patterns and scores of these.
        """
        prompt, answers = _text(asked, "prompt"), asked.get("answers")
        if answers is not None and not (
            isinstance(answers, list) and len(answers) == 2 and all(isinstance(answer, str) for answer in answers)
        ):
            raise FormatError("answers is not a list of two texts")
        with self.lock:
            found = explain(self.circuit, prompt, answers=None if answers is None else (answers[0], answers[1]))
        heads = heads_of(self.circuit)
        told = found.to_json()
        told["heads"] = [describe_head(self.circuit, *head) for head in heads]
        for run, trace in (("model", found.model), ("circuit", found.circuit)):
            del told[run]["attention"]
            packed = pack_numbers(queries_and_keys(trace, heads).flatten(0, 1)) if heads else None
            told[run]["queries_and_keys"] = packed
        return told

    def predicate(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return how well a rule says when a node is active."""
        node, expression = _text(asked, "node"), _text(asked, "expression")
        code = compile_predicate(expression)
        with self.lock:
            if node not in self._readings:
                self._readings[node] = read_corpus(self.circuit.model, [node], n_token=N_RULE_TOKEN)
            return dataclasses.asdict(score_reading(self._readings[node], self.circuit.model, code, expression))

    def notes(self) -> dict[str, Any]:
        """Return the notes beside the circuit and their revision."""
        with self.lock:
            found = read_notes(self.folder)
        return {"notes": found, "revision": revision(found)}

    def keep_notes(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Save notes; see `save_notes`."""
        if not isinstance(asked.get("notes"), dict):
            raise FormatError("notes is not an object")
        with self.lock:
            return {"revision": save_notes(self.folder, asked["notes"], read=_text(asked, "revision"))}

    @torch.no_grad()
    def _next(self, ids: list[int], edits: list[NodeEdit], where: Any) -> torch.Tensor:
        with edited(self.circuit, edits, where=where):
            return self.circuit.model(torch.tensor([ids]))[0, -1].softmax(-1)

    def _told(self, token: int, probability: float) -> tuple[str, float]:
        return self.tokenizer.decode([token]), probability


def _text(asked: dict[str, Any], name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str):
        raise FormatError(f"{name} is {type(value).__name__}, expected a text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise FormatError(f"{name} holds half a character (a lone surrogate), which no text can")
    return value


def _watched(asked: Any, tokenizer: Tokenizer) -> list[tuple[str, int]]:
    if not isinstance(asked, list) or len(asked) > N_NEXT or not all(isinstance(text, str) for text in asked):
        raise FormatError(f"watch is not a list of at most {N_NEXT} texts")
    found = [(text, tokenizer.token(text)) for text in asked]
    return [(text, token) for text, token in found if token is not None]


def _edits(asked: Any) -> list[NodeEdit]:
    if not isinstance(asked, list) or len(asked) > MOST_EDITS:
        raise FormatError(f"edits is not a list of at most {MOST_EDITS} changes")
    found = []
    for item in asked:
        if not isinstance(item, dict) or set(item) - {"node", "action", "value", "position"}:
            raise FormatError(f"an edit has node, action, value and position, not {item!r:.200}")
        value, position = item.get("value", 0.0), item.get("position")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or (isinstance(value, int) and abs(value) > sys.float_info.max)
        ):
            raise FormatError(f"an edit's value is {value!r:.200}, expected a number")
        if position is not None and (isinstance(position, bool) or not isinstance(position, int) or position < 0):
            raise FormatError(f"an edit's position is {position!r:.200}, expected a token from 0")
        found.append(NodeEdit(_text(item, "node"), item.get("action"), float(value), position))  # pyright: ignore
    return found


def _python(folder: Path, prompt: str, edits: list[NodeEdit], where: str) -> str:
    """Return the lines that give the same probabilities."""
    changes = "".join(f"\n    {edit.as_python()}," for edit in edits)
    return (
        "import torch\n\nimport sparse_circuits as sc\n\n"
        f"circuit = sc.Circuit.load({str(folder)!r})\n"
        f"tokens = torch.tensor([circuit.model.tokenizer.encode({prompt!r})])\n"
        f"edits = [{changes}{chr(10) if edits else ''}]\n"
        f"with torch.no_grad(), sc.edited(circuit, edits, where={where!r}):\n"
        "    probabilities = circuit.model(tokens)[0, -1].softmax(-1)\n"
    )
