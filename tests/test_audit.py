"""The audit finds prompts that the corpus has, constructs that are everywhere, and tokens that are missing."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_circuits.audit import NEEDED, audit, share_leaked, table
from sparse_circuits.configs import CorpusConfig
from sparse_circuits.corpus import shards
from sparse_circuits.corpus.grams import hash_grams
from sparse_circuits.tasks import BEHAVIOURS, task
from sparse_circuits.tasks.sampling import SplitSizes


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    config = CorpusConfig(sources=("idioms",), n_vocab=2048, max_token=150_000, n_tokenizer_byte=400_000)
    return shards.build(config, tmp_path_factory.mktemp("audited") / "corpus")


@given(st.lists(st.integers(0, 2047), max_size=40), st.integers(1, 5))
def test_rows_of_tokens_hash_alike_exactly_where_they_are_alike(tokens, n):
    hashes = hash_grams(np.array(tokens, dtype=np.uint16), n)
    rows = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    assert len(hashes) == len(rows)
    assert len(set(hashes.tolist())) == len(set(rows))


def test_a_prompt_from_the_corpus_is_found_and_a_strange_one_is_not(corpus):
    made = task("single_double_quote", corpus.tokenizer, sizes=SplitSizes(fit=8, select=8, test=8, hard=8))
    pairs = made.split("test")
    assert share_leaked(pairs, np.array([0], dtype=np.uint64)) == 0
    first = hash_grams(pairs.tokens[0, 0, : pairs.length[0]].numpy())
    assert share_leaked(pairs, np.sort(first)) >= 1 / (2 * len(pairs))
    everything = np.sort(
        np.concatenate(
            [hash_grams(row[: pairs.length[i]].numpy()) for i in range(len(pairs)) for row in pairs.tokens[i]]
        )
    )
    assert share_leaked(pairs, everything) == pytest.approx((pairs.length >= 13).double().mean().item())


def test_an_audit_names_every_task_and_goes_into_the_index_but_not_its_hash(corpus, monkeypatch):
    monkeypatch.setattr("sparse_circuits.audit.NEEDED", (*NEEDED, " unheard_of"))
    report = audit(corpus)
    assert list(report["tasks"]) == list(BEHAVIOURS)
    index = json.loads((corpus.folder / "index.json").read_text())
    assert index["audit"] == report
    assert shards.Corpus(corpus.folder).hash == corpus.hash
    vocabulary = {corpus.tokenizer.decode([token]) for token in range(2048)}
    assert report["missing_tokens"] == [text for text in (*NEEDED, " unheard_of") if text not in vocabulary]
    assert report["missing_tokens"][-1] == " unheard_of"
    text = table(report)
    assert all(name in text for name in BEHAVIOURS)
    for row in report["tasks"].values():
        assert row["is_too_prevalent"] == (row["prevalence"]["idioms"] > 0.03)
        assert 0 < row["prevalence"]["idioms"] < 0.5
