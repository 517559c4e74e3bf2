"""Tests of the settings: they save and load, and a wrong one is told by file, field and nearest name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sparse_circuits.configs import (
    CorpusConfig,
    DemoConfig,
    ModelConfig,
    OptimizerConfig,
    PruneConfig,
    SparsityConfig,
    TrainConfig,
)
from sparse_circuits.errors import ConfigError, FormatError, did_you_mean
from sparse_circuits.presets import DEMO_PRESETS, TRAIN_PRESETS
from sparse_circuits.settings import Config

CLASSES = (ModelConfig, SparsityConfig, OptimizerConfig, TrainConfig, CorpusConfig, PruneConfig, DemoConfig)

# Settings that differ from the defaults in every kind of field: None, tuple, dict, Literal, nested.
UNUSUAL: list[Config] = [
    ModelConfig(act_density=None, act_sites=("attn.q", "resid_mid"), norm="layer", norm_bias=True, d_mlp=3),
    ModelConfig(positions="concatenated", d_position=5, bigram="none", residual_activation="relu"),
    SparsityConfig(matrix_density=0.01, anneal="none", n_alive=0),
    OptimizerConfig(lr=1e-4, gradient="clip", decay_lr=False),
    TrainConfig(shares={"a folder/with code": 0.25, "dist:numpy": 0.75}, sparsity=SparsityConfig(matrix_density=1.0)),
    CorpusConfig(sources=("idioms", "dist:numpy", "/some where"), validation_frac=0.5),
    PruneConfig(max_auroc=1.0, ablation="zero"),
    *TRAIN_PRESETS.values(),
    *DEMO_PRESETS.values(),
]


def written(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("config", [*(c() for c in CLASSES), *UNUSUAL], ids=lambda c: type(c).__name__)
def test_settings_come_back_from_a_file_as_they_were(config: Config, tmp_path: Path) -> None:
    config.save(tmp_path / "made" / "config.json")
    assert type(config).load(tmp_path / "made" / "config.json") == config


@pytest.mark.parametrize("kind", CLASSES)
def test_fields_left_out_keep_their_default(kind: type[Config], tmp_path: Path) -> None:
    assert kind.load(written(tmp_path / "config.json", {})) == kind()


def test_a_saved_file_names_every_field(tmp_path: Path) -> None:
    TrainConfig().save(tmp_path / "config.json")
    data = json.loads((tmp_path / "config.json").read_text())
    assert list(data) == [field.name for field in dataclasses.fields(TrainConfig)]
    assert list(data["model"]) == [field.name for field in dataclasses.fields(ModelConfig)]


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (TrainConfig, {"model": {"d_modle": 3}}, "model.d_modle is not a setting; did you mean d_model"),
        (DemoConfig, {"train": {"optimizer": {"betta1": 0.5}}}, "train.optimizer.betta1 is not a setting; did you"),
        (PruneConfig, {"zzzz": 1}, "zzzz is not a setting; known are target_loss, margin, goal"),
        (ModelConfig, {"d_model": "128"}, "d_model is '128', expected int"),
        (ModelConfig, {"d_model": 128.0}, "d_model is 128.0, expected int"),
        (ModelConfig, {"d_model": True}, "d_model is True, expected int"),
        (ModelConfig, {"d_model": None}, "d_model is None, expected int"),
        (ModelConfig, {"linear_bias": 1}, "linear_bias is 1, expected bool"),
        (OptimizerConfig, {"lr": True}, "lr is True, expected float"),
        (OptimizerConfig, {"lr": "fast"}, "lr is 'fast', expected float"),
        (ModelConfig, {"act_density": "all"}, "act_density is 'all', expected float"),
        (ModelConfig, {"act_sites": "attn.q"}, "act_sites is 'attn.q', expected tuple"),
        (ModelConfig, {"act_sites": ["attn.q", 3]}, r"act_sites\[1\] is 3, expected str"),
        (TrainConfig, {"shares": {"idioms": "all"}}, "shares.idioms is 'all', expected float"),
        (TrainConfig, {"model": 3}, "model is 3, expected ModelConfig"),
        (TrainConfig, {"shares": [1.0]}, r"shares is \[1.0\], expected dict"),
        (ModelConfig, {"activation": "gelo"}, "activation is 'gelo'; did you mean gelu?"),
        (TrainConfig, {"weights": "zip"}, "weights is 'zip'; known are packed, plain"),
        (ModelConfig, {"norm": 1}, "norm is 1; known are rms, layer"),
        (TrainConfig, {"model": {"d_model": 0}}, "model.d_model is 0, expected 1 or more"),
        (DemoConfig, {"train": {"model": {"act_density": 2}}}, "train.model.act_density is 2.0, expected"),
    ],
)
def test_a_wrong_file_is_told_by_file_and_field(
    kind: type[Config], data: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "config.json", data)
    with pytest.raises(ConfigError, match=message) as caught:
        kind.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(path)) == 1


def test_whole_numbers_stand_for_fractions_but_not_the_other_way_round(tmp_path: Path) -> None:
    config = SparsityConfig.load(written(tmp_path / "config.json", {"matrix_density": 1}))
    assert isinstance(config.matrix_density, float)
    with pytest.raises(ConfigError, match=r"n_alive is 4\.5, expected int"):
        SparsityConfig.load(written(tmp_path / "config.json", {"n_alive": 4.5}))


def test_null_is_read_only_where_a_setting_may_be_none(tmp_path: Path) -> None:
    assert ModelConfig.load(written(tmp_path / "config.json", {"act_density": None})).act_density is None
    with pytest.raises(ConfigError, match="matrix_density is None, expected float"):
        SparsityConfig.load(written(tmp_path / "config.json", {"matrix_density": None}))


def test_a_file_that_is_no_settings_is_a_format_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        ModelConfig.load(tmp_path / "config.json")
    with pytest.raises(FormatError, match="expected an object"):
        ModelConfig.load(written(tmp_path / "config.json", [1]))


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        *((ModelConfig, {name: 0}, name) for name in ("n_vocab", "n_ctx", "n_layer", "d_model", "n_head", "d_head")),
        (ModelConfig, {"d_mlp": -1}, "d_mlp"),
        (ModelConfig, {"act_density": 0.0}, "act_density"),
        (ModelConfig, {"act_density": 1.5}, "act_density"),
        (ModelConfig, {"act_sites": ("attn.qq",)}, "act_sites"),
        (ModelConfig, {"norm_bias": True}, "norm_bias"),
        (ModelConfig, {"positions": "concatenated"}, "d_position"),
        (ModelConfig, {"d_position": 8}, "d_position"),
        (ModelConfig, {"n_vocab": 8193}, "bigram"),
        (SparsityConfig, {"matrix_density": 0.0}, "matrix_density"),
        (SparsityConfig, {"embedding_density": 1.1}, "embedding_density"),
        (SparsityConfig, {"bias_density": -0.1}, "bias_density"),
        (SparsityConfig, {"matrix_density": float("nan")}, "matrix_density"),
        (SparsityConfig, {"anneal_start_frac": 0.5, "anneal_stop_frac": 0.5}, "anneal_start_frac"),
        (SparsityConfig, {"anneal_stop_frac": 1.5}, "anneal_stop_frac"),
        (SparsityConfig, {"anneal_exponent": 0.0}, "anneal_exponent"),
        (SparsityConfig, {"n_alive": -1}, "n_alive"),
        (OptimizerConfig, {"lr": 0.0}, "lr"),
        (OptimizerConfig, {"warmup_frac": 1.0}, "warmup_frac"),
        (OptimizerConfig, {"beta1": 1.0}, "beta1"),
        (OptimizerConfig, {"beta2": -0.1}, "beta2"),
        (OptimizerConfig, {"eps": 0.0}, "eps"),
        (OptimizerConfig, {"weight_decay": -1.0}, "weight_decay"),
        (TrainConfig, {"n_token": 0}, "n_token"),
        (TrainConfig, {"n_token": 100}, "n_token"),
        (TrainConfig, {"context": 129}, "context"),
        (TrainConfig, {"context": 1}, "context"),
        (TrainConfig, {"shares": {"idioms": 0.5}}, "shares"),
        (TrainConfig, {"shares": {}}, "shares"),
        (TrainConfig, {"shares": {"idioms": 1.5, "stdlib": -0.5}}, "shares"),
        (TrainConfig, {"checkpoint_every": 0}, "checkpoint_every"),
        (CorpusConfig, {"sources": ()}, "sources"),
        (CorpusConfig, {"sources": ("idioms", "idioms")}, "sources"),
        (CorpusConfig, {"n_vocab": 257}, "n_vocab"),
        (CorpusConfig, {"n_vocab": 65_537}, "n_vocab"),
        (CorpusConfig, {"validation_frac": 0.0}, "validation_frac"),
        (CorpusConfig, {"validation_frac": 0.6}, "validation_frac"),
        (CorpusConfig, {"max_token": 0}, "max_token"),
        (PruneConfig, {"target_loss": 0.0}, "target_loss"),
        (PruneConfig, {"max_auroc": 0.4}, "max_auroc"),
        (PruneConfig, {"n_step": 0}, "n_step"),
        (PruneConfig, {"temperature": -1.0}, "temperature"),
        (PruneConfig, {"beta2": 1.0}, "beta2"),
        (PruneConfig, {"necessity_coefficient": -1.0}, "necessity_coefficient"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(kind: type[Config], values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"\b{field}\b"):
        kind(**values)


def test_values_at_the_ends_of_their_ranges_are_taken() -> None:
    assert ModelConfig(act_density=1.0, n_vocab=8192).act_density == 1.0
    assert ModelConfig(n_vocab=8193, bigram="none").n_vocab == 8193
    assert SparsityConfig(matrix_density=1.0, anneal_start_frac=0.0, anneal_stop_frac=1.0).matrix_density == 1.0
    assert CorpusConfig(n_vocab=258).n_vocab == 258
    assert CorpusConfig(n_vocab=65_536).n_vocab == 65_536
    assert TrainConfig(n_token=16 * 128).n_step == 1
    assert TrainConfig(n_token=16 * 128 * 2 - 1).n_step == 1


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().d_model = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_the_node_census_counts_eight_locations_a_layer() -> None:
    # A layer: five locations of the stream's width (two reads, q, k, v are 128 here), two writes, 512 neurons.
    widths = ModelConfig(n_layer=3, d_model=128, n_head=8, d_head=16, d_mlp=512).node_widths()
    assert sum(widths.values()) == 3 * (7 * 128 + 512) == 4224
    assert list(widths)[:8] == [
        "0.attn.act_in",
        "0.attn.q",
        "0.attn.k",
        "0.attn.v",
        "0.attn.resid_delta",
        "0.mlp.act_in",
        "0.mlp.post_act",
        "0.mlp.resid_delta",
    ]
    assert list(widths)[-1] == "2.mlp.resid_delta"


def test_the_node_census_knows_odd_heads_and_concatenated_positions() -> None:
    config = ModelConfig(d_model=10, n_head=3, d_head=4, d_mlp=7, positions="sinusoidal", d_position=6)
    assert list(config.site_widths().values()) == [16, 12, 12, 12, 10, 16, 7, 10]


def test_the_nearest_names_are_offered_or_else_the_known_ones() -> None:
    assert did_you_mean("d_modle", ["d_model", "n_vocab"]) == "; did you mean d_model?"
    assert did_you_mean("zzz", ["d_model", "n_vocab"]) == "; known are d_model, n_vocab"
    assert did_you_mean("zzz", [f"name{i}" for i in range(20)]).endswith("name11, …")
