"""Does a rule about tokens say when a node is active? A Python expression scored against a node over the corpus."""

import ast
import dataclasses
from collections import Counter
from collections.abc import Callable
from types import CodeType

import torch

from sparse_circuits.errors import SparseCircuitsError
from sparse_circuits.model import Transformer
from sparse_circuits.readings import CorpusReading, read_corpus

N_TOKEN = 16_384
"""Tokens that a rule is tried on, where nothing else is asked for."""

N_BEFORE = 16
"""Tokens before that a rule may look at."""

N_MISS = 8
"""Tokens that are named where node and rule disagree."""

LONGEST = 500
"""Most characters of an expression."""

NAMES = {"token", "before", "text", "position", "len", "any", "all", "True", "False", "None"}
METHODS = {"startswith", "endswith", "strip", "lstrip", "rstrip", "lower", "upper", "isalpha", "isdigit", "isalnum",
           "isidentifier", "isspace", "isupper", "islower", "count", "find"}  # fmt: skip
NODES = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, ast.Eq, ast.NotEq, ast.Lt,
    ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Is, ast.IsNot, ast.Name, ast.Load, ast.Constant, ast.Call,
    ast.Attribute, ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.Set, ast.IfExp, ast.BinOp, ast.Add, ast.Sub,
)  # fmt: skip


class PredicateError(SparseCircuitsError):
    """A rule is no expression, asks for more than tokens, or fails on some."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredicateScore:
    """How well a rule says when a node is active."""

    node: str
    """The node."""

    expression: str
    """The rule."""

    precision: float | None
    """Share of the tokens where the rule holds at which the node is active, in [0, 1]; None if it never holds."""

    recall: float | None
    """Share of the tokens at which the node is active where the rule holds; None if it never is."""

    f1: float | None
    """Their harmonic mean; None if either is None, 0 if both are 0."""

    n_token: int
    """Tokens looked at."""

    n_true: int
    """Those where the rule holds."""

    n_active: int
    """Those at which the node is active."""

    threshold: float
    """The node counts as active where its activation's magnitude is above this."""

    misses: list[str]
    """Commonest tokens at which the node is active and the rule does not hold."""


def score_predicate(
    model: Transformer, node: str, expression: str, *, threshold: float | None = None, n_token: int = N_TOKEN
) -> PredicateScore:
    """Score a rule against a node of the full model over held-out text of the run's corpus.

    Args:
        model: A model of a run folder, with a tokenizer.
        node: Such as `1.attn.v:25`.
        expression: Python on `token` (its text), `before` (texts of up to 16 tokens before it in the window, the last
            is the nearest), `text` (these and the token joined) and `position` in the window; comparisons, `and`, `or`,
            `not`, `in`, slices, `len`, and the methods of texts that look at them.
        threshold: In [0, ∞); half the node's largest magnitude if left out.
        n_token: Tokens to look at.

    Raises:
        PredicateError: The rule is no such expression, or fails on a token.
        CorpusError: The corpus is not there.
        TapError: There is no such node.
    """
    code = compile_predicate(expression)
    return score_reading(read_corpus(model, [node], n_token=n_token), model, code, expression, threshold=threshold)


def score_reading(
    reading: CorpusReading, model: Transformer, code: CodeType, expression: str, *, threshold: float | None = None
) -> PredicateScore:
    """Score a compiled rule against the first node of a reading; see `score_predicate`."""
    if model.tokenizer is None:
        raise PredicateError("the model has no tokenizer, so a rule has no texts to look at")
    texts = [model.tokenizer.decode([token]) for token in range(model.tokenizer.n_vocab)]
    magnitude = reading.activations[0].abs()
    least = 0.5 * float(magnitude.max()) if threshold is None else threshold
    holds = torch.tensor([_on_window(code, expression, [texts[t] for t in row]) for row in reading.tokens.tolist()])
    is_active = magnitude > least
    n_both, n_true, n_active = (int(x.sum()) for x in (holds & is_active, holds, is_active))
    precision = n_both / n_true if n_true else None
    recall = n_both / n_active if n_active else None
    f1 = None if precision is None or recall is None else 2 * n_both / (n_true + n_active)
    missed = Counter(reading.tokens[is_active & ~holds].tolist())
    return PredicateScore(
        node=reading.names[0],
        expression=expression,
        precision=precision,
        recall=recall,
        f1=f1,
        n_token=reading.tokens.numel(),
        n_true=n_true,
        n_active=n_active,
        threshold=least,
        misses=[texts[token] for token, _ in missed.most_common(N_MISS)],
    )


def compile_predicate(expression: str) -> CodeType:
    """Check that a rule asks for nothing but tokens, and compile it.

    Raises:
        PredicateError: It doesn't parse, is too long, or has a name, method or operation that rules have no use for.
    """
    if len(expression) > LONGEST:
        raise PredicateError(f"the rule has {len(expression)} characters, expected at most {LONGEST}")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise PredicateError(f"the rule is no Python expression: {error}") from None
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) or not isinstance(node, NODES):
            raise PredicateError(f"a rule can't have {type(node).__name__}: {ast.unparse(node)}")
        if isinstance(node, ast.Name) and node.id not in NAMES:
            raise PredicateError(f"a rule has no {node.id!r}; it has {', '.join(sorted(NAMES))}")
        if isinstance(node, ast.Attribute) and (node.attr not in METHODS or id(node) not in called):
            raise PredicateError(f"a rule can't ask for .{node.attr}; it can call {', '.join(sorted(METHODS))}")
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name | ast.Attribute):
            raise PredicateError(f"a rule can't call {ast.unparse(node.func)}")
    return compile(tree, "<rule>", "eval")


def _on_window(code: CodeType, expression: str, texts: list[str]) -> list[bool]:
    known: dict[str, Callable] = {"len": len, "any": any, "all": all}
    found = []
    for i, token in enumerate(texts):
        before = texts[max(0, i - N_BEFORE) : i]
        names = {"token": token, "before": before, "text": "".join(before) + token, "position": i}
        try:
            found.append(bool(eval(code, {"__builtins__": {}, **known}, names)))
        except IndexError:
            found.append(False)  # before[-3] at the start of a window: the rule does not hold there
        except Exception as error:  # whatever a rule can raise is told in one line
            raise PredicateError(f"the rule {expression!r} fails on {token!r}: {error}") from None
    return found
