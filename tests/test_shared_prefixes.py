"""What the sides of a pair begin with is computed once, and nothing else changes."""

import dataclasses

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from random_models import BASE, CONFIGS, random_model

from sparse_circuits import kernels, scoring
from sparse_circuits.errors import TapError
from sparse_circuits.kernels import reference
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import logit_difference
from sparse_circuits.shared_prefixes import SharedPrefixes
from sparse_circuits.taps import EdgeCut, Gate, cutting, reading, replacing
from sparse_circuits.tasks.pairs import Pairs


@pytest.fixture(autouse=True)
def however_little_it_saves(monkeypatch):
    monkeypatch.setattr(scoring, "MOST_LEFT", 100.0)


@st.composite
def rows_of_pairs(draw, n_vocab=6, most=7):
    n_row, n_pair, n_pos = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, most))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    tokens = torch.randint(n_vocab, (n_row, n_pair, 2, n_pos), generator=generator)
    alike = torch.arange(n_pos) < torch.randint(n_pos + 1, (n_row, n_pair, 1), generator=generator)
    tokens[:, :, 1] = torch.where(alike, tokens[:, :, 0], tokens[:, :, 1])
    return tokens, torch.randint(1, n_pos + 1, (n_row, n_pair), generator=generator)


def test_a_pair_worked_by_hand():
    found = SharedPrefixes.of(torch.tensor([[[[5, 6, 7, 9], [5, 6, 8, 9]]]]), torch.tensor([[3]]))
    assert found.tokens.tolist() == [[5, 6, 7, 8]]
    assert found.position.tolist() == [[0, 1, 2, 2]]
    assert found.index.tolist() == [[[[0, 1, 2], [0, 1, 3]]]]
    assert found.last.tolist() == [[2, 3]]
    assert found.last_position.tolist() == [[2, 2]]
    assert found.spans.tolist() == [[0, 2, 3, 3]]
    assert found.prompt_spans.tolist() == [[0, 3, 3, 3], [0, 2, 3, 3]]


@given(rows_of_pairs())
def test_every_prompt_is_found_again(given_rows):
    tokens, length = given_rows
    found = SharedPrefixes.of(tokens, length)
    for row in range(len(tokens)):
        prompts, distinct = tokens[row].flatten(0, 1), set()
        for prompt, n in enumerate(length[row].repeat_interleave(2).tolist()):
            places = found.index[row].flatten(0, 1)[prompt, :n]
            assert torch.equal(found.tokens[row, places], prompts[prompt, :n])
            assert torch.equal(found.position[row, places], torch.arange(n))
            assert found.last[row, prompt] == places[-1]
            assert found.last_position[row, prompt] == n - 1
            distinct |= {(prompt // 2, *prompts[prompt, : i + 1].tolist()) for i in range(n)}
        assert len(set(found.index[row].flatten().tolist())) == len(distinct) <= found.tokens.shape[1]


def pairs_of(given_rows):
    tokens, length = (one.flatten(0, 1) for one in given_rows)
    answers = torch.tensor([[0, 1]]).repeat(len(length), 1)
    return Pairs(
        tokens=tokens, length=length, answers=answers, templates=("t",) * len(length), levels=("i",) * len(length)
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@settings(max_examples=25)
@given(rows_of_pairs(), st.integers(1, 2), st.integers(0, 99))
def test_answers_and_gates_gradients_are_those_of_prompts_side_by_side(config, given_rows, n_run, seed):
    model = random_model(config)
    model.requires_grad_(False)
    pairs, n_group, space = pairs_of(given_rows), len(given_rows[0]), NodeSpace.of(model.config)
    generator = torch.Generator().manual_seed(seed)
    kept = (torch.rand(n_run * n_group, space.n_node, generator=generator) < 0.7).float()
    values = space.split(torch.randn(n_run * n_group, space.n_node, generator=generator))
    weight = torch.randn(n_run, len(pairs), 2, generator=generator)
    weights = {name: linear.weight for name, linear in model.linears().items()}
    cuts = {name: torch.rand(len(kept), *w.shape, generator=generator) < 0.8 for name, w in weights.items()}
    source = {name: torch.randn(w.shape[1], generator=generator) for name, w in weights.items()}
    found = []
    for shares in (True, False):
        gates = kept.clone().requires_grad_()
        edits = {name: Gate(gate, values[name]) for name, gate in space.split(gates).items()}
        unlike = {} if shares else {"0.resid_in": lambda x: x}  # an edit that might do anything
        with cutting(model, {n: EdgeCut(c, source[n]) for n, c in cuts.items()}), replacing(model, edits | unlike):
            assert model.can_share_prefixes() == shares
            difference = logit_difference(model, pairs, n_run=n_run, n_group=n_group)
        found.append((difference.detach(), torch.autograd.grad((difference * weight).sum(), gates)[0]))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_edits_and_readers_that_may_tell_prompts_apart_are_refused():
    model = random_model()
    pairs = pairs_of((torch.tensor([[[[1, 2, 3], [1, 2, 4]]]]), torch.tensor([[3]])))
    prompts = pairs.shared()
    x = model.embed(prompts.tokens, position=prompts.position)
    with reading(model, "0.mlp.act_in"), pytest.raises(TapError, match="run them side by side"):
        model.run(x, prompts=prompts)
    with replacing(model, {"0.mlp.act_in": torch.zeros_like}), pytest.raises(TapError, match="side by side"):
        model.run(x, prompts=prompts)


def test_a_context_holds_the_longest_prompt_and_not_the_row():
    model = random_model(dataclasses.replace(BASE, n_ctx=4))
    tokens = torch.randint(4, (1, 3, 2, 4), generator=torch.Generator().manual_seed(0))
    logit_difference(model, pairs_of((tokens, torch.full((1, 3), 4))))
    with pytest.raises(ValueError, match="5 tokens exceed"):
        logit_difference(model, pairs_of((torch.zeros(1, 1, 2, 5, dtype=torch.long), torch.full((1, 1), 5))))


@given(rows_of_pairs(most=40), st.integers(1, 3), st.integers(1, 40), st.booleans())
@settings(max_examples=60)
def test_attention_of_last_queries_is_its_definition(given_rows, n_head, d, has_sink):
    found = SharedPrefixes.of(*given_rows)
    spans, generator = found.prompt_spans, torch.Generator().manual_seed(d)
    q, grad = (torch.randn(len(spans), n_head, d, generator=generator) for _ in range(2))
    both = torch.randn(found.tokens.numel(), 2, n_head, d, generator=generator)  # keys lie between values
    inputs = [q, both[:, 0], both[:, 1], *([torch.randn(n_head, generator=generator)] if has_sink else [])]
    results = []
    for attend, kind in ((kernels.last_attention, torch.float32), (reference.last_attention, torch.float64)):
        leaves = [x.to(kind).requires_grad_() for x in inputs]
        out = attend(*leaves[:3], leaves[3] if has_sink else None, spans)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(kind))])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=5e-6 * max(1.0, float(exact.abs().max())))


@given(rows_of_pairs(), st.booleans())
def test_attention_of_last_queries_is_that_of_all_at_the_last(given_rows, has_sink):
    found = SharedPrefixes.of(*given_rows)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(found.tokens.numel(), 2, 3, generator=generator) for _ in range(3))
    sink = torch.randn(2, generator=generator) if has_sink else None
    n_row, n_token = found.tokens.shape
    last = (found.last + n_token * torch.arange(n_row)[:, None]).flatten()
    out = kernels.last_attention(q[last], k, v, sink, found.prompt_spans)
    torch.testing.assert_close(out, reference.shared_attention(q, k, v, sink, found.spans)[last])


def test_what_is_not_finite_in_one_prompt_stays_there():
    q, k, v = (torch.randn(n, 1, 4, generator=torch.Generator().manual_seed(n)) for n in (2, 4, 4))
    v[3] = torch.inf
    out = kernels.last_attention(q, k, v, None, torch.tensor([[0, 2, 2, 3], [0, 1, 3, 2]]))
    assert out.isfinite().all(-1).all(-1).tolist() == [True, False]


@given(rows_of_pairs(most=40), st.integers(1, 2), st.integers(1, 20), st.booleans())
@settings(max_examples=40)
def test_attention_over_shared_prefixes_is_its_definition(given_rows, n_head, d, has_sink):
    found = SharedPrefixes.of(*given_rows)
    n_token, generator = found.tokens.numel(), torch.Generator().manual_seed(d)
    q, k, v, grad = (torch.randn(n_token, n_head, d, generator=generator) for _ in range(4))
    inputs = [q, k, v, *([torch.randn(n_head, generator=generator)] if has_sink else [])]
    results = []
    for attend, kind in ((kernels.shared_attention, torch.float32), (reference.shared_attention, torch.float64)):
        leaves = [x.to(kind).requires_grad_() for x in inputs]
        out = attend(*leaves[:3], leaves[3] if has_sink else None, found.spans)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(kind))])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=5e-6 * max(1.0, float(exact.abs().max())))


def test_attention_over_shared_prefixes_is_that_of_prompts_side_by_side():
    tokens = torch.tensor([[[[1, 2, 3, 4], [1, 2, 5, 6]], [[1, 1, 1, 0], [2, 1, 1, 0]]]])
    found = SharedPrefixes.of(tokens, torch.tensor([[4, 3]]))
    assert found.spans.tolist() == [[0, 2, 4, 4], [6, 0, 9, 3]]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(12, 2, 3, generator=generator) for _ in range(3))
    out = kernels.shared_attention(q, k, v, None, found.spans)
    for prompt, length in zip(found.index[0].flatten(0, 1), (4, 4, 3, 3), strict=True):
        places = prompt[:length]
        plain = reference.sink_attention(*(x[places].transpose(0, 1)[None] for x in (q, k, v)), None)[0].transpose(0, 1)
        torch.testing.assert_close(out[places], plain)


def test_what_is_not_finite_in_one_pair_stays_there():
    spans = SharedPrefixes.of(torch.tensor([[[[1, 2], [1, 3]], [[1, 2], [1, 3]]]]), torch.tensor([[2, 2]])).spans
    q, k, v = (torch.randn(6, 1, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    v[2] = torch.nan
    out = kernels.shared_attention(q, k, v, None, spans)
    assert out.isnan().any(-1).any(-1).tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("spans", [[[0, 2, 3, 4]], [[0, 5, 4, 4]], [[-1, 0, 2, 2]]])
def test_spans_that_reach_too_far_are_refused_before_memory_is_read(spans):
    q = torch.zeros(4, 1, 2)
    with pytest.raises(ValueError, match="spans reach beyond the 4 tokens"):
        kernels.shared_attention(q, q, q, None, torch.tensor(spans))


@pytest.mark.parametrize("spans", [[[0, 2, 3, 4]], [[0, 5, 0, 4]], [[-1, 0, 2, 2]], [[0, 0, 0, 0]]])
def test_last_queries_spans_that_reach_too_far_are_refused(spans):
    k = torch.zeros(4, 1, 2)
    with pytest.raises(ValueError, match="spans reach beyond the 4 tokens, or are empty"):
        kernels.last_attention(k[:1], k, k, None, torch.tensor(spans))
