"""Every command does its one thing; bad input is one clear line and nothing is lost."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

import sparse_circuits as sc
from sparse_circuits import cli, examples, training
from sparse_circuits.checkpoint import MODEL_NAME, latest_checkpoint, save_model
from sparse_circuits.cli.check_circuits import _beside
from sparse_circuits.configs import ModelConfig
from sparse_circuits.errors import FormatError
from sparse_circuits.model import Transformer


@pytest.fixture
def settings_file(quick_run, tmp_path):
    quick_run.save(tmp_path / "run.json")
    return tmp_path / "run.json"


def test_a_reader_that_has_seen_enough_is_no_error():
    script = "import sparse_circuits.cli as cli; cli.main()"
    command = [sys.executable, "-c", script, "prune", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as told:
        told.stdout.close()  # before anything is written
        assert told.stderr.read() == ""
    assert told.returncode == 1


def test_help_names_every_command_and_needs_no_torch():
    script = (
        "import sys, sparse_circuits.cli as cli\nsys.argv = ['sparse-circuits', '--help']\n"
        "try: cli.main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert re.findall(r"^│ +• (\S+) +\S", done.stdout, re.MULTILINE) == list(cli.app._subcommands)


def test_corpus_then_train_then_inspect_then_generate(command, settings_file, tmp_path):
    corpus = ["corpus", "--out", tmp_path / "c", "--sources", "idioms", "--n-vocab", 512, "--max-token", 20_000]
    code, out, err = command(*corpus, "--n-tokenizer-byte", 100_000)
    assert (code, "idioms: 20," in out, "wrote" in err) == (0, True, True)
    run = tmp_path / "run"
    code, out, err = command("train", settings_file, "--out", run, "--corpus", tmp_path / "c")
    assert code == 0, code
    assert "validation loss on idioms" in out
    assert "step 40 of 40" in err
    code, out, _ = command("inspect", run, "--json")
    assert code == 0
    assert json.loads(out)["n_node"] == 16 + 3 * 16 + 16 + 16 + 32 + 16
    code, out, _ = command("generate", run, "def run(", "--n-token", 3)
    assert code == 0
    assert out.startswith("def run(")


def test_a_dry_run_says_what_it_takes_and_writes_nothing(command, settings_file, idioms_corpus, tmp_path):
    corpus = idioms_corpus.folder
    code, out, _ = command("train", settings_file, "--out", tmp_path / "run", "--corpus", corpus, "--dry-run")
    assert code == 0
    assert "nonzero at the end" in out
    assert "40 steps" in out
    assert not (tmp_path / "run").exists()


def test_flags_change_a_presets_settings(command, idioms_corpus, tmp_path):
    flags = ("--model.n-layer", 1, "--model.n-vocab", 512, "--dry-run", "--json")
    code, out, _ = command("train", "tiny", *flags, "--out", tmp_path / "x", "--corpus", idioms_corpus.folder)
    assert code == 0
    assert json.loads(out)["n_step"] == 1_000_000 // (8 * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, "run.json: modle is not a setting; did you mean model?"),
        ({"model": {"d_modle": 3}}, "run.json: model.d_modle is not a setting; did you mean d_model"),
        ({"n_token": "many"}, "run.json: n_token is 'many', expected int"),
        ({"sparsity": {"matrix_density": 1.5}}, "run.json: sparsity.matrix_density is 1.5, expected (0, 1]"),
        ({"optimizer": {"lr": -1}}, "run.json: optimizer.lr is -1.0, expected above 0"),
        ({"model": {"bigram": "learned", "n_vocab": 9000}}, "above 8192 tokens it must be none"),
        ({"shares": {"idioms": 0.5}}, "expected positive numbers that add up to 1"),
    ],
)
def test_a_wrong_setting_is_one_line_with_file_and_field(command, tmp_path, change, message):
    (tmp_path / "run.json").write_text(json.dumps(change))
    code, _, _ = command("train", tmp_path / "run.json", "--out", tmp_path / "x", "--corpus", "none", "--dry-run")
    assert message in code
    assert code.startswith("sparse-circuits: ")
    assert "\n" not in code


def test_a_quota_that_the_budget_cant_hold_is_refused_before_anything_is_written(
    command, quick_run, idioms_corpus, tmp_path
):
    settings = quick_run.to_json()
    settings["sparsity"] |= {"matrix_density": 0.1, "n_alive": 4}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    for more in (["--dry-run"], []):
        code, _, _ = command(
            "train", tmp_path / "run.json", "--out", tmp_path / "x", "--corpus", idioms_corpus.folder, *more
        )
        assert "n_alive 4 asks for" in code
        assert "lower n_alive to 1" in code
    assert latest_checkpoint(tmp_path / "x") is None


def test_a_prompt_beyond_the_context_is_told_whole(command):
    prompt = "value = 1\n" * 60
    code, out, err = command("generate", sc.example(), prompt, "--n-token", 0)
    assert code == 0
    assert out.startswith(prompt)
    assert "the model reads the last 64" in err


@pytest.mark.filterwarnings("ignore:.*weights that are NaN")
def test_a_number_that_is_not_finite_is_null_in_json(command, tmp_path):
    model = sc.load(sc.example())
    with torch.no_grad():
        model.unembedding.weight[:] = torch.nan
    code, out, _ = command("generate", sc.convert(model, tmp_path / "m"), "def f(", "--json")
    assert code == 0
    told = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert set(told["next"].values()) == {None}


def test_an_argument_that_is_no_utf_8_is_refused_in_one_line(command, tmp_path):
    prompt = os.fsdecode(b"caf\xe9")
    circuit = sc.example("circuits/single_double_quote")
    for arguments in (
        ("generate", sc.example(), prompt),
        ("export", circuit, tmp_path / "g.json", "--to", "neuronpedia", "--prompt", prompt),
    ):
        code, out, _ = command(*arguments)
        assert (code, out) == (r"sparse-circuits: 'caf\udce9' holds half a character (a lone surrogate)", "")


def test_a_task_that_the_model_can_not_read_is_refused(command, tmp_path):
    shape = ModelConfig(n_vocab=1024, n_ctx=8, n_layer=1, d_model=16, n_head=1, d_head=4, d_mlp=16, bigram="none")
    model = Transformer(shape, sc.load(sc.example()).tokenizer)
    save_model(model, tmp_path / "m" / MODEL_NAME, weights="plain")
    model.tokenizer.save(tmp_path / "m" / "tokenizer.json")
    code, _, _ = command("tasks", tmp_path / "m", "--task", "with_as")
    assert "the model's context 8" in code


def test_ablation_values_that_a_circuit_has_are_not_silently_kept(command, tmp_path):
    code, _, _ = command("verify", sc.example("circuits/single_double_quote"), "--ablation", "zero", "--out", tmp_path)
    assert "has ablation values (mean): --ablation has no effect" in code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "no model here"),
        (["prune", "nowhere", "single_double_quote", "--out", "x"], "no model here"),
        (["verify", "nowhere"], "no such file"),
        (["view", "nowhere"], "no such file"),
        (["train", "tiny", "--out", "x", "--corpus", "nowhere"], "no finished corpus"),
        (["corpus", "--out", "x", "--sources", "nowhere"], "not a folder"),
        (["corpus", "--out", "x", "--sources", "dist:numpyy"], "did you mean numpy"),
        (["train", "missing.json", "--out", "x", "--corpus", "c"], "missing.json: no such file"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(command, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command(*arguments)
    assert message in code
    assert "\n" not in code
    assert out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "m", "--all", "--out", "x", "--max-token", "32"], "--max-token has no effect with --all"),
        (["prune", "m", "with_as", "--out", "x", "--controls"], "--controls has no effect without --all"),
        (["prune", "m", "with_as", "--out", "x", "--seeds", "0"], "seeds is 0, expected 1 or more"),
        (
            ["prune", "m", "with_as", "--out", "x", "--target-loss", "inf"],
            "target_loss is inf, expected a finite number",
        ),
        (["view", "c", "--live", "--port", "70000"], "port is 70000, expected 0 to 65535"),
        (["generate", "m", "def", "--n-token", "-1"], "n_token is -1, expected 0 or more"),
    ],
)
def test_a_flag_without_effect_or_out_of_range_is_said_before_anything_is_opened(
    command, monkeypatch, tmp_path, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*arguments)
    assert message in f"{code}{err}"
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_the_model_cannot_read_is_refused_by_name(command, idioms_corpus, quick_run, tmp_path):
    training.train(quick_run, corpus=idioms_corpus, out=tmp_path / "run")
    code, out, _ = command("tasks", tmp_path / "run", "--json")
    assert code == 0
    refused = {name: row["refused"] for name, row in json.loads(out).items() if "refused" in row}
    told = "the model's context 16; make the task with max_token 16 or less"
    assert any(told in reason for reason in refused.values())


def test_an_unknown_task_is_offered_the_nearest(command, idioms_corpus, quick_run, tmp_path):
    training.train(quick_run, corpus=idioms_corpus, out=tmp_path / "run")
    code, _, _ = command("prune", tmp_path / "run", "single_quote", "--out", tmp_path / "c")
    assert "no task is called 'single_quote'; did you mean single_double_quote?" in code
    code, _, _ = command("tasks", tmp_path / "run", "--task", "nonsense_inital")
    assert "did you mean nonsense_initial" in code
    (tmp_path / "pairs.txt").write_text("nothing")
    code, _, _ = command("prune", tmp_path / "run", tmp_path / "pairs.txt", "--out", tmp_path / "c")
    assert "pairs.txt: a file of pairs is called *.jsonl or *.csv, after its format" in code


def test_an_empty_folder_is_no_corpus(command, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, _ = command("corpus", "--out", tmp_path / "c", "--sources", tmp_path / "empty")
    assert "the folder has no .md, .py, .txt files" in code


def test_a_circuit_that_can_t_be_checked_says_what_is_missing(command, tmp_path):
    from safetensors.numpy import load_file, save_file

    circuit = tmp_path / "run/circuits/quote"
    shutil.copytree(sc.example(), tmp_path / "run")
    shutil.copytree(sc.example("circuits/single_double_quote"), circuit)
    code, _, _ = command("verify", circuit, "--quick", "--n-set", 3)
    assert "--quick decides n_set" in code
    code, _, _ = command("verify", circuit, "--hypothesis-nodes", "0.attn.v:0")
    assert "no effect without --hypothesis" in code
    code, _, _ = command("verify", circuit, "--hypothesis", "nowhere.py:f")
    assert "names no Python file" in code
    code, _, _ = command("predict", "bracket_counting", circuit)
    assert "was cut for single_double_quote, not for bracket_counting" in code
    code, _, _ = command("predict", "single_double_quote", circuit)
    assert "no families of prompts for single_double_quote" in code
    path = circuit / "masks.safetensors"
    arrays, header = load_file(path), {"header": json.dumps({"format": "sparse-circuits circuit", "version": 1})}
    save_file({name: array for name, array in arrays.items() if name != "values"}, path, header)
    code, _, _ = command("verify", circuit)
    assert "values is missing: what removed nodes are set to" in code
    with pytest.raises(FormatError, match="values is missing"):
        sc.Circuit.load(circuit)
    opened = sc.Circuit.load(circuit, values=lambda model: torch.zeros(1408))
    assert opened.n_node == 17
    save_file({name: array for name, array in arrays.items() if name != "keep"}, path, header)
    code, _, _ = command("verify", circuit)
    assert "keep is missing: which nodes are the circuit's" in code


def test_a_damaged_circuit_beside_a_sound_one_is_left_out_by_name(tmp_path, capsys):
    circuit = tmp_path / "run/circuits/quote"
    shutil.copytree(sc.example(), tmp_path / "run")
    shutil.copytree(sc.example("circuits/single_double_quote"), circuit)
    for name in ("history.jsonl", "masks.safetensors"):
        (shutil.copytree(circuit, circuit.with_name(f"without {name}")) / name).unlink()
    assert _beside(circuit, sc.Circuit.load(circuit)) == {}
    told = capsys.readouterr().err
    assert f"left out of the selectivity: {circuit.with_name('without history.jsonl')}/history.jsonl: no such" in told
    assert f"left out of the selectivity: {circuit.with_name('without masks.safetensors')}/masks.safetens" in told


def test_a_model_is_converted_and_a_warning_is_one_line(command, tmp_path):
    code, _, err = command("convert", examples.example(), tmp_path / "release", "--to", "release")
    assert (code, f"wrote {tmp_path / 'release'}" in err) == (0, True)
    path = tmp_path / "release/beeg_config.json"
    path.write_text(path.read_text().replace("{", '{"novel": 1,', 1))
    done = subprocess.run(
        [sys.executable, "-c", "from sparse_circuits.cli import main; main()", "inspect", path.parent, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["layout"] == "release"
    assert done.stderr == f"sparse-circuits: warning: {path}: unknown keys ignored: novel\n"
    code, _, _ = command("download", "csp_yollo2")
    assert "did you mean csp_yolo2" in code
