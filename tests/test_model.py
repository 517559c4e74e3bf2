"""Tests of the forward pass: every way to compute the same thing gives the same thing."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from random_models import AT, BASE, CONFIGS, DENSE, assert_close, random_model, random_tokens
from torch import Tensor

from sparse_circuits import kernels
from sparse_circuits.model import LayerCache, Transformer, at_position, sinusoids
from sparse_circuits.taps import reading


@pytest.fixture(params=CONFIGS, name="model")
def any_model(request: pytest.FixtureRequest) -> Transformer:
    return random_model(CONFIGS[request.param])


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_a_position_ignores_later_ones(model: Transformer) -> None:
    tokens, other = random_tokens(), random_tokens(seed=2)
    for position in (0, 5):
        mixed = torch.cat((tokens[:, : position + 1], other[:, position + 1 :]), 1)
        assert_close(model(mixed)[:, : position + 1], model(tokens)[:, : position + 1])


def test_a_position_sees_earlier_ones(model: Transformer) -> None:
    tokens = random_tokens()
    changed = tokens.clone()
    changed[:, 0] = (tokens[:, 0] + 1) % BASE.n_vocab
    assert float((model(changed)[:, -1] - model(tokens)[:, -1]).abs().max()) > 1e-4


def test_padding_on_the_right_is_harmless(model: Transformer) -> None:
    tokens = random_tokens()
    padded = torch.cat((tokens, torch.zeros(4, 3, dtype=torch.long)), 1)
    assert_close(model(padded)[:, :9], model(tokens))


def test_rows_do_not_see_each_other(model: Transformer) -> None:
    tokens = random_tokens()
    assert_close(torch.cat([model(row[None]) for row in tokens]), model(tokens))


def test_one_position_a_row_is_that_of_the_full_forward(model: Transformer) -> None:
    tokens = random_tokens()
    assert_close(model(tokens, at=AT), at_position(model(tokens), AT[:, None]))


def test_some_tokens_logits_are_those_of_the_full_forward(model: Transformer) -> None:
    tokens, vocab = random_tokens(), torch.tensor([[0, 29], [5, 5], [29, 1], [7, 12]])
    full = model(tokens)
    expected = full.gather(2, vocab[:, None].expand(-1, 9, -1))
    assert_close(model(tokens, vocab=vocab), expected)
    assert_close(model(tokens, at=AT, vocab=vocab), at_position(expected, AT[:, None]))


def test_the_reference_kernels_give_the_same_logits(model: Transformer) -> None:
    tokens = random_tokens()
    with kernels.use("reference"):
        expected, expected_at = model(tokens), model(tokens, at=AT)
    assert_close(model(tokens), expected)
    assert_close(model(tokens, at=AT), expected_at)


def test_a_forward_is_embed_run_and_unembed(model: Transformer) -> None:
    tokens = random_tokens()
    assert torch.equal(model.unembed(model.run(model.embed(tokens)), tokens), model(tokens))


def test_sublayer_by_sublayer_is_the_run_at_once_bit_for_bit(model: Transformer) -> None:
    x = model.embed(random_tokens())
    sites = [x]
    for sublayer in range(2 * BASE.n_layer):
        sites.append(model.run(sites[-1], sublayer, sublayer + 1))
    assert torch.equal(sites[-1], model.run(x))
    for start in range(3):
        for stop in (start, start + 2):
            assert torch.equal(model.run(sites[start], start, stop), sites[stop])


def test_sublayer_by_sublayer_is_the_run_at_once_also_at_one_position_a_row(
    model: Transformer, request: pytest.FixtureRequest
) -> None:
    x = start = model.embed(random_tokens())
    for sublayer in range(4):
        x = model.run(x, sublayer, sublayer + 1, at=AT)
    assert torch.equal(x, model.run(start, at=AT))


def test_the_sites_of_a_run_are_the_taps_of_the_stream(model: Transformer) -> None:
    tokens = random_tokens()
    with reading(model, "*.resid_in", "*.resid_mid", "final_resid") as seen:
        model(tokens)
    x = model.embed(tokens)
    for site, name in enumerate(("0.resid_in", "0.resid_mid", "1.resid_in", "1.resid_mid", "final_resid")):
        assert torch.equal(model.run(x, 0, site), seen[name])


def greedy(model: Transformer, tokens: Tensor, n_token: int) -> Tensor:
    for _ in range(n_token):
        logits = model(tokens[:, -model.config.n_ctx :])[:, -1]
        tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), 1)
    return tokens


def test_generation_with_the_cache_is_generation_without_also_beyond_the_context(model: Transformer) -> None:
    for n_prompt, n_token in ((1, 4), (10, 4), (14, 2)):
        tokens = random_tokens(3, n_prompt)
        assert torch.equal(model.generate(tokens, n_token), greedy(model, tokens, n_token))


def test_samples_depend_on_their_generator_alone() -> None:
    model, tokens = random_model(), random_tokens()
    one, again, other = (model.generate(tokens, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(one[:, :9], tokens)
    assert torch.equal(model.generate(tokens, 0), tokens)


def test_a_run_behind_a_cache_is_the_end_of_the_whole_run(model: Transformer) -> None:
    tokens = random_tokens()
    cache = [LayerCache() for _ in model.blocks]
    first = model.run(model.embed(tokens[:, :4]), cache=cache)
    rest = model.run(model.embed(tokens[:, 4:], offset=4), cache=cache)
    assert cache[0].n_pos == 9
    assert_close(torch.cat((first, rest), 1), model.run(model.embed(tokens)))


def test_sublayer_by_sublayer_behind_a_cache_is_the_end_of_the_whole_run(model: Transformer) -> None:
    tokens = random_tokens()
    for n_before in (1, tokens.shape[1] // 2, tokens.shape[1] - 1):
        cache = [LayerCache() for _ in model.blocks]
        n_sublayer = 2 * model.config.n_layer
        model.run(model.embed(tokens[:, :n_before]), cache=cache)
        x = model.embed(tokens[:, n_before:], offset=n_before)
        for sublayer in range(n_sublayer):
            x = model.run(x, sublayer, sublayer + 1, cache=cache)
        x = model.run(x, n_sublayer, cache=cache)
        assert_close(x, model.run(model.embed(tokens))[:, n_before:])


def test_generating_from_nothing_or_less_than_nothing_is_refused(model: Transformer) -> None:
    tokens = random_tokens()
    for prompt, n_token in ((tokens[:, :0], 3), (tokens, -1)):
        with pytest.raises(ValueError, match="expected 0 or more after 1 or more"):
            model.generate(prompt, n_token)


def test_tokens_beyond_the_context_are_refused(model: Transformer) -> None:
    assert model(random_tokens(1, 12)).shape == (1, 12, 30)
    with pytest.raises(ValueError, match="13 tokens exceed the model's context of 12"):
        model(random_tokens(1, 13))
    with pytest.raises(ValueError, match="13 tokens exceed"):
        model.embed(random_tokens(1, 1), offset=12)


def test_a_sink_takes_its_share_of_attention() -> None:
    # At the first position there are the token itself and the sink: the value passes times e^s / (e^s + e^sink).
    model = random_model(DENSE)
    sink = 1.3
    model.get_parameter("blocks.0.attn.sink").fill_(sink)
    with reading(model, "0.attn.*") as seen:
        model(random_tokens())
    q, k, v, y = (seen[f"0.attn.{name}"][:, 0].unflatten(-1, (2, 8)) for name in ("q", "k", "v", "y"))
    score = (q * k).sum(-1, keepdim=True) / 8**0.5
    assert_close(y, v * score.exp() / (score.exp() + torch.tensor(sink).exp()))


def test_the_norm_gives_unit_mean_square_times_the_gain() -> None:
    model = random_model(DENSE)
    with reading(model, "0.resid_in", "0.attn.act_in", "0.attn.norm_scale") as seen:
        model(random_tokens())
    gain = model.get_parameter("blocks.0.attn.read.norm.weight")
    read = seen["0.attn.act_in"] / gain
    assert_close(read.square().mean(-1), torch.ones(4, 9))
    assert_close(seen["0.resid_in"] * seen["0.attn.norm_scale"], read)


def test_the_bigram_table_adds_the_row_of_the_current_token() -> None:
    tokens, with_table = random_tokens(), random_model()
    table = with_table.bigram.detach().clone()
    logits = with_table(tokens)
    with_table.bigram.zero_()
    assert_close(logits, with_table(tokens) + table[tokens])


@pytest.mark.parametrize("trains", [True, False])
def test_the_last_row_of_the_bigram_table_learns_only_where_it_shall(trains: bool) -> None:
    model = random_model(dataclasses.replace(BASE, bigram_trains_last_row=trains))
    with torch.enable_grad():
        model(torch.tensor([[3, 29]])).sum().backward()
    grad = model.bigram.grad
    assert grad is not None
    assert grad[3].tolist() == [1.0] * 30
    assert grad[29].tolist() == [float(trains)] * 30


def test_waves_by_hand() -> None:
    # Two waves, of periods 4 and 16; the fifth column is empty.
    waves = sinusoids(16, 5)
    assert_close(waves[0], torch.tensor([0.0, 0, 1, 1, 0]))
    assert_close(waves[1, 0], torch.tensor(1.0))
    assert_close(waves[4], torch.tensor([0.0, 1, 1, 0, 0]))
    assert_close(waves[2, [0, 2]], torch.tensor([0.0, -1.0]))
