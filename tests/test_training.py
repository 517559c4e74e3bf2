"""Training is exact: budgets hold at every step, a resumed run is the run, and what goes wrong loses nothing."""

import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from hand_built import hand_built_task
from safetensors.torch import load_file

from sparse_circuits import checkpoint, training
from sparse_circuits.ablation import ablation_values, corpus_means, run_of, stored_means
from sparse_circuits.configs import ModelConfig, OptimizerConfig, SparsityConfig
from sparse_circuits.errors import ConfigError, CorpusError, DeviceError, DivergedError, FormatError, OutputExistsError
from sparse_circuits.loading import load
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.optimizer import Optimizer, base_lr_at, lr_at
from sparse_circuits.runlog import RunLog, duration, read_records
from sparse_circuits.sparsity import budgets, count_nonzeros, density_at, matrix_density_at, n_keep
from sparse_circuits.taps import reading


def tensors_of(run):
    folder = checkpoint.latest_checkpoint(run)
    return load_file(folder / "model.safetensors") | load_file(folder / "state.safetensors")


def assert_same_run(first, second):
    a, b = tensors_of(first), tensors_of(second)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture
def whole_run(idioms_corpus, quick_run, tmp_path):
    training.train(quick_run, corpus=idioms_corpus, out=tmp_path / "whole")
    return tmp_path / "whole"


def test_forty_steps_are_twenty_an_interrupt_and_twenty_bit_for_bit(whole_run, idioms_corpus, quick_run, tmp_path):
    parts = tmp_path / "parts"
    for stop_after in (20, 20, 0):  # what is there already is never called whole
        with pytest.raises(training.Interrupted, match="stopped after step 20; the same command goes on"):
            training.train(quick_run, corpus=idioms_corpus, out=parts, stop_after=stop_after)
    training.train(quick_run, corpus=idioms_corpus, out=parts)
    assert_same_run(whole_run, parts)
    records, expected = (read_records(run / "metrics.jsonl") for run in (parts, whole_run))
    assert [r["step"] for r in records] == list(range(40))
    assert [r["loss"] for r in records] == [r["loss"] for r in expected]


def test_a_killed_process_goes_on_from_its_last_checkpoint_bit_for_bit(whole_run, idioms_corpus, quick_run, tmp_path):
    parts = tmp_path / "parts"
    quick_run.save(tmp_path / "run.json")
    script = (
        "import os, signal, sys\n"
        "from sparse_circuits import training\n"
        "from sparse_circuits.configs import TrainConfig\n"
        f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
        "update = training.Optimizer.step\n"
        "def killed(self, step):\n"
        "    if step == 27: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return update(self, step)\n"
        "training.Optimizer.step = killed\n"
        "training.train(TrainConfig.load(sys.argv[1]), corpus=sys.argv[2], out=sys.argv[3])\n"
    )
    arguments = [str(tmp_path / "run.json"), str(idioms_corpus.folder), str(parts)]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert checkpoint.latest_checkpoint(parts).name == "00000020"
    training.train(quick_run, corpus=idioms_corpus, out=parts)
    assert_same_run(whole_run, parts)


def test_ctrl_c_saves_and_says_how_to_go_on(idioms_corpus, quick_run, tmp_path):
    class PressesCtrlC:
        """A progress stream that interrupts at the first line."""

        def write(self, text):
            os.kill(os.getpid(), signal.SIGINT)

        def flush(self):
            pass

        def isatty(self):
            return False

    with pytest.raises(training.Interrupted, match="goes on from there"):
        training.train(quick_run, corpus=idioms_corpus, out=tmp_path / "run", progress=PressesCtrlC())
    assert checkpoint.latest_checkpoint(tmp_path / "run").name == "00000001"


def test_a_full_disk_leaves_the_last_checkpoint_good(idioms_corpus, quick_run, tmp_path, monkeypatch):
    saved = checkpoint.save_arrays

    def full_after_ten_steps(path, arrays, header):
        if "00000020" in str(path) and "state" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(path, arrays, header)

    monkeypatch.setattr(checkpoint, "save_arrays", full_after_ten_steps)
    with pytest.raises(OSError, match="No space left"):
        training.train(quick_run, corpus=idioms_corpus, out=tmp_path / "run")
    assert checkpoint.latest_checkpoint(tmp_path / "run").name == "00000010"
    monkeypatch.undo()
    training.train(quick_run, corpus=idioms_corpus, out=tmp_path / "run")
    assert load(tmp_path / "run").config == quick_run.model


def test_a_finished_run_is_not_written_over(whole_run, idioms_corpus, quick_run):
    with pytest.raises(OutputExistsError, match="already holds a finished run"):
        training.train(quick_run, corpus=idioms_corpus, out=whole_run)


def test_another_runs_folder_is_refused_and_the_changed_setting_named(idioms_corpus, quick_run, tmp_path):
    with pytest.raises(training.Interrupted):
        training.train(quick_run, corpus=idioms_corpus, out=tmp_path, stop_after=2)
    with pytest.raises(ConfigError, match="started with another seed"):
        training.train(dataclasses.replace(quick_run, seed=1), corpus=idioms_corpus, out=tmp_path)


def with_bad_gradients(monkeypatch, steps):
    """Let the gradient of one weight be NaN at some steps."""
    honest, seen = training.loss_and_gradients, []

    def spoiled(model, tokens):
        found = honest(model, tokens)
        if len(seen) in steps:
            model.token_embedding.weight.grad[3, 3] = math.nan
        seen.append(1)
        return found

    monkeypatch.setattr(training, "loss_and_gradients", spoiled)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(idioms_corpus, quick_run, tmp_path, monkeypatch):
    with_bad_gradients(monkeypatch, {3, 20})
    model = training.train(quick_run, corpus=idioms_corpus, out=tmp_path)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    records = read_records(tmp_path / "metrics.jsonl")
    assert [r["grad_rms"] is None for r in records] == [step in {3, 20} for step in range(40)]
    assert [r.get("n_skipped", 0) for r in records] == [0] * 3 + [1] * 17 + [2] * 20


def test_a_skipped_step_moves_no_weight_and_no_moment(quick_run):
    torch.manual_seed(0)
    model = Transformer(quick_run.model)
    sparsity = SparsityConfig(matrix_density=1.0, embedding_density=1.0, bias_density=1.0, n_alive=0, anneal="none")
    adam = Optimizer(model, optimizer=OptimizerConfig(weight_decay=0.1), sparsity=sparsity, n_step=10)
    tokens = torch.randint(512, (2, 16))
    training.loss_and_gradients(model, tokens)
    assert adam.step(1).is_skipped == 0
    before, moments = (
        {n: p.clone() for n, p in model.named_parameters()},
        {n: t.clone() for n, t in adam.state().items()},
    )
    training.loss_and_gradients(model, tokens)
    model.final_norm.weight.grad[0] = math.inf
    assert adam.step(2).is_skipped == 1
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(torch.equal(t, moments[n]) for n, t in adam.state().items())


def test_ten_skipped_steps_in_a_row_stop_training_and_name_the_good_checkpoint(
    idioms_corpus, quick_run, tmp_path, monkeypatch
):
    with_bad_gradients(monkeypatch, range(15, 40))
    with pytest.raises(DivergedError, match=r"in the 10 steps up to 24; .*checkpoints.00000010: lower optimizer.lr"):
        training.train(quick_run, corpus=idioms_corpus, out=tmp_path)  # none was written at 20, where it failed already
    assert all(bool(p.isfinite().all()) for p in load(tmp_path).parameters())


def test_skipped_steps_in_a_row_are_counted_over_a_resume(idioms_corpus, quick_run, tmp_path, monkeypatch):
    with_bad_gradients(monkeypatch, range(15, 40))
    with pytest.raises(training.Interrupted):
        training.train(quick_run, corpus=idioms_corpus, out=tmp_path, stop_after=20)
    with_bad_gradients(monkeypatch, range(40))
    with pytest.raises(DivergedError, match="up to 24"):
        training.train(quick_run, corpus=idioms_corpus, out=tmp_path)


def test_a_run_without_a_checkpoint_says_so_when_it_stops(idioms_corpus, quick_run, tmp_path, monkeypatch):
    with_bad_gradients(monkeypatch, range(40))
    late = dataclasses.replace(quick_run, checkpoint_every=1000)
    with pytest.raises(DivergedError, match="no checkpoint was written yet"):
        training.train(late, corpus=idioms_corpus, out=tmp_path)


def test_a_run_that_cannot_fit_is_refused_before_anything_is_allocated(idioms_corpus, quick_run, tmp_path):
    huge = ModelConfig(n_vocab=512, n_ctx=16, n_layer=20, d_model=65_536, d_mlp=262_144)
    config = dataclasses.replace(quick_run, model=huge, sparsity=SparsityConfig(n_alive=0))
    for act in (
        lambda: training.plan(config, idioms_corpus),
        lambda: training.train(config, corpus=idioms_corpus, out=tmp_path),
    ):
        with pytest.raises(
            DeviceError, match=r"needs about [\d,.]+ GB, and cpu has [\d,.]+ GB free: lower model.d_model"
        ):
            act()


@pytest.mark.parametrize(
    ("name", "message"),
    [("cuda:99", "torch sees 0 GPUs"), ("gpu", "no device 'gpu'"), ("meta", "expected cpu, cuda")],
)
def test_a_device_that_is_not_there_is_named(name, message, idioms_corpus, quick_run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match=message):
        training.train(quick_run, corpus=idioms_corpus, out=tmp_path / "run", device=name)
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_that_is_not_the_corpuss_is_refused(idioms_corpus, quick_run, tmp_path):
    model = dataclasses.replace(quick_run.model, n_vocab=511)
    with pytest.raises(ConfigError, match=r"model\.n_vocab is 511.*has 512 tokens"):
        training.train(dataclasses.replace(quick_run, model=model), corpus=idioms_corpus, out=tmp_path)


def test_a_share_of_no_source_is_refused(idioms_corpus, quick_run, tmp_path):
    with pytest.raises(CorpusError, match="has no source 'stdlib'; it has idioms"):
        training.train(dataclasses.replace(quick_run, shares={"stdlib": 1.0}), corpus=idioms_corpus, out=tmp_path)


def test_the_final_budgets_are_exact(whole_run, quick_run):
    model, records = load(whole_run), read_records(whole_run / "metrics.jsonl")
    parameters = dict(model.named_parameters())
    for budget in budgets(model, quick_run.sparsity):
        size = parameters[budget.name].numel()
        n_nonzero = int(parameters[budget.name].count_nonzero())
        assert n_nonzero <= n_keep(size, budget.density)
        if budget.name.endswith("weight"):
            assert n_nonzero == n_keep(size, 0.5), budget.name
    for neurons in (model.linears()["0.mlp.fc_in"].weight, model.linears()["0.mlp.fc_out"].weight.T):
        assert int((neurons != 0).sum(1).min()) >= 2
    counted = count_nonzeros(model)
    assert counted.matrix_density == counted.embedding_density == 0.5
    assert records[-1]["n_nonzero"] == counted.n_nonzero


def test_the_loss_falls_from_a_table_that_knows_nothing(idioms_corpus, quick_run, tmp_path):
    training.train(dataclasses.replace(quick_run, bigram_init="zeros"), corpus=idioms_corpus, out=tmp_path)
    records = read_records(tmp_path / "metrics.jsonl")
    losses = [record["validation_loss"]["idioms"] for record in records if "validation_loss" in record]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < math.log(512) - 0.5
    assert records[-1]["loss"] < math.log(512)


def test_packed_and_plain_runs_are_the_same_model(whole_run, idioms_corpus, quick_run, tmp_path):
    plain = dataclasses.replace(quick_run, weights="plain")
    training.train(plain, corpus=idioms_corpus, out=tmp_path / "plain")
    assert checkpoint.model_hash(load(tmp_path / "plain")) == checkpoint.model_hash(load(whole_run))


def test_the_plan_counts_what_training_leaves(whole_run, idioms_corpus, quick_run):
    plan = training.plan(quick_run, idioms_corpus)
    counted = count_nonzeros(load(whole_run))
    assert plan.n_step == 40
    assert plan.n_parameter == counted.n_parameter + 512**2
    # Biases and norms may hold zeros of their own accord.
    assert plan.n_nonzero - 60 <= counted.n_nonzero <= plan.n_nonzero
    assert "about" in str(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"n_vocab": 300}}, "n_vocab is 300, the corpus .* has 512 tokens"),
        ({"shares": {"stdlib": 1.0}}, "has no source 'stdlib'"),
        ({"sparsity": {"n_alive": 9}}, "n_alive 9 asks for"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    change, message, idioms_corpus, quick_run, tmp_path
):
    ((field, value),) = change.items()
    changed = value if field == "shares" else dataclasses.replace(getattr(quick_run, field), **value)
    config = dataclasses.replace(quick_run, **{field: changed})
    with pytest.raises((ConfigError, CorpusError), match=message):
        training.plan(config, idioms_corpus)
    with pytest.raises((ConfigError, CorpusError), match=message):
        training.train(config, corpus=idioms_corpus, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dense_model_is_the_same_run_with_densities_of_one(idioms_corpus, quick_run, tmp_path):
    sparsity = SparsityConfig(matrix_density=1.0, embedding_density=1.0, bias_density=1.0, n_alive=0, anneal="none")
    dense = dataclasses.replace(quick_run, sparsity=sparsity)
    training.train(dense, corpus=idioms_corpus, out=tmp_path)
    assert count_nonzeros(load(tmp_path)).matrix_density == 1.0


def test_the_extra_step_changes_nothing_but_a_projection_when_the_rate_decays(
    whole_run, idioms_corpus, quick_run, tmp_path
):
    training.train(dataclasses.replace(quick_run, extra_step=True), corpus=idioms_corpus, out=tmp_path / "extra")
    assert read_records(tmp_path / "extra/metrics.jsonl")[-1]["lr"] == 0
    assert checkpoint.model_hash(load(tmp_path / "extra")) == checkpoint.model_hash(load(whole_run))


def test_a_truncated_checkpoint_is_said_to_be(whole_run):
    path = checkpoint.latest_checkpoint(whole_run) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"model\.safetensors: truncated"):
        load(whole_run)


def test_the_rate_starts_at_zero_and_the_sharkfin_ends_at_one():
    optimizer = OptimizerConfig(lr=0.5, warmup_frac=0.1, decay_lr=True)
    sparsity = SparsityConfig(matrix_density=0.25, anneal_start_frac=0.2, anneal_stop_frac=0.5)
    assert base_lr_at(0, n_step=100, config=optimizer) == 0
    assert base_lr_at(5, n_step=100, config=optimizer) == pytest.approx(0.25)
    assert base_lr_at(10, n_step=100, config=optimizer) == pytest.approx(0.5)
    assert base_lr_at(55, n_step=100, config=optimizer) == pytest.approx(0.25)
    # Dense: the square root of 1/4; sparse: 1.
    assert lr_at(15, n_step=100, optimizer=optimizer, sparsity=sparsity) == pytest.approx(0.5 * (1 - 5 / 90) / 2)
    assert lr_at(55, n_step=100, optimizer=optimizer, sparsity=sparsity) == pytest.approx(0.25)


def test_densities_by_hand():
    linear = SparsityConfig(matrix_density=0.2, embedding_density=0.6, anneal_start_frac=0.0, anneal_stop_frac=0.5)
    assert matrix_density_at(0, n_step=100, config=linear) == 1
    assert matrix_density_at(25, n_step=100, config=linear) == pytest.approx(0.6)
    assert matrix_density_at(80, n_step=100, config=linear) == pytest.approx(0.2)
    power = dataclasses.replace(linear, anneal="power_law", anneal_start_frac=0.01, anneal_stop_frac=1.0)
    assert matrix_density_at(10, n_step=100, config=power) == pytest.approx(0.2**0.5)
    for config in (power, dataclasses.replace(linear, anneal_stop_frac=1.0)):
        assert 0.2 < matrix_density_at(98, n_step=100, config=config) < 0.25
        assert matrix_density_at(99, n_step=100, config=config) == 0.2, "what the last step leaves is the result"
    model = Transformer(ModelConfig(n_vocab=8, n_ctx=4, n_layer=1, d_model=4, n_head=1, d_head=4, d_mlp=4))
    embedding = next(b for b in budgets(model, linear) if b.name == "token_embedding.weight")
    assert density_at(embedding, 0.6, config=linear) == pytest.approx(0.8)
    late = dataclasses.replace(linear, embedding_schedule="late")
    assert density_at(embedding, 0.6, config=late) == 1
    assert density_at(embedding, 0.25, config=late) == pytest.approx(0.75)


def test_corpus_means_are_the_mean_of_what_is_recorded_and_are_kept(whole_run):
    config, corpus = run_of(whole_run)
    model = load(whole_run)
    assert stored_means(model, whole_run) is None
    mean = corpus_means(model, corpus, config, n_token=512, cache=whole_run)
    rows = training.Batches(corpus, shares=config.shares, context=16, batch_size=32, n_step=1, seed=0)(0)
    space = NodeSpace.of(model.config)
    with torch.no_grad(), reading(model, *space.widths) as seen:
        model(rows)
    expected = space.join({name: seen[name].double().mean((0, 1)).float() for name in space.widths})
    torch.testing.assert_close(mean, expected)
    assert torch.equal(stored_means(model, whole_run), mean)
    assert torch.equal(stored_means(model, whole_run, n_token=512), mean)
    assert stored_means(model, whole_run, n_token=513) is None, "over too few tokens"
    wider = corpus_means(model, corpus, config, n_token=1024, cache=whole_run)
    assert not torch.equal(wider, mean)
    for n_token, expected in ((512, mean), (1024, wider), (513, wider)):
        assert torch.equal(stored_means(model, whole_run, n_token=n_token), expected)
    model.blocks[0].mlp.fc_in.weight.data[0, 0] += 1
    assert stored_means(model, whole_run) is None


def test_the_ablation_values_of_a_setting_do_not_depend_on_what_was_asked_for_before(whole_run):
    model, fit = load(whole_run), hand_built_task().split("fit")

    def values(n_token):
        return ablation_values(model, "mean", fit=fit, n_token=n_token)

    wide, narrow = values(1024), values(512)
    assert not torch.equal(wide, narrow), "the wider ones do not stand in"
    assert torch.equal(values(1024), wide)
    # What was kept under the corpus's name alone is read as before.
    for path in (whole_run / "means").glob("*-512.safetensors"):
        path.rename(path.with_name(path.name.replace("-512", "")))
    stamps = {path: path.stat().st_mtime_ns for path in (whole_run / "means").iterdir()}
    assert torch.equal(values(512), narrow)
    assert {path: path.stat().st_mtime_ns for path in (whole_run / "means").iterdir()} == stamps
    # Without the corpus the next wider ones are all that can be had.
    described = json.loads((whole_run / "config.json").read_text())
    described["corpus"]["path"] = "gone"
    (whole_run / "config.json").write_text(json.dumps(described))
    assert torch.equal(values(512), narrow)
    assert torch.equal(values(513), wide)
    with pytest.raises(ConfigError, match="fewer than the 2,000 tokens asked for"):
        values(2000)


def test_a_corpus_that_changed_is_refused(whole_run, idioms_corpus):
    path = whole_run / "config.json"
    described = json.loads(path.read_text())
    described["corpus"]["hash"] = "0" * 64
    path.write_text(json.dumps(described))
    with pytest.raises(FormatError, match="its hash differs"):
        run_of(whole_run)


def test_progress_comes_at_most_once_a_second_and_always_at_the_end(capsys):
    log = RunLog(None, n_step=1000, stream=sys.stderr)
    started = time.monotonic()
    for step in range(1000):
        log.show(step, "loss 1")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 2 + (time.monotonic() - started)
    assert lines[-1].startswith("step 1,000 of 1,000  loss 1")


def test_the_time_left_is_not_told_from_a_first_step_that_compiles(capsys, monkeypatch):
    ends = iter((100.0, 102.0, 104.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(ends))
    log = RunLog(None, n_step=1000, stream=sys.stderr)
    for step in range(3):
        log.show(step, "loss 1")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "step 1 of 1,000  loss 1"
    assert second.endswith("33 min 16 s left"), "998 steps of two seconds each"
    assert third.endswith("33 min 14 s left")


def test_durations_read_like_speech():
    assert [duration(s) for s in (41.2, 200, 7500)] == ["41 s", "3 min 20 s", "2 h 5 min"]
