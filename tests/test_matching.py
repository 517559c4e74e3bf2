"""A dense model of equal loss: the search on a curve that is known, the interpolation by hand, and one real run."""

import dataclasses
import json
import math
import xml.etree.ElementTree as ET

import pytest

import sparse_circuits as sc
from sparse_circuits import matching, survey
from sparse_circuits.configs import MatchConfig, PruneConfig, TrainConfig
from sparse_circuits.errors import ConfigError, FormatError
from sparse_circuits.matching import (
    NEAR,
    between,
    bracket,
    compare_circuits,
    dense_config,
    first_width,
    share_of_larger,
    table,
)


@pytest.mark.parametrize("first", [8, 48, 80, 512])
def test_the_search_closes_in_on_the_width_whose_loss_is_the_targets(first):
    seen = []

    def loss_of(width):
        seen.append(width)
        return 4 - 0.3 * math.log(width)

    worse, better = bracket(loss_of, 4 - 0.3 * math.log(100), first=first, step=8, n_model=12)
    assert worse < 100 <= better
    assert better / worse <= NEAR
    assert len(set(seen)) == len(seen), "no width is trained twice"


def test_a_loss_that_no_width_reaches_is_said_with_what_was_tried():
    with pytest.raises(ConfigError, match=r"loss 1\.000 between theirs \(d_model 8: 2\.000, 16: 2\.000"):
        bracket(lambda width: 2.0, 1.0, first=8, step=8, n_model=3)


def test_the_narrowest_width_may_already_be_better():
    with pytest.raises(ConfigError, match=r"d_model 8: 2\.000, 16: 2\.000"):
        bracket(lambda width: 2.0, 3.0, first=16, step=8, n_model=9)


def test_interpolation_by_hand():
    assert share_of_larger(3.2, 3.5, 3.0) == pytest.approx(0.6)
    assert between(10, 1000, 0.5) == pytest.approx(100)
    assert between(10, 1000, 0) == pytest.approx(10)


def test_the_first_width_has_as_many_weights_as_there_are_nonzeros():
    config = TrainConfig()
    wanted = 2 * 2048 * 48 + 3 * 12 * 48**2  # embeddings, and 12 d² a layer
    assert first_width(config, wanted) == 48
    dense = dense_config(config, 48, lr=0.01)
    assert (dense.model.n_head, dense.model.d_head, dense.model.d_mlp) == (3, 16, 192)
    assert dense.model.act_density is None
    assert dense.sparsity.matrix_density == dense.sparsity.bias_density == 1
    assert (dense.n_token, dense.shares, dense.model.bigram) == (config.n_token, config.shares, config.model.bigram)


def test_circuits_are_compared_on_the_tasks_that_all_three_solve():
    def row(n_node, *, is_bigram_solvable=False):
        return {"n_node": n_node, "is_bigram_solvable": is_bigram_solvable}

    easy = {"c": row(1, is_bigram_solvable=True)}  # in no mean
    sparse = {"tasks": {"a": row(10), "b": row(5), **easy}, "skipped": {}}
    small = {"tasks": {"a": row(100), **easy}, "skipped": {"b": "why"}}
    large = {"tasks": {"a": row(400), "b": row(7), **easy}, "skipped": {}}
    found = compare_circuits([sparse, small, large], 0.5)
    assert found["tasks"]["a"] == {
        "sparse": 10,
        "dense": pytest.approx(200),
        "dense_two": [100, 400],
        "ratio": pytest.approx(20),
    }
    assert found["tasks"]["c"]["ratio"] == 1
    assert found["geometric_mean"] == pytest.approx(20)
    assert found["left_out"] == {"b": "smaller dense: why"}


def test_dense_circuits_that_are_smaller_pull_the_mean_below_one():
    surveys = [
        {"tasks": {n: {"n_node": size, "is_bigram_solvable": False} for n, size in sizes.items()}, "skipped": {}}
        for sizes in ({"a": 20, "b": 10}, {"a": 10, "b": 20}, {"a": 10, "b": 20})
    ]
    assert compare_circuits(surveys, 0.5)["geometric_mean"] == pytest.approx(1)


def test_a_control_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="nonsense_for_while is a control, which no model solves"):
        sc.match(tmp_path, tmp_path / "out", tasks=["bracket_brace", "nonsense_for_while"])
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    with pytest.raises(FormatError, match="not a finished run"):
        sc.match(tmp_path, tmp_path / "out")


def test_a_match_is_trained_told_and_gone_on_with(tmp_path, quick_run, idioms_corpus):
    # What is matched is itself dense, of 16 channels: then it is known that 8 are worse and 32 better.
    run = dataclasses.replace(quick_run, n_token=60 * 4 * 16, model=dataclasses.replace(quick_run.model, bigram="none"))
    narrow, wide = (dense_config(run, width, lr=0.01) for width in (8, 32))
    losses = {}
    for width, config in ((8, narrow), (32, wide)):
        sc.train(config, corpus=idioms_corpus, out=tmp_path / f"match/dense-{width}")
        records = (tmp_path / f"match/dense-{width}/metrics.jsonl").read_text().splitlines()
        losses[width] = json.loads(records[-1])["validation_loss"]["idioms"]
    assert losses[32] < losses[8], "a wider model learns faster"
    sc.train(dense_config(run, 16, lr=0.01), corpus=idioms_corpus, out=tmp_path / "run")
    config = MatchConfig(lr=0.01, first_width=8, n_model=4)
    found = sc.match(tmp_path / "run", tmp_path / "match", config)
    low, high = found["dense"]
    assert low["loss"] > found["sparse"]["loss"] >= high["loss"]
    assert low["n_nonzero"] <= found["interpolated"]["n_nonzero"] <= high["n_nonzero"]
    assert json.loads((tmp_path / "match/match.json").read_text()) == found
    assert "dense of equal loss" in table(found)
    assert sc.match(tmp_path / "run", tmp_path / "match", config) == found
    with pytest.raises(ConfigError, match=r"dense-8 was trained with other settings"):
        sc.match(tmp_path / "run", tmp_path / "match", dataclasses.replace(config, lr=0.02))


def test_the_circuits_of_all_three_models_are_compared_and_drawn(tmp_path, untrained_run, monkeypatch):
    monkeypatch.setattr(survey, "SOLVED", 1.0)  # models that read 128 tokens stand for ones that solved the task
    monkeypatch.setattr(matching, "bracket", lambda loss_of, *_, **__: tuple(w for w in (8, 32) if loss_of(w)))
    easy = PruneConfig(n_step=2, n_pair=2, target_loss=0.75, margin=0, max_auroc=1.0, n_mean_token=1, cuts_edges=False)
    out = tmp_path / "match"
    found = sc.match(untrained_run, out, tasks=["bracket_brace", "else_elif"], prune_config=easy)
    sizes = [
        json.loads((out / f"circuits/{name}/summary.json").read_text())["tasks"]["bracket_brace"]["n_node"]
        for name in ("sparse", "dense-8", "dense-32")
    ]
    row = found["circuits"]["tasks"]["bracket_brace"]
    weight = share_of_larger(found["sparse"]["loss"], *(dense["loss"] for dense in found["dense"]))
    assert [row["sparse"], *row["dense_two"]] == sizes
    assert row["ratio"] == pytest.approx(between(*sizes[1:], weight) / sizes[0])
    assert list(found["circuits"]["left_out"]) == ["else_elif"]
    assert f"left out else_elif: {found['circuits']['left_out']['else_elif']}" in table(found)
    assert found["circuits"]["left_out"]["else_elif"].startswith("larger dense: ")
    root = ET.fromstring((out / "curves.svg").read_text())
    assert {"sparse", "dense-8", "dense-32"} <= {text.text for text in root.iter() if text.tag.endswith("text")}
    assert f"geometric mean of the ratios: {row['ratio']:.1f}" in table(found)


def test_a_first_width_that_heads_do_not_fill_is_refused(tmp_path, untrained_run):
    d_head = sc.load(untrained_run).config.d_head
    with pytest.raises(ConfigError, match=f"first_width is {d_head + 1}, expected a multiple of .* {d_head}"):
        sc.match(untrained_run, tmp_path / "out", MatchConfig(first_width=d_head + 1))
    assert not (tmp_path / "out").exists()


def test_match_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="n_model is 1, expected 2 or more"):
        MatchConfig(n_model=1)
