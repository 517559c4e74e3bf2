"""Tests of models on disk: packed or plain, whole or refused by name, and `latest` always good."""

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import sparse_circuits as sc
from sparse_circuits import checkpoint
from sparse_circuits.checkpoint import (
    FORMAT,
    MODEL_NAME,
    STATE_NAME,
    latest_checkpoint,
    load_arrays,
    load_model,
    load_state,
    model_hash,
    pack,
    save_arrays,
    save_checkpoint,
    save_model,
    unpack,
)
from sparse_circuits.configs import ModelConfig, TrainConfig
from sparse_circuits.errors import FormatError
from sparse_circuits.model import Transformer
from sparse_circuits.tokenizer import Tokenizer

CONFIG = ModelConfig(n_vocab=260, n_ctx=10, n_layer=2, d_model=16, n_head=2, d_head=8, d_mlp=24)


def sparse_model(config: ModelConfig = CONFIG, seed: int = 0) -> Transformer:
    """A model with random weights, four of five of them zero."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            is_kept = torch.rand(parameter.shape, generator=generator) < 0.2
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * is_kept)
    return model.eval()


def assert_same_bits(a: Transformer, b: Transformer) -> None:
    assert a.config == b.config
    one, other = a.state_dict(), b.state_dict()
    assert list(one) == list(other)
    for name in one:
        assert torch.equal(one[name], other[name]), name


def saved_arrays(tmp_path: Path) -> tuple[Path, dict[str, Any], dict[str, np.ndarray]]:
    """Return a packed model's file, header and arrays, to be changed and written again."""
    path = tmp_path / MODEL_NAME
    save_model(sparse_model(), path)
    header, arrays = load_arrays(path, FORMAT, 1)
    return path, header, arrays


def full_disk(of_name: str, real: Callable[..., None] = save_arrays) -> Callable[..., None]:
    """Return a `save_arrays` that fails on files of this name."""

    def save(path: Path, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
        if path.name == of_name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, arrays, header)

    return save


@settings(max_examples=60)
@given(data=st.data())
def test_a_matrix_comes_back_from_its_parts(data: st.DataObject) -> None:
    n_row, n_column = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([1, 2, 7, 255, 256, 257, 300]))
    entries = st.dictionaries(
        st.tuples(st.integers(0, n_row - 1), st.integers(0, n_column - 1)),
        st.floats(width=32).filter(lambda value: value != 0),
        max_size=12,
    )
    matrix = np.zeros((n_row, n_column), dtype=np.float32)
    for place, value in data.draw(entries).items():
        matrix[place] = value
    parts = pack(matrix)
    assert parts["columns"].dtype == (np.uint8 if n_column <= 256 else np.uint16)
    assert len(parts["values"]) == np.count_nonzero(matrix)
    back = unpack({f"w.{name}": part for name, part in parts.items()}, "w", matrix.shape, "here")
    assert back.dtype == matrix.dtype
    np.testing.assert_array_equal(back.view(np.uint32), matrix.view(np.uint32))


def test_packing_by_hand() -> None:
    parts = pack(np.array([[0, 5, 0], [0, 0, 0], [7, 0, -2]], dtype=np.float32))
    assert parts["values"].tolist() == [5, 7, -2]
    assert parts["columns"].tolist() == [1, 0, 2]
    assert parts["offsets"].tolist() == [0, 1, 1, 3]


def test_columns_are_as_wide_as_they_must_be() -> None:
    for n_column, width in ((256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.uint32)):
        matrix = np.zeros((1, n_column), dtype=np.float32)
        matrix[0, -1] = 1
        parts = pack(matrix)
        assert parts["columns"].dtype == width
        assert parts["columns"].tolist() == [n_column - 1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"w.columns": None}, "has no tensor w.columns"),
        ({"w.offsets": np.array([0, 1, 3], dtype=np.uint32)}, "don't make a matrix"),
        ({"w.offsets": np.array([0, 2, 1, 3], dtype=np.uint32)}, "don't make a matrix"),
        ({"w.offsets": np.array([1, 1, 1, 3], dtype=np.uint32)}, "don't make a matrix"),
        ({"w.offsets": np.array([0, 1, 1, 2], dtype=np.uint32)}, "don't make a matrix"),
        ({"w.columns": np.array([1, 0, 3], dtype=np.uint8)}, "don't make a matrix"),
        ({"w.columns": np.array([1, 0, -1], dtype=np.int8)}, "don't make a matrix"),
        ({"w.columns": np.array([1, 0, 2], dtype=np.float32)}, "don't make a matrix"),
        ({"w.values": np.array([5, 7], dtype=np.float32)}, "don't make a matrix"),
        ({"w.values": np.array(5, dtype=np.float32)}, "don't make a matrix"),
        ({"w.offsets": np.array([[0, 1], [1, 3]], dtype=np.uint32)}, "don't make a matrix"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    matrix = np.array([[0, 5, 0], [0, 0, 0], [7, 0, -2]], dtype=np.float32)
    arrays = {f"w.{name}": part for name, part in pack(matrix).items()} | changed
    arrays = {name: array for name, array in arrays.items() if array is not None}
    with pytest.raises(FormatError, match=f"here.*{message}"):
        unpack(arrays, "w", matrix.shape, "here")


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        ModelConfig(n_vocab=30, n_ctx=10, n_layer=1, d_model=16, n_head=2, d_head=8, d_mlp=24, bigram="fixed"),
        ModelConfig(
            n_vocab=30, n_ctx=10, n_layer=1, d_model=16, n_head=2, d_head=8, d_mlp=24, bigram="none",
            tied_unembedding=True, norm="layer", norm_bias=True, positions="sinusoidal", d_position=4,
        ),
    ],
)  # fmt: skip
def test_packed_and_plain_files_give_the_same_model_bit_for_bit(config: ModelConfig, tmp_path: Path) -> None:
    model = sparse_model(config)
    save_model(model, tmp_path / "packed", weights="packed")
    save_model(model, tmp_path / "plain", weights="plain")
    packed, plain = load_model(tmp_path / "packed"), load_model(tmp_path / "plain")
    assert_same_bits(packed, model)
    assert_same_bits(plain, model)
    assert model_hash(model) == model_hash(packed) == model_hash(plain)
    assert not packed.training
    tokens = torch.randint(config.n_vocab, (2, 7), generator=torch.Generator().manual_seed(1))
    assert torch.equal(packed(tokens), model(tokens))


def test_only_matrices_that_are_mostly_zero_are_packed(tmp_path: Path) -> None:
    model = sparse_model()
    with torch.no_grad():
        model.token_embedding.weight.fill_(1.0)
    save_model(model, tmp_path / "model")
    names = load_file(tmp_path / "model").keys()
    assert "token_embedding.weight" in names
    assert "token_embedding.weight.values" not in names
    assert "blocks.0.mlp.fc_in.weight" not in names
    assert {f"blocks.0.mlp.fc_in.weight.{part}" for part in ("values", "columns", "offsets")} <= set(names)


def test_any_one_weight_changes_the_hash() -> None:
    model = sparse_model()
    seen = {model_hash(model)}
    for tensor in model.state_dict().values():
        flat = tensor.view(-1)
        for place in (0, flat.numel() - 1):
            before = float(flat[place])
            flat[place] = before + 0.5
            seen.add(model_hash(model))
            flat[place] = before
    n_change = sum(2 if tensor.numel() > 1 else 1 for tensor in model.state_dict().values())
    assert len(seen) == 1 + n_change


def test_the_hash_knows_places_and_settings_and_the_smallest_change() -> None:
    model, hash_ = sparse_model(), model_hash(sparse_model())
    weight = model.unembedding.weight.data
    weight[[0, 1]] = weight[[1, 0]]
    assert model_hash(model) != hash_
    weight[[0, 1]] = weight[[1, 0]]
    assert model_hash(model) == hash_
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert model_hash(model) != hash_
    assert model_hash(sparse_model(dataclasses.replace(CONFIG, act_density=0.5))) != hash_


@pytest.mark.parametrize("n_byte", [0, 4, 100, -1])
def test_a_truncated_file_is_refused_by_name(n_byte: int, tmp_path: Path) -> None:
    path, _, _ = saved_arrays(tmp_path)
    path.write_bytes(path.read_bytes()[:n_byte])
    with pytest.raises(FormatError, match="truncated or not a safetensors file") as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_another_format_and_a_newer_version_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=f"{tmp_path / 'absent'}: no such file"):
        load_model(tmp_path / "absent")
    path, header, arrays = saved_arrays(tmp_path)
    save_arrays(path, arrays, {**header, "format": "something else"})
    with pytest.raises(FormatError, match=f"{path}: format is 'something else'"):
        load_model(path)
    save_arrays(path, arrays, {**header, "version": 2})
    with pytest.raises(FormatError, match=f"{path}: .* version 2; this program reads up to version 1"):
        load_model(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[1]", "its header is a list, expected an object"),
        ("null", "its header is a NoneType, expected an object"),
        ("{", "truncated or not a safetensors file"),
        ('{"a": ' + "9" * 5000 + "}", "truncated or not a safetensors file"),
        ("[" * 200_000, "truncated or not a safetensors file"),
    ],
)
def test_a_header_that_is_no_object_is_refused_by_name(header: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / MODEL_NAME
    save_file({"a": np.zeros(3, dtype=np.float32)}, path, metadata={"header": header})
    with pytest.raises(FormatError, match=f"{path}: {message}"):
        load_model(path)


@pytest.mark.parametrize(("name", "message"), [("config", "has no config"), ("version", "version None")])
def test_a_header_without_config_or_version_is_refused_by_name(name: str, message: str, tmp_path: Path) -> None:
    path, header, arrays = saved_arrays(tmp_path)
    save_arrays(path, arrays, {key: value for key, value in header.items() if key != name})
    with pytest.raises(FormatError, match=f"{path}: .*{message}"):
        load_model(path)


def test_tensors_that_do_not_fit_the_config_are_refused_by_name(tmp_path: Path) -> None:
    path, header, arrays = saved_arrays(tmp_path)
    name = "blocks.1.attn.sink"
    save_arrays(path, {key: array for key, array in arrays.items() if key != name}, header)
    with pytest.raises(FormatError, match=f"{path}: has no tensor {name}"):
        load_model(path)
    save_arrays(path, {**arrays, name: np.zeros(3, dtype=np.float32)}, header)
    with pytest.raises(FormatError, match=rf"{path}: {name} has shape \(3,\), its config says \(2,\)"):
        load_model(path)
    save_arrays(path, arrays, {**header, "config": {**header["config"], "d_mlp": 25}})
    with pytest.raises(FormatError, match=rf"{path}: .*fc_in"):
        load_model(path)


def test_writing_that_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, _ = saved_arrays(tmp_path)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise checkpoint.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="could not be written"):
        save_model(sparse_model(seed=1), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_hash_ignores_a_setting_that_matters_in_training_alone() -> None:
    other = dataclasses.replace(CONFIG, bigram_trains_last_row=False)
    assert model_hash(sparse_model(other)) == model_hash(sparse_model())


def save_step(run: Path, step: int, model: Transformer | None = None) -> Path:
    state = {"momentum": torch.full((3,), float(step))}
    return save_checkpoint(run, step, model or sparse_model(seed=step), state, weights="packed", notes={"n_thread": 2})


def test_a_checkpoint_holds_model_state_and_notes(tmp_path: Path) -> None:
    folder = save_step(tmp_path, 7)
    assert folder == latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "00000007"
    notes, state = load_state(folder)
    assert notes["n_thread"] == 2
    assert state["momentum"].tolist() == [7.0, 7.0, 7.0]
    assert_same_bits(load_model(folder / MODEL_NAME), sparse_model(seed=7))


def test_the_two_newest_checkpoints_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save_step(tmp_path, step)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000003", "00000010"]


@pytest.mark.parametrize("failing", [MODEL_NAME, STATE_NAME])
def test_latest_stays_at_the_last_good_checkpoint_when_the_disk_is_full(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = save_step(tmp_path, 4)
    monkeypatch.setattr(checkpoint, "save_arrays", full_disk(failing))
    with pytest.raises(OSError, match="No space left"):
        save_step(tmp_path, 8)
    assert latest_checkpoint(tmp_path) == good
    assert (tmp_path / "latest").read_text() == "00000004\n"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000004"]
    assert_same_bits(sc.load(tmp_path), sparse_model(seed=4))


def test_a_checkpoint_that_latest_could_not_name_is_named_when_it_is_saved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_step(tmp_path, 4)
    written_whole = checkpoint.written_whole

    def full_at_latest(path: Path):
        if path.name == "latest":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return written_whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "written_whole", full_at_latest)
        with pytest.raises(OSError, match="No space left"):
            save_step(tmp_path, 8)
    assert (tmp_path / "latest").read_text() == "00000004\n"
    good = save_step(tmp_path, 8)
    assert (tmp_path / "latest").read_text() == "00000008\n"
    assert latest_checkpoint(tmp_path) == good


def test_saving_a_step_again_leaves_its_good_checkpoint_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = save_step(tmp_path, 4)
    monkeypatch.setattr(checkpoint, "save_arrays", full_disk(STATE_NAME))
    assert save_step(tmp_path, 4) == good == latest_checkpoint(tmp_path)
    assert_same_bits(sc.load(tmp_path), sparse_model(seed=4))


def test_a_checkpoint_that_was_broken_off_is_not_taken_and_is_written_anew(tmp_path: Path) -> None:
    good, broken = save_step(tmp_path, 4), tmp_path / "checkpoints" / "00000008"
    broken.mkdir()
    (broken / MODEL_NAME).write_text("half")
    (tmp_path / "latest").write_text("00000008\n")
    assert latest_checkpoint(tmp_path) == good
    assert save_step(tmp_path, 8) == latest_checkpoint(tmp_path) == broken
    assert_same_bits(sc.load(tmp_path), sparse_model(seed=8))


def test_a_run_without_its_latest_file_opens_at_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    for step in (2, 9):
        save_step(tmp_path, step)
    (tmp_path / "latest").unlink()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "00000009"
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_a_run_a_checkpoint_and_a_copied_checkpoint_open_as_the_same_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    Tokenizer.train(["some text to learn from"], 260).save(run / "tokenizer.json")
    TrainConfig(model=CONFIG, context=10).save(run / "config.json")
    folder = save_step(run, 3)
    from_run, from_checkpoint = sc.load(run), sc.load(str(folder))
    assert_same_bits(from_run, sparse_model(seed=3))
    assert_same_bits(from_checkpoint, from_run)
    assert from_run.folder == from_checkpoint.folder == run
    assert from_run.tokenizer is not None
    assert from_run.tokenizer.encode("text") == from_checkpoint.tokenizer.encode("text")  # pyright: ignore
    assert not from_run.training
    shutil.copytree(folder, tmp_path / "copied")
    assert_same_bits(sc.load(tmp_path / "copied"), from_run)
    assert sc.load(tmp_path / "copied").tokenizer is None


def test_a_run_opens_at_the_checkpoint_that_latest_names(tmp_path: Path) -> None:
    for step in (2, 9):
        save_step(tmp_path, step)
    (tmp_path / "latest").write_text("00000002\n")
    assert_same_bits(sc.load(tmp_path), sparse_model(seed=2))


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    for folder, why in ((tmp_path, "expected a run folder"), (tmp_path / "absent", "there is no such folder")):
        with pytest.raises(FormatError, match=f"{folder}: no model here; {why}"):
            sc.load(folder)


def test_the_header_of_a_model_file_can_be_read_without_this_package(tmp_path: Path) -> None:
    path, _, _ = saved_arrays(tmp_path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["header"])
    assert header["format"] == "sparse-circuits model"
    assert header["version"] == 1
    assert ModelConfig.from_json(header["config"], where="header") == CONFIG
