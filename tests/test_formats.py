"""Models in other programs' folders: every golden case through every layout."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from release_models import CASES
from safetensors.torch import load_file, save_file

import sparse_circuits as sc
from sparse_circuits import checkpoint
from sparse_circuits.checkpoint import latest_checkpoint
from sparse_circuits.configs import ModelConfig
from sparse_circuits.errors import ConfigError, FormatError, OutputExistsError
from sparse_circuits.formats import mapped, official
from sparse_circuits.model import Transformer

LAYOUTS = ("packed", "plain", "release", "huggingface")
pytestmark = pytest.mark.usefixtures("own_cache")


def assert_golden(model, case):
    golden = load_file(case / "golden.safetensors")
    with torch.no_grad():
        logits = model(golden["idx"])
    scale = max(1.0, float(golden["logits"].abs().max()))
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("case", CASES, ids=lambda folder: folder.name.split("_")[0])
def test_every_layout_gives_the_releases_numbers_and_the_same_model(case, tmp_path):
    model = sc.load(case)
    assert_golden(model, case)
    for layout in LAYOUTS:
        opened = sc.load(sc.convert(model, tmp_path / layout, layout))
        assert_golden(opened, case)
        assert opened.config.to_json() | {"bigram_trains_last_row": 0} == model.config.to_json() | {
            "bigram_trains_last_row": 0
        }
        assert checkpoint.model_hash(opened) == checkpoint.model_hash(model)
        ours = model.state_dict()
        assert all(torch.equal(tensor, ours[name]) for name, tensor in opened.state_dict().items())


@pytest.mark.parametrize("case", CASES, ids=lambda folder: folder.name.split("_")[0])
def test_packed_execution_gives_the_same_logits(case, tmp_path):
    model = sc.load(case)
    tokens = load_file(case / "golden.safetensors")["idx"]
    for folder in (case, sc.convert(model, tmp_path / "packed")):
        opened = sc.load(folder, packed=True)
        assert_golden(opened, case)
        with torch.no_grad():
            torch.testing.assert_close(opened(tokens), model(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_a_model_survives_any_two_conversions(first, second, tmp_path):
    model = sc.load(sc.example())  # it has no positions and no bigram table, which the release has no word for
    twice = sc.load(sc.convert(sc.convert(model, tmp_path / "one", first), tmp_path / "two", second))
    assert twice.config == model.config
    assert checkpoint.model_hash(twice) == checkpoint.model_hash(model)
    text = "def f(self):\n    return 'a'\n"
    assert twice.tokenizer.encode(text) == model.tokenizer.encode(text)


def test_a_release_folder_without_our_note_computes_the_same(tmp_path):
    model = sc.load(sc.example())
    folder = sc.convert(model, tmp_path / "release", "release")
    (folder / official.NOTE_NAME).unlink()
    opened = sc.load(folder)
    assert opened.config.positions == "added"
    tokens = torch.arange(20)[None]
    assert torch.equal(opened(tokens), model(tokens))


def test_a_conversion_writes_over_nothing_and_leaves_nothing_behind(tmp_path, monkeypatch):
    model = sc.load(sc.example())
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(OutputExistsError, match="full is not empty"):
        sc.convert(model, tmp_path / "full")
    with pytest.raises(ConfigError, match="no layout is called 'hugginface'; did you mean huggingface"):
        sc.convert(model, tmp_path / "x", "hugginface")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(official.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        sc.convert(model, tmp_path / "release", "release")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", [".", "../here", "../link"])
def test_an_empty_folder_is_filled_where_it_stands(place, layout, tmp_path, monkeypatch):
    model, here = sc.load(sc.example()), tmp_path / "here"
    here.mkdir()
    (tmp_path / "link").symlink_to(here)
    monkeypatch.chdir(here)
    assert sc.convert(model, place, layout) == Path(place)
    assert Path.cwd() == here
    assert checkpoint.model_hash(sc.load(here)) == checkpoint.model_hash(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link"]


def test_the_release_refuses_heads_that_do_not_divide_the_width(tmp_path):
    model = Transformer(ModelConfig(n_vocab=8, n_ctx=4, n_layer=1, d_model=6, n_head=4, d_head=2, d_mlp=8))
    with pytest.raises(ConfigError, match="d_model 6 is no multiple of n_head 4"):
        sc.convert(model, tmp_path / "release", "release")
    assert not (tmp_path / "release").exists()


def test_a_model_in_a_folder_of_a_run_is_not_the_runs(tmp_path):
    run = shutil.copytree(sc.example(), tmp_path / "run")
    for place in (run, latest_checkpoint(run)):
        opened = sc.load(place)
        assert (opened.folder, opened.tokenizer.n_vocab) == (run, 1024)
    own = Transformer(ModelConfig(n_vocab=8, n_ctx=4, n_layer=1, d_model=6, n_head=2, d_head=2, d_mlp=8))
    edited = sc.load(sc.convert(own, run / "edited/v1"))
    assert (edited.folder, edited.tokenizer) == (run / "edited/v1", None)


@pytest.mark.parametrize(
    "prefix", ["", "circuit_model.", "_orig_mod.circuit_model.", "module._orig_mod.", "module._orig_mod.circuit_model."]
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_hugging_face_weights_may_be_in_either_file_with_or_without_prefixes(prefix, name, tmp_path):
    folder = sc.convert(CASES[2], tmp_path / "hf", "huggingface")
    state = mapped.open_weights(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state = {prefix + key: tensor.clone() for key, tensor in state.items()}
    save_file(state, folder / name) if name.endswith("safetensors") else torch.save(state, folder / name)
    assert_golden(sc.load(folder), CASES[2])


def test_a_config_of_the_hub_with_its_general_keys_opens_without_a_word(tmp_path):
    folder = sc.convert(CASES[1], tmp_path / "hf", "huggingface")
    data = json.loads((folder / "config.json").read_text())
    del data["sparse_circuits"]
    general = {"auto_map": {"AutoConfig": "config.X"}, "transformers_version": "4.49.0", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(data | general))
    assert_golden(sc.load(folder), CASES[1])


def test_weights_in_several_files_are_put_together(tmp_path):
    folder = sc.convert(CASES[1], tmp_path / "hf", "huggingface")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    placed = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(sorted(state))}
    for file in set(placed.values()):
        save_file({name: state[name] for name in state if placed[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": placed}))
    assert_golden(sc.load(folder), CASES[1])
    index.write_text(json.dumps({"weight_map": {"a": "../secret"}}))
    with pytest.raises(FormatError, match="a file outside the folder"):
        sc.load(folder)


def test_half_precision_becomes_single(tmp_path):
    folder = sc.convert(CASES[1], tmp_path / "hf", "huggingface")
    path = folder / "model.safetensors"
    state = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file(state, path)
    model = sc.load(folder)
    assert all(tensor.dtype == torch.float32 for tensor in model.state_dict().values())


def test_the_releases_code_opens_what_we_write_and_gives_our_logits(tmp_path, monkeypatch):
    checkout = os.environ.get("CIRCUIT_SPARSITY_CHECKOUT")
    if checkout is None:
        pytest.skip("set CIRCUIT_SPARSITY_CHECKOUT to a checkout of the release to run this")
    monkeypatch.syspath_prepend(checkout)
    gpt = pytest.importorskip("circuit_sparsity.inference.gpt")
    monkeypatch.setattr(gpt, "read_file_cached", lambda path: Path(path).read_bytes())
    for case in [*CASES, sc.example()]:
        model = sc.load(case)
        folder = sc.convert(model, tmp_path / case.name, "release")
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            theirs = gpt.load_model(str(folder), flash=True, cuda=False)
            tokens = torch.randint(model.config.n_vocab, (2, min(16, model.config.n_ctx)))
            logits = theirs(tokens)[0]
            torch.testing.assert_close(logits, model(tokens), rtol=1e-4, atol=1e-4)
