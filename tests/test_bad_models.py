"""What is said of wrong and damaged folders of models."""

import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from release_models import CASES, rewritten

import sparse_circuits as sc
from sparse_circuits.errors import ConfigError, FormatError
from sparse_circuits.formats import hf_residual, official, official_config

pytestmark = pytest.mark.usefixtures("own_cache")


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
    """Pickled, it asks whoever unpickles it to make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


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
        (
            lambda path: torch.save(_Code(path.with_name("made")), path),
            "wants to call .*system; only plain tensors are opened",
        ),
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
    assert not (release_folder / "made").exists()


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
