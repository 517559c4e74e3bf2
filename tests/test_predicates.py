"""A rule is scored by counting; it sees tokens and nothing else."""

import pytest
import torch

import sparse_circuits as sc
from sparse_circuits.predicates import PredicateError, compile_predicate, score_reading
from sparse_circuits.readings import CorpusReading


@pytest.fixture(scope="module")
def model():
    return sc.load(sc.example())


def reading_of(model, texts, active):
    ids = torch.tensor([[model.tokenizer.token(text) for text in texts]])
    return CorpusReading(
        names=["1.attn.v:25"], tokens=ids, activations=torch.tensor([[active]], dtype=torch.float), corpus_hash="x"
    )


def score(model, texts, active, rule, **more):
    return score_reading(reading_of(model, texts, active), model, compile_predicate(rule), rule, **more)


def test_precision_and_recall_are_shares_of_counts(model):
    # The rule holds at ( and ( and ); the node is active at ( and a: one in both.
    found = score(model, ["(", "a", "(", ")"], [2.0, -2.0, 0.5, 0.0], "token in ('(', ')')")
    assert (found.n_true, found.n_active, found.threshold) == (3, 2, 1.0)
    assert found.precision == pytest.approx(1 / 3)
    assert found.recall == pytest.approx(1 / 2)
    assert found.f1 == pytest.approx(2 / 5)
    assert found.misses == ["a"]


def test_a_rule_looks_back_and_fails_quietly_where_nothing_stands_before(model):
    found = score(model, ["(", "a", "(", "b"], [0, 1, 0, 1], "before[-1] == '('")
    assert (found.precision, found.recall, found.n_true) == (1.0, 1.0, 2)


def test_a_rule_that_never_holds_has_no_precision(model):
    found = score(model, ["a"], [1.0], "False")
    assert (found.precision, found.recall, found.f1) == (None, 0.0, None)


def test_the_threshold_can_be_given(model):
    assert score(model, ["a", "b"], [1.0, 0.1], "True", threshold=0.05).n_active == 2


@pytest.mark.parametrize(
    "rule",
    [
        "__import__('os').system('true')",
        "token.__class__",
        "().__class__.__bases__",
        "open('x')",
        "[c for c in token]",
        "(lambda: 1)()",
        "token.format(1)",
        "'a' * 10 ** 9",
        "token.upper",
        "f'{token}'",
        "exec",
        "token :=",
        "print(token)",
        "a" * 501,
        "(" * 400,
        "token == '\x00",
    ],
)
def test_a_rule_that_asks_for_more_than_tokens_is_refused(rule):
    with pytest.raises(PredicateError):
        compile_predicate(rule)


def test_a_rule_that_fails_on_a_token_says_on_which(model):
    with pytest.raises(PredicateError, match="fails on 'a'"):
        score(model, ["a"], [1.0], "token < 3")


def test_a_node_is_scored_over_the_runs_corpus(untrained_run):
    found = sc.score_predicate(sc.load(untrained_run), "0.attn.v:3", "token == '('", n_token=256)
    assert found.n_token == 256
    assert 0 < found.n_active <= 256
