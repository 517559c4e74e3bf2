"""Models in other programs' folders: every golden case through every layout, and what is said of wrong files."""

import itertools
import json
import os
import shutil
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sparse_circuits as sc
from sparse_circuits import checkpoint, packed_copies
from sparse_circuits.configs import ModelConfig
from sparse_circuits.errors import ConfigError, FormatError, OutputExistsError
from sparse_circuits.formats import hf_residual, mapped, official, official_config, release_tokenizer
from sparse_circuits.model import Transformer
from sparse_circuits.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted((GOLDEN / "models").iterdir())
LAYOUTS = ("packed", "plain", "release", "huggingface")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARSE_CIRCUITS_MIRROR", raising=False)


@pytest.fixture
def release_folder(tmp_path):
    """A release folder of a small model, to be damaged."""
    return shutil.copytree(CASES[1], tmp_path / "release")


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


def test_the_release_refuses_heads_that_do_not_divide_the_width(tmp_path):
    model = Transformer(ModelConfig(n_vocab=8, n_ctx=4, n_layer=1, d_model=6, n_head=4, d_head=2, d_mlp=8))
    with pytest.raises(ConfigError, match="d_model 6 is no multiple of n_head 4"):
        sc.convert(model, tmp_path / "release", "release")
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize("prefix", ["", "circuit_model."])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_hugging_face_weights_may_be_in_either_file_with_or_without_prefix(prefix, name, tmp_path):
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


# Keys of configurations


def changed_config(folder, **changes):
    path = folder / official.CONFIG_NAME
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value != "absent"}))


def test_unknown_keys_are_named_once_in_one_line_and_known_ones_not_at_all(release_folder):
    known = dict.fromkeys(official_config.IGNORED, 1) | dict.fromkeys(official_config.EXPECTED_OFF)
    changed_config(release_folder, **known, new_key=1, another={"a": 2})
    with pytest.warns(UserWarning, match="unknown keys ignored: another, new_key$") as caught:
        sc.load(release_folder)
    assert len(caught) == 1


def test_keys_that_would_change_the_numbers_are_said_when_they_are_set(release_folder):
    changed_config(release_folder, mup=True, bigram_table_rank=4)
    with pytest.warns(UserWarning, match="has no mup, bigram_table_rank, nor has this program"):
        sc.load(release_folder)


def test_sites_that_are_left_out_are_the_releases_four(release_folder):
    changed_config(release_folder, afrac_loctypes="absent")
    config = official.read_config(release_folder / official.CONFIG_NAME)
    assert config.act_sites == ("attn.act_in", "attn.resid_delta", "mlp.act_in", "mlp.resid_delta")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": "absent"}, "has no d_model"),
        ({"d_model": "wide"}, "d_model is 'wide', expected a whole number"),
        ({"n_layer": 0}, "n_layer is 0, expected a whole number from 1"),
        ({"n_layer": 10**12}, "n_layer is 1000000000000"),
        ({"sink": "yes"}, "sink is 'yes', expected true or false"),
        ({"afrac": [1]}, r"afrac is \[1\], expected a number"),
        ({"afrac": 2.0}, "act_density is 2.0"),
        ({"activation_type": "swish"}, "activation_type is 'swish', expected gelu or relu"),
        ({"afrac_loctypes": "attn_in,nowhere"}, "names 'nowhere', expected some of"),
        ({"afrac_loctypes": 3}, "afrac_loctypes is 3"),
        ({"use_tied_aux_matrix": True}, "auxiliary matrix"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(changes, message, release_folder):
    changed_config(release_folder, **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        sc.load(release_folder)
    assert official.CONFIG_NAME in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_mlp": 100}, r"c_fc.* has shape \(96, 32\); beeg_config.json makes it \(100, 32\) .*d_mlp 100"),
        ({"n_layer": 3}, "holds 2 layers, beeg_config.json says n_layer 3"),
        ({"sink": True}, "has no tensor transformer.h.0.attn.attn_imp.sink_logit, which beeg_config.json asks for"),
        ({"d_pos_emb": 4}, "wpe"),
        (
            {"vocab_size": 2**31 - 1, "enable_bigram_table": False},
            r"has shape \(72,\); beeg_config.json makes it \(2147",
        ),
    ],
)
def test_a_config_that_disagrees_with_the_weights_is_named_with_them(changes, message, release_folder):
    changed_config(release_folder, **changes)
    with pytest.raises(FormatError, match=message) as caught:
        sc.load(release_folder)
    assert official.WEIGHTS_NAME in str(caught.value)


def test_our_note_beside_a_changed_config_is_refused(tmp_path):
    folder = sc.convert(CASES[1], tmp_path / "release", "release")
    changed_config(folder, afrac=0.5)
    with pytest.raises(ConfigError, match=r"says afrac 0.25, beeg_config.json says 0.5"):
        sc.load(folder)


# Weights


def rewritten(folder, change):
    path = folder / official.WEIGHTS_NAME
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


@pytest.mark.parametrize("name", ["transformer.wpe.weight", "transformer.h.1.ln_2.weight", "bigram_table"])
def test_a_missing_tensor_is_named_and_never_left_at_its_first_value(name, release_folder):
    rewritten(release_folder, lambda state: state.pop(name))
    with pytest.raises(FormatError, match=f"has no tensor {name}"):
        sc.load(release_folder)


def test_tensors_without_a_place_are_named_and_masks_are_not(release_folder):
    extra = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "sink_logit": torch.ones(2)}
    rewritten(release_folder, lambda state: state.update(extra))
    with pytest.warns(UserWarning, match="beeg_config.json has no place for sink_logit: ignored"):
        sc.load(release_folder)


def test_weights_that_are_not_finite_are_loaded_and_said(release_folder, tmp_path):
    def spoil(state):
        state["transformer.wte.weight"][0, :3] = torch.nan
        state["lm_head.weight"][0, 0] = torch.inf

    rewritten(release_folder, spoil)
    message = r"NaN or infinite, in token_embedding.weight \(3\), unembedding.weight \(1\)"
    with pytest.warns(UserWarning, match=message):
        model = sc.load(release_folder)
    assert model.token_embedding.weight[0, :3].isnan().all()
    with pytest.warns(UserWarning, match=message):
        sc.load(sc.convert(model, tmp_path / "packed"))


def test_integers_are_no_weights(release_folder):
    rewritten(release_folder, lambda s: s.update({"transformer.wte.weight": s["transformer.wte.weight"].int()}))
    with pytest.raises(FormatError, match=r"holds torch\.int32"):
        sc.load(release_folder)


def test_one_tensor_under_two_names_becomes_two_parameters(release_folder):
    rewritten(release_folder, lambda state: state.update({"lm_head.weight": state["transformer.wte.weight"]}))
    model = sc.load(release_folder)
    with torch.no_grad():
        model.unembedding.weight.add_(1)
    assert not torch.equal(model.unembedding.weight, model.token_embedding.weight)


class _Code:
    def __reduce__(self):
        return (os.system, ("touch /tmp/this-must-never-exist",))


def swapped(path):
    path.write_bytes((CASES[3] / official.WEIGHTS_NAME).read_bytes())


def compressed(path):
    with zipfile.ZipFile(path) as old:
        entries = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in entries.items():
            new.writestr(name, data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "empty .0 bytes."),
        (lambda path: path.write_bytes(path.read_bytes()[:-500]), "truncated or not a checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "truncated or not a checkpoint"),
        (lambda path: path.write_bytes(b"\x80\x02}q\x00."), "truncated or not a checkpoint of torch 1.6 or later"),
        (lambda path: torch.save(_Code(), path), "wants to call .*system; only plain tensors are opened"),
        (lambda path: torch.save([torch.zeros(2)], path), "holds a list, expected tensors by name"),
        (lambda path: torch.save({"model": {"a": torch.zeros(2)}}, path), "holds 'model', which is no tensor"),
        (lambda path: torch.save({}, path), "holds a dict"),
        (swapped, "holds|has shape|has no"),
        (compressed, "compressed or larger than the file"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.rename(path.with_name(path.name + ".part")), "the download is not finished"),
    ],
)
def test_a_damaged_pt_is_refused_in_a_line(damage, message, release_folder):
    damage(release_folder / official.WEIGHTS_NAME)
    with pytest.raises(FormatError, match=message) as caught:
        sc.load(release_folder)
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/this-must-never-exist").exists()


def lying(header):
    def damage(path):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))

    return damage


HUGE = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
        lying({"a": HUGE}),
        lying({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 64]}}),
        lying({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 64]}}),
        lambda path: path.write_bytes(b"\x80\x02}q\x00." * 20),
    ],
)
@pytest.mark.parametrize("layout", ["huggingface", "packed"])
def test_a_safetensors_file_that_lies_is_refused_by_name(damage, layout, tmp_path):
    folder = sc.convert(CASES[1], tmp_path / "model", layout)
    damage(folder / "model.safetensors")
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        sc.load(folder)


# Names and paths


def test_a_path_that_is_wrong_is_told_what_would_be_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    Path("file").touch()
    for path, message in (
        (
            "csp_yolo3",
            "no such folder, and no model .* is called 'csp_yolo3'; did you mean csp_yolo2 or csp_yolo1",
        ),
        ("xyz", "known are csp_yolo1"),
        ("a/b", "a/b: no model here; there is no such folder$"),
        ("runs\\demo", "did you mean runs/demo?"),
        ("C:\\runs\\x", "folders are parted by /"),
        ("file", "file is a file; a model is opened by its folder"),
        ("runs/demo", "no model here; expected a run folder"),
        ("csp_bridge1", "csp_bridges1 is a released model, but not on this machine.*download csp_bridges1"),
    ):
        with pytest.raises(FormatError, match=message):
            sc.load(path)


def test_a_released_name_is_found_in_a_mirror_on_disk_with_the_releases_tokenizer(tmp_path, monkeypatch):
    model = sc.load(sc.example())
    sc.convert(model, tmp_path / "mirror/models/csp_yolo1", "release")
    (tmp_path / "mirror/tinypython").mkdir()
    for name in ("encoder.json", "vocab.bpe"):
        (tmp_path / "mirror/models/csp_yolo1" / name).rename(tmp_path / "mirror/tinypython" / name)
    monkeypatch.setenv("SPARSE_CIRCUITS_MIRROR", str(tmp_path / "mirror"))
    opened = sc.load("csp_yolo1")
    assert opened.tokenizer.encode("import os\n") == model.tokenizer.encode("import os\n")
    assert opened.folder == tmp_path / "mirror/models/csp_yolo1"


def test_run_folders_and_the_releases_models_are_no_foreign_models_to_bridges(tmp_path):
    assert not hf_residual.is_hf_folder(sc.example())
    assert not hf_residual.is_hf_folder(sc.convert(CASES[1], tmp_path / "hf", "huggingface"))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert hf_residual.is_hf_folder(tmp_path)


# Tokenizers


@pytest.fixture(scope="session")
def example_tokenizer():
    return Tokenizer.load(sc.example("tokenizer.json"))


def test_the_releases_tokenizer_files_hold_our_tokenizer(example_tokenizer, tmp_path):
    release_tokenizer.save(example_tokenizer, tmp_path)
    opened = release_tokenizer.load(tmp_path)
    text = Path(__file__).read_text() + "é日本 \t\r\n 12345 <|endoftext|>"
    assert opened.encode(text) == example_tokenizer.encode(text)
    assert opened.decode(opened.encode(text)) == text
    assert opened.end_of_text == example_tokenizer.end_of_text
    encoder = json.loads((tmp_path / "encoder.json").read_text())
    assert encoder["!"] == 0
    assert encoder.pop("<|endoftext|>") == example_tokenizer.n_vocab - 1
    (tmp_path / "encoder.json").write_text(json.dumps(encoder))
    assert release_tokenizer.load(tmp_path).n_vocab == example_tokenizer.n_vocab


def plain_bpe(piece, ranks):
    """Merge the pair of lowest rank until none is left, as the release's library does it."""
    if piece in ranks:
        return [ranks[piece]]
    parts = list(piece)
    while True:
        pairs = [(ranks.get(a + b, 10**9), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        best, i = min(pairs, default=(10**9, 0))
        if best == 10**9:
            return [ranks[part] for part in parts]
        parts[i : i + 2] = ["".join(parts[i : i + 2])]


def test_the_releases_tokenizer_merges_by_rank(example_tokenizer, tmp_path):
    release_tokenizer.save(example_tokenizer, tmp_path)
    opened = release_tokenizer.load(tmp_path)
    ranks = json.loads((tmp_path / "encoder.json").read_text())
    for word in ("self", "heapq", "xyzzy", "aaaa", "returns", "enumerate"):
        assert opened.encode(word) == plain_bpe(word, ranks)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("encoder.json", lambda text: text[:-9], "not a whole JSON file"),
        ("encoder.json", lambda text: text.replace('"!": 0', '"!": 1'), "the ids are not the numbers from 0"),
        ("encoder.json", lambda text: text.replace('"!": 0', '"!": "0"'), "the ids are not the numbers"),
        ("encoder.json", lambda text: text.replace('"!": 0', '"!!!!": 0'), "1 of the 256 single bytes have no id"),
        ("vocab.bpe", lambda text: text[: len(text) // 2].rsplit("\n", 1)[0], "has .* merges, encoder.json makes it"),
        ("vocab.bpe", lambda text: text + "! nowhere", "line .* merges '! nowhere', which makes no token"),
    ],
)
def test_damaged_tokenizer_files_are_named(name, change, message, example_tokenizer, tmp_path):
    release_tokenizer.save(example_tokenizer, tmp_path)
    (tmp_path / name).write_text(change((tmp_path / name).read_text()))
    with pytest.raises(FormatError, match=message):
        release_tokenizer.load(tmp_path)


def test_a_merge_without_an_id_is_refused_before_the_library_dies_of_it(example_tokenizer, tmp_path):
    data = json.loads(example_tokenizer.to_json())
    left, right = data["model"]["merges"][-1]
    del data["model"]["vocab"][left + right]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(FormatError, match="makes no token that has an id"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    data["model"]["merges"][-1] = [left]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(FormatError, match="is no pair of tokens"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_tokenizer_of_another_vocabulary_is_refused(release_folder, example_tokenizer):
    release_tokenizer.save(example_tokenizer, release_folder)
    with pytest.raises(FormatError, match=r"tokenizer has .* tokens, the model's vocabulary 72"):
        sc.load(release_folder)


# Packed copies


@pytest.fixture
def every_size_is_large(monkeypatch):
    monkeypatch.setattr(packed_copies, "SMALLEST", 0)
    monkeypatch.setattr(mapped, "MAPPED_FROM", 0)


def sparse_release(folder):
    config = ModelConfig(n_vocab=16, n_ctx=8, n_layer=1, d_model=32, n_head=2, d_head=16, d_mlp=256, positions="added")
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)) < 0.02)
    return sc.convert(model, folder, "release")


@pytest.mark.usefixtures("every_size_is_large")
def test_a_large_model_is_read_through_once_and_opened_packed_from_its_copy(tmp_path, monkeypatch):
    folder = sparse_release(tmp_path / "release")
    first = sc.load(folder)
    monkeypatch.setattr(packed_copies, "count_not_finite", lambda _: pytest.fail("the weights were read through again"))
    again = sc.load(folder)
    ours, tokens = first.state_dict(), torch.arange(8)[None]
    assert all(torch.equal(tensor, ours[name]) for name, tensor in again.state_dict().items())
    monkeypatch.setattr(official, "load", lambda _: pytest.fail("the release's file was opened again"))
    torch.testing.assert_close(sc.load(folder, packed=True)(tokens), first(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("every_size_is_large")
def test_a_changed_file_is_read_anew_and_the_old_copy_goes(tmp_path):
    folder = sparse_release(tmp_path / "release")
    sc.load(folder)
    rewritten(folder, lambda state: state["transformer.wte.weight"].fill_(3))
    assert (sc.load(folder).token_embedding.weight == 3).all()
    assert len(list((tmp_path / "cache/packed").glob("*.safetensors"))) == 1


@pytest.mark.usefixtures("every_size_is_large")
def test_what_packing_does_not_shrink_is_mapped_each_time_and_still_said_to_hold_nan(tmp_path):
    folder = shutil.copytree(CASES[0], tmp_path / "dense")
    rewritten(folder, lambda state: [tensor.fill_(torch.nan) for tensor in state.values()])
    for _ in range(2):
        with pytest.warns(UserWarning, match="NaN or infinite"):
            sc.load(folder)
    assert list((tmp_path / "cache/packed").glob("*.safetensors")) == []


@pytest.mark.usefixtures("every_size_is_large")
def test_a_broken_copy_is_made_again_and_a_full_disk_costs_only_the_copy(tmp_path, monkeypatch):
    folder = sparse_release(tmp_path / "release")
    first = sc.load(folder)
    (copy,) = (tmp_path / "cache/packed").glob("*.safetensors")
    copy.write_bytes(copy.read_bytes()[:100])
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(sc.load(folder, packed=True)(tokens), first(tokens), rtol=1e-5, atol=1e-5)
    assert copy.stat().st_size > 100
    shutil.rmtree(tmp_path / "cache")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed_copies, "save_model", full)
    with pytest.warns(UserWarning, match="no packed copy was kept for next time .*No space left"):
        sc.load(folder)


def test_small_models_leave_nothing_in_the_cache(tmp_path):
    sc.load(CASES[0])
    assert not (tmp_path / "cache").exists()


# In the release's own code


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
