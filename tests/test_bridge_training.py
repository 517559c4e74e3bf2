"""Bridge training is a run like any other: exact resume, whole checkpoints, clear refusals, and it learns."""

import dataclasses
import json
import math
import os

import pytest
import torch
from bridge_models import random_model
from test_training import assert_same_run

from sparse_circuits import checkpoint, training
from sparse_circuits.bridges import learning
from sparse_circuits.bridges.learning import train_bridges
from sparse_circuits.bridges.maps import Bridge, site_pairs
from sparse_circuits.bridges.residual import OwnModel
from sparse_circuits.bridges.ridge import ridge_bridge
from sparse_circuits.configs import BridgeConfig
from sparse_circuits.errors import ConfigError, DivergedError, FormatError, OutputExistsError, WrongModelError
from sparse_circuits.loading import load
from sparse_circuits.runlog import read_records

CONFIG = BridgeConfig(sites_per_step=2, position_share=0.5, n_ridge_token=500, n_token=12 * 4 * 16, batch_size=4)


@pytest.fixture(scope="module")
def short(quick_run):
    return dataclasses.replace(quick_run, n_token=20 * 4 * 16)


@pytest.fixture(scope="module")
def dense_run(idioms_corpus, quick_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("dense") / "run"
    model = dataclasses.replace(quick_run.model, act_density=None, d_model=12)
    sparsity = dataclasses.replace(
        quick_run.sparsity, matrix_density=1.0, embedding_density=1.0, bias_density=1.0, anneal="none", n_alive=0
    )
    training.train(dataclasses.replace(quick_run, model=model, sparsity=sparsity), corpus=idioms_corpus, out=out)
    return out


@pytest.fixture(scope="module")
def sparse_run(idioms_corpus, quick_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("sparse") / "run"
    training.train(quick_run, corpus=idioms_corpus, out=out)
    return out


@pytest.fixture(scope="module")
def bridged(dense_run, short, tmp_path_factory):
    out = tmp_path_factory.mktemp("bridged") / "run"
    train_bridges(CONFIG, dense=dense_run, out=out, train=short)
    return out


def test_twenty_steps_are_seven_an_interrupt_and_thirteen_bit_for_bit(bridged, dense_run, short, tmp_path):
    parts = tmp_path / "parts"
    for stop_after in (7, 7, 0):  # what is there already is never called whole
        with pytest.raises(training.Interrupted, match="stopped after step 7; the same command goes on"):
            train_bridges(CONFIG, dense=dense_run, out=parts, train=short, stop_after=stop_after)
    train_bridges(CONFIG, dense=dense_run, out=parts, train=short)
    assert_same_run(bridged, parts)
    assert (bridged / "bridges.safetensors").read_bytes() == (parts / "bridges.safetensors").read_bytes()
    first, second = (read_records(run / "metrics.jsonl") for run in (bridged, parts))
    assert [r["step"] for r in second] == list(range(20))
    assert [r["total"] for r in first] == [r["total"] for r in second]
    assert len(first[0]["kl_to_sparse"]) == 2
    assert len(first[0]["nmse_encoder"]) == 3
    assert "validation_loss" in first[-1]


def test_rates_end_at_zero_at_the_extra_step(dense_run, short, tmp_path):
    train = dataclasses.replace(short, extra_step=True, optimizer=dataclasses.replace(short.optimizer, decay_lr=True))
    train_bridges(CONFIG, dense=dense_run, out=tmp_path / "run", train=train)
    records = read_records(tmp_path / "run/metrics.jsonl")
    assert [r["step"] for r in records][-1] == 20
    assert (records[-1]["lr"], records[-1]["bridge_lr"]) == (0, 0) != (records[-2]["lr"], records[-2]["bridge_lr"])


def test_a_bridged_run_is_a_run_folder_and_a_bridge(bridged, dense_run):
    found = Bridge.load(bridged)
    assert found.dense.hash == OwnModel(load(dense_run)).hash
    assert found.sparse_stream.hash == OwnModel(load(bridged)).hash
    assert found.kind == "trained"
    assert all(s > 0 and d > 0 for s, d in found.rms)
    assert load(bridged).tokenizer is not None


def test_it_starts_from_a_finished_sparse_run_and_leaves_its_density(dense_run, sparse_run, tmp_path):
    out = tmp_path / "on"
    config = dataclasses.replace(CONFIG, n_ridge_token=8000, batch_size=64, n_token=3 * 64 * 16)
    train_bridges(config, dense=dense_run, sparse=sparse_run, out=out)
    before, after = (dict(load(run).named_parameters()) for run in (sparse_run, out))
    for name, p in before.items():
        if p.ndim == 2:
            assert int(after[name].count_nonzero()) <= int(p.count_nonzero()), name
    first = read_records(out / "metrics.jsonl")[0]
    assert max(first["nmse_decoder"]) < 1  # the ridge start beats the mean of a thousand tokens


def test_a_quick_bridge_is_the_least_squares_solution(dense_run, sparse_run, idioms_corpus, quick_run):
    sparse, dense = load(sparse_run), load(dense_run)
    config = dataclasses.replace(CONFIG, ridge=1e-9, encoder_density=None)
    found = ridge_bridge(sparse=sparse, dense=dense, corpus=idioms_corpus, train=quick_run, config=config)
    batches = training.batches_of(dataclasses.replace(quick_run, batch_size=16, n_token=2 * 16 * 16), idioms_corpus)
    tokens = torch.cat([batches(step) for step in range(2)])
    assert found.settings["n_token"] == tokens.numel()
    with torch.no_grad():
        x = sparse.run(sparse.embed(tokens), 0, 1).flatten(0, 1).double()
        y = dense.run(dense.embed(tokens), 0, 1).flatten(0, 1).double()
    ones = torch.ones(len(x), 1, dtype=torch.double)
    solution = torch.linalg.lstsq(torch.cat((x, ones), 1), y, driver="gelsd").solution
    predicted = found.bridges.decode(1, x.float()).double()
    best = torch.cat((x, ones), 1) @ solution
    assert float((predicted - y).square().sum()) == pytest.approx(float((best - y).square().sum()), rel=1e-3)
    assert found.rms[1][1] == pytest.approx(float(y.square().mean(-1).mean().sqrt()), rel=1e-5)


def test_training_lowers_the_kl_of_hybrids_below_that_of_ridge_bridges(dense_run, sparse_run, tmp_path):
    config = dataclasses.replace(CONFIG, n_token=150 * 4 * 16, sites_per_step=None, position_share=1.0)
    train_bridges(config, dense=dense_run, sparse=sparse_run, out=tmp_path / "run")
    records = read_records(tmp_path / "run/metrics.jsonl")

    def mean_kl(part):
        return sum(sum(r[k].values()) for r in part for k in ("kl_to_sparse", "kl_to_dense")) / len(part) / 6

    assert mean_kl(records[-20:]) < 0.8 * mean_kl(records[:20])


def test_a_bridge_refuses_another_pair_by_hash(bridged, sparse_run):
    other = load(sparse_run)
    with pytest.raises(WrongModelError, match=r"its sparse model is \w{12} .*this is model \w{12}"):
        Bridge.load(bridged, sparse=other)
    with pytest.raises(WrongModelError, match="its dense model is"):
        Bridge.load(bridged, dense=other)


def test_a_bridge_round_trips(dense_run, sparse_run, idioms_corpus, quick_run, tmp_path):
    paths = (str(dense_run), str(sparse_run))
    found = ridge_bridge(
        sparse=load(sparse_run),
        dense=load(dense_run),
        corpus=idioms_corpus,
        train=quick_run,
        config=CONFIG,
        paths=paths,
    )
    found.save(tmp_path / "quick")
    again = Bridge.load(tmp_path / "quick")
    for name, tensor in found.bridges.state_dict().items():
        assert torch.equal(tensor, again.bridges.state_dict()[name])
    assert (again.rms, again.kind, again.bridges.n_keep) == (found.rms, "ridge", 8)
    assert json.loads((tmp_path / "quick/bridge.json").read_text())["sites"] == [[0, 0], [1, 1], [2, 2]]
    with pytest.raises(OutputExistsError):
        found.save(tmp_path / "quick")
    (tmp_path / "quick/DONE").unlink()
    with pytest.raises(FormatError, match="not written to its end"):
        Bridge.load(tmp_path / "quick")


def test_a_diverging_loss_stops_and_leaves_the_last_checkpoint(dense_run, short, tmp_path, monkeypatch):
    stepped = learning.backward

    def diverges(*args, step, **kwargs):
        losses = stepped(*args, step=step, **kwargs)
        return dataclasses.replace(losses, next_token=2.1 * math.log(512)) if step == 13 else losses

    monkeypatch.setattr(learning, "backward", diverges)
    with pytest.raises(DivergedError, match=r"at step 13 .*: it diverged; the last good checkpoint is .*00000010"):
        train_bridges(CONFIG, dense=dense_run, out=tmp_path / "run", train=short)
    assert checkpoint.latest_checkpoint(tmp_path / "run").name == "00000010"
    monkeypatch.undo()
    train_bridges(CONFIG, dense=dense_run, out=tmp_path / "run", train=short)


def test_other_settings_and_another_dense_model_are_refused_in_a_started_folder(dense_run, sparse_run, short, tmp_path):
    with pytest.raises(training.Interrupted):
        train_bridges(CONFIG, dense=dense_run, out=tmp_path / "run", train=short, stop_after=2)
    with pytest.raises(ConfigError, match="started with another lr"):
        train_bridges(dataclasses.replace(CONFIG, lr=0.5), dense=dense_run, out=tmp_path / "run", train=short)
    with pytest.raises(ConfigError, match="started with another hash"):
        train_bridges(CONFIG, dense=sparse_run, out=tmp_path / "run", train=short)


def test_models_of_different_depth_need_a_map():
    deep, flat = OwnModel(random_model(0, n_layer=2)), OwnModel(random_model(1, n_layer=1))
    with pytest.raises(ConfigError, match="sparse model has 2 layers, the dense one 1: give a map"):
        site_pairs((), sparse=deep, dense=flat)
    assert site_pairs(("0:0", "4:2"), sparse=deep, dense=flat) == ((0, 0), (4, 2))
    for wrong, message in (
        (("0:0", "x"), "'x', expected two numbers"),
        (("5:0",), "sites 0 to 4"),
        (("2:1", "1:2"), "both numbers must rise"),
    ):
        with pytest.raises(ConfigError, match=message):
            site_pairs(wrong, sparse=deep, dense=flat)


def test_another_tokenizer_is_refused_with_what_to_do(dense_run, short, tmp_path, untrained_run):
    with pytest.raises(ConfigError, match=r"another tokenizer .1,024 tokens. than the dense model .512.*corpus --tok"):
        train_bridges(
            CONFIG, dense=dense_run, corpus=untrained_run.parent / "corpus", out=tmp_path / "run", train=short
        )
    assert not (tmp_path / "run").exists()


def test_as_many_logits_are_needed(dense_run, short, tmp_path):
    wide = dataclasses.replace(short, model=dataclasses.replace(short.model, n_vocab=520))
    with pytest.raises(ConfigError, match="has logits for 512 tokens, the sparse model for 520"):
        train_bridges(CONFIG, dense=dense_run, out=tmp_path / "run", train=wide)


def test_a_model_given_as_an_object_brings_its_folder(dense_run, sparse_run, idioms_corpus, quick_run, tmp_path):
    found = ridge_bridge(
        sparse=load(sparse_run), dense=load(dense_run), corpus=idioms_corpus, train=quick_run, config=CONFIG
    )
    found.save(tmp_path / "quick")
    assert Bridge.load(tmp_path / "quick").paths == tuple(
        str(tmp_path / "quick" / os.path.relpath(run, tmp_path / "quick")) for run in (dense_run, sparse_run)
    )


def test_settings_or_text_alone_are_taken_beside_what_the_run_has(bridged, idioms_corpus, short):
    bridge = Bridge.load(bridged)
    other = dataclasses.replace(short, context=16)
    train, corpus = bridge.text(train=other)
    assert (train, corpus.hash) == (other, idioms_corpus.hash)
    assert bridge.text(corpus=idioms_corpus)[1] is idioms_corpus


def test_a_start_is_needed_and_only_one(dense_run, sparse_run, short, tmp_path):
    for start in ({}, {"sparse": sparse_run, "train": short}):
        with pytest.raises(ConfigError, match="give either"):
            train_bridges(CONFIG, dense=dense_run, out=tmp_path / "run", **start)
