"""Hugging Face's classes give our logits exactly, because they run our forward."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file

import sparse_circuits as sc
from sparse_circuits.checkpoint import model_hash
from sparse_circuits.taps import reading
from sparse_circuits.tokenizer import END_OF_TEXT, Tokenizer

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
from sparse_circuits.interop import huggingface  # noqa: E402

CASES = sorted((Path(__file__).parent / "golden/models").iterdir())

huggingface.register()
huggingface.register()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sc.convert(sc.example(), tmp_path_factory.mktemp("hf") / "model", "huggingface")


@pytest.fixture(scope="module")
def opened(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def model():
    return sc.load(sc.example())


TOKENS = torch.arange(24).reshape(2, 12) * 7


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.split("_")[0])
def test_the_logits_of_every_golden_case_equal_ours_bit_for_bit(case, tmp_path):
    ours = sc.load(case)
    sc.convert(ours, tmp_path / "hf", "huggingface")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    idx = load_file(case / "golden.safetensors")["idx"]
    with torch.no_grad():
        assert torch.equal(theirs(idx).logits, ours(idx))


def test_the_auto_classes_open_our_folders_and_run_folders(folder, model):
    for place in (folder, sc.example()):
        config = transformers.AutoConfig.from_pretrained(place)
        assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (64, 2, 1024)
        assert config.model_config() == model.config
        theirs = transformers.AutoModelForCausalLM.from_pretrained(place)
        assert model_hash(theirs.circuit_model) == model_hash(model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        text = "def f(self):\n    return self.x\n"
        assert tokenizer(text)["input_ids"] == model.tokenizer.encode(text)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_folder_as_the_release_published_it_opens_without_remote_code(folder, model, tmp_path):
    theirs = shutil.copytree(folder, tmp_path / "theirs")
    (theirs / "tokenizer.json").unlink()
    (theirs / "tokenizer_config.json").unlink()
    settings = json.loads((theirs / "config.json").read_text())
    del settings["sparse_circuits"]
    settings["auto_map"] = {"AutoConfig": "configuration.config.X", "AutoModelForCausalLM": "modeling_circuitgpt.X"}
    (theirs / "config.json").write_text(json.dumps(settings))
    opened = transformers.AutoModelForCausalLM.from_pretrained(theirs)
    assert torch.equal(opened(TOKENS).logits, model(TOKENS))
    tokenizer = transformers.AutoTokenizer.from_pretrained(theirs)
    assert tokenizer("import os\n")["input_ids"] == model.tokenizer.encode("import os\n")
    assert tokenizer.eos_token_id == model.tokenizer.end_of_text


def test_the_end_of_text_has_the_name_that_the_tokenizer_gives_it(tmp_path):
    model = sc.load(sc.example())
    renamed = tokenizers.Tokenizer.from_str(model.tokenizer.to_json().replace(END_OF_TEXT, "</s>"))
    model.tokenizer = Tokenizer(renamed)
    folder = sc.convert(model, tmp_path / "model", "huggingface")
    for tokenizer in (
        transformers.AutoTokenizer.from_pretrained(folder),
        huggingface.CircuitGPTTokenizer.wrap(model.tokenizer),
    ):
        assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "</s>")
        assert tokenizer.eos_token_id == tokenizer.pad_token_id == model.tokenizer.end_of_text
        assert len(tokenizer) == model.tokenizer.n_vocab


def test_labels_are_shifted_and_hidden_states_are_the_stream(opened, model):
    labels = TOKENS.clone()
    labels[0, :5] = -100
    with torch.no_grad(), reading(model, "*.resid_in", "final_resid") as seen:
        logits = model(TOKENS)
        out = opened(TOKENS, labels=labels, output_hidden_states=True)
        alone = opened(TOKENS, logits_to_keep=1).logits
        plain = opened(TOKENS, return_dict=False)
    kept = labels[:, 1:] != -100
    picked = logits[:, :-1].log_softmax(-1).gather(-1, TOKENS[:, 1:, None])[..., 0]
    torch.testing.assert_close(out.loss, -picked[kept].mean())
    assert len(out.hidden_states) == model.config.n_layer + 1
    for hidden, name in zip(out.hidden_states, ("0.resid_in", "1.resid_in", "final_resid"), strict=True):
        assert torch.equal(hidden, seen[name])
    assert torch.equal(model.unembed(out.hidden_states[-1], TOKENS), logits)
    torch.testing.assert_close(alone, logits[:, -1:], rtol=1e-5, atol=1e-5)
    assert torch.equal(plain[0], logits)


def test_gradients_flow_through_the_loss(opened):
    opened.zero_grad()
    opened(TOKENS, labels=TOKENS).loss.backward()
    assert all(p.grad is not None for p in opened.parameters() if p.requires_grad)
    opened.zero_grad()


@pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"num_beams": 3}])
def test_generation_with_and_without_a_cache_gives_the_same_tokens(opened, model, settings):
    prompt = TOKENS[:, :5]
    out = opened.generate(prompt, max_new_tokens=8, do_sample=False, **settings)
    if "num_beams" not in settings:
        assert torch.equal(out, model.generate(prompt, 8))
    else:
        assert torch.equal(out, opened.generate(prompt, max_new_tokens=8, num_beams=3, use_cache=False))


def test_a_cache_of_ones_own_goes_on_where_it_stopped(opened, model):
    with torch.no_grad():
        first = opened(TOKENS[:, :7], use_cache=True)
        name = "cache" if "cache" in first else "past_key_values"
        rest = opened(TOKENS[:, 7:], **{name: first[name]}).logits
        torch.testing.assert_close(rest, model(TOKENS)[:, 7:], rtol=1e-5, atol=1e-5)


def test_right_padding_changes_nothing_and_left_padding_is_refused(opened):
    mask = torch.ones_like(TOKENS)
    mask[0, 9:] = 0
    with torch.no_grad():
        assert torch.equal(opened(TOKENS, attention_mask=mask).logits, opened(TOKENS).logits)
    with pytest.raises(ValueError, match="pad on the right"):
        opened(TOKENS, attention_mask=mask.flip(1))


def test_what_is_saved_is_opened_again_with_its_card(opened, tmp_path, model):
    opened.save_pretrained(tmp_path / "saved")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert model_hash(again.circuit_model) == model_hash(model)
    assert model_hash(sc.load(tmp_path / "saved")) == model_hash(model)
    card = (tmp_path / "saved/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert model_hash(model) in card


def test_pushing_uploads_the_folder_that_is_saved(opened, monkeypatch):
    import huggingface_hub

    uploaded = {}

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            files = sorted(path.name for path in folder_path.iterdir())
            uploaded.update(repo_id=repo_id, files=files, message=commit_message)
            return "address"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert opened.push_to_hub("me/model", commit_message="first") == "address"
    assert (uploaded["repo_id"], uploaded["message"]) == ("me/model", "first")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(uploaded["files"])


def test_half_precision_is_followed(folder):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert theirs.dtype == torch.bfloat16
    assert theirs(TOKENS).logits.isfinite().all()


def test_a_model_made_from_a_config_has_its_shape(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    made = transformers.AutoModelForCausalLM.from_config(config)
    assert made.circuit_model.config == config.model_config()
    with pytest.raises(sc.SparseCircuitsError, match="no model here"):
        huggingface.CircuitGPTForCausalLM.from_pretrained("nowhere")
