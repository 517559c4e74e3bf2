"""The search of settings: it finds the known circuit, goes on where it stopped, and survives a broken journal."""

import dataclasses
import functools
import io
import re

import pytest
from hand_built import NODES, hand_built_model, hand_built_task
from known_circuits import FAKES, circuit_of

from sparse_circuits import search
from sparse_circuits.checkpoint import load_arrays
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import ConfigError, OutputExistsError, PruneError
from sparse_circuits.pruning import prune

QUICK = PruneConfig(ablation="zero", n_step=40, n_pair=8, target_loss=0.1)


def run(out, n_trial, progress=None):
    return search.search_settings(
        hand_built_model(), hand_built_task(), out, QUICK, n_trial=n_trial, n_at_once=3, progress=progress
    )


def stops(*_, **__):
    raise KeyboardInterrupt


def interrupt_at(place, name, call, *given):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, stops)
        with pytest.raises(KeyboardInterrupt):
            call(*given)


def test_a_search_finds_the_known_circuit_and_goes_on_where_it_stopped(tmp_path):
    first = io.StringIO()
    interrupt_at(search.Pruning, "cut_out", run, tmp_path, 4, first)
    assert first.getvalue().count("trial") == 4
    second = io.StringIO()
    circuit = run(tmp_path, 5, second)
    assert circuit.node_names() == NODES
    assert second.getvalue().count("trial") == 1
    assert circuit.removed[0]["search"]["n_trial"] == 5
    assert 0.002 <= circuit.settings["lr"] <= 0.05
    assert Circuit.load(tmp_path, circuit.model).removed == circuit.removed
    with pytest.raises(OutputExistsError, match="already holds a finished circuit"):
        run(tmp_path, 6)


def test_a_circuit_that_could_not_be_saved_is_not_refined_again(tmp_path, monkeypatch):
    interrupt_at(Circuit, "save", run, tmp_path, 2)
    rounds = []
    monkeypatch.setattr(search.Pruning, "say", lambda _, text: rounds.append(text))
    run(tmp_path, 2)
    assert not [text for text in rounds if "nodes left" in text or "edges left" in text]


def test_trials_that_stand_worse_than_the_median_are_stopped_and_count_as_done(tmp_path):
    told = io.StringIO()
    run(tmp_path, 18, told)
    lines = [line for line in told.getvalue().splitlines() if line.startswith("trial")]
    assert [line.split(":")[0] for line in lines] == [f"trial {n} of 18" for n in range(1, 19)]
    stopped = [line for line in lines if "stopped after" in line]
    assert stopped
    assert all("stopped after 13 steps" in line or "stopped after 27 steps" in line for line in stopped)
    assert not any("stopped" in line for line in lines[:6]), "the rule needs five finished trials, in batches of three"
    states = [trial.state.name for trial in journal_of(tmp_path).get_trials()]
    assert states.count("PRUNED") == len(stopped)
    assert states.count("COMPLETE") == 18 - len(stopped)
    values = [trial.intermediate_values for trial in journal_of(tmp_path).get_trials()]
    assert all(13 in value for value in values)


def journal_of(out):
    optuna = pytest.importorskip("optuna")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / "journal.log")))
    return optuna.load_study(study_name=None, storage=storage)


def test_a_search_that_goes_on_draws_other_settings_than_before(tmp_path):
    for n_trial in (2, 4):
        interrupt_at(search.Pruning, "cut_out", run, tmp_path, n_trial)
    trials = journal_of(tmp_path).get_trials()
    assert len({trial.params["lr"] for trial in trials}) == len(trials) == 4


def test_a_search_interrupted_while_a_trial_is_told_keeps_its_mask(tmp_path):
    optuna = pytest.importorskip("optuna")

    interrupt_at(optuna.Study, "tell", run, tmp_path, 1)
    header, _ = load_arrays(tmp_path / "best.safetensors", search.FORMAT, search.VERSION)
    told = io.StringIO()
    found = run(tmp_path, 1, told).removed[0]["search"]
    assert (found["trial"], found["best_value"]) in ((0, header["value"]), (1, found["best_value"]))
    assert found["best_value"] <= header["value"]
    assert [trial.state.name for trial in journal_of(tmp_path).get_trials()] == ["FAIL", "COMPLETE"]
    assert "trial 1 of 1" in told.getvalue()


@pytest.mark.parametrize("harm", ["damaged", "lost"])
def test_the_best_mask_is_learned_again_where_its_file_is_damaged_or_lost(tmp_path, harm):
    first, best, told = run(tmp_path / "whole", 3), tmp_path / "best.safetensors", io.StringIO()
    interrupt_at(search.Pruning, "cut_out", run, tmp_path, 3)
    if harm == "damaged":
        best.write_bytes(best.read_bytes()[:100])
    else:
        best.unlink()
    again = run(tmp_path, 3, told)
    assert again.node_names() == first.node_names() == NODES
    assert again.settings == first.settings
    assert again.removed[0]["search"] == first.removed[0]["search"]
    assert ("best.safetensors: truncated" in told.getvalue()) == (harm == "damaged")
    assert "the best so far: it is learned again" in told.getvalue()
    assert best.exists()


def test_a_broken_journal_is_kept_aside_and_begun_anew(tmp_path):
    (tmp_path / "journal.log").write_text("not a journal\n")
    told = io.StringIO()
    assert run(tmp_path, 3, told).node_names() == NODES
    assert "can't be read" in told.getvalue()
    assert (tmp_path / "journal.broken-1").read_text().startswith("not a journal\n")


@pytest.mark.parametrize("harm", ["an unknown operation", "no value", "cut short"])
def test_a_journal_that_was_tampered_with_is_kept_aside_too(tmp_path, harm):
    interrupt_at(search.Pruning, "cut_out", run, tmp_path, 2)
    path = tmp_path / "journal.log"
    lines = path.read_text().splitlines(keepends=True)
    if harm == "an unknown operation":
        lines[-1] = '{"op_code": 99, "worker_id": "x"}\n'
    elif harm == "no value":
        lines = [re.sub(r'"values":\s*\[[^\]]*\]', '"values":null', line) for line in lines]
    else:
        lines[len(lines) // 2] = lines[len(lines) // 2][:20] + "\n"
    path.write_text("".join(lines))
    told = io.StringIO()
    assert run(tmp_path, 2, told).node_names() == NODES
    assert "can't be read" in told.getvalue()
    assert (tmp_path / "journal.broken-1").read_text().startswith("".join(lines))


def test_where_no_trial_reaches_the_target_the_lowest_loss_is_told(tmp_path):
    hopeless = dataclasses.replace(QUICK, exclude=(NODES[1],), n_step=5)
    with pytest.raises(PruneError, match=r"no trial of 2 meets .* is \d+ nodes at loss 0\.69"):
        search.search_settings(hand_built_model(), hand_built_task(), tmp_path, hopeless, n_trial=2)


def test_another_search_in_the_same_folder_is_refused_and_its_trials_are_not_mixed_in(tmp_path):
    interrupt_at(search.Pruning, "cut_out", run, tmp_path, 3)
    other, before = dataclasses.replace(QUICK, target_loss=0.02), (tmp_path / "journal.log").read_bytes()
    with pytest.raises(OutputExistsError, match=r"best\.safetensors: the search begun there has another settings"):
        search.search_settings(hand_built_model(), hand_built_task(), tmp_path, other, n_trial=3)
    assert (tmp_path / "journal.log").read_bytes() == before
    (tmp_path / "best.safetensors").unlink()
    told = io.StringIO()
    search.search_settings(hand_built_model(), hand_built_task(), tmp_path, other, n_trial=2, progress=told)
    assert told.getvalue().count("trial") == 2  # the others' trials are not its own


def test_neither_a_search_nor_a_pruning_goes_on_with_what_the_other_left(tmp_path):
    interrupt_at(search.Pruning, "choose_size", run, tmp_path / "search", 2)  # the masks are kept by then
    into = functools.partial(prune, folder=tmp_path / "prune")
    interrupt_at(search.Pruning, "choose_size", into, hand_built_model(), hand_built_task(), QUICK)
    with pytest.raises(OutputExistsError, match="the pruning begun there has another command"):
        prune(hand_built_model(), hand_built_task(), QUICK, folder=tmp_path / "search")
    with pytest.raises(OutputExistsError, match="the pruning begun there has another command"):
        run(tmp_path / "prune", 2)


def test_where_no_size_takes_the_information_out_a_search_ends_as_pruning_does(tmp_path):
    circuit, task = circuit_of(FAKES["half of a backup"][0], 0)
    model, known = circuit.model, tuple(circuit.node_names())  # without these the other half does it, and tells as much
    config = dataclasses.replace(QUICK, n_step=60, ablation="task_mean", exclude=known)
    alone = prune(model, task, config)
    found = search.search_settings(model, task, tmp_path / "s", config, n_trial=3)
    assert found.removed[0]["scan"]["max_auroc"] == alone.removed[0]["scan"]["max_auroc"] == 1.0


@pytest.mark.parametrize("settings", [{"n_at_once": 0}, {"n_trial": 0}])
def test_a_search_needs_a_trial(tmp_path, settings):
    with pytest.raises(ConfigError, match=r"is 0, expected 1 or more"):
        search.search_settings(hand_built_model(), hand_built_task(), tmp_path, QUICK, **settings)


def test_several_masks_a_trial_are_refused(tmp_path):
    config = dataclasses.replace(QUICK, n_run=4)
    with pytest.raises(ConfigError, match="n_run is 4, expected 1"):
        search.search_settings(hand_built_model(), hand_built_task(), tmp_path, config)


def test_without_optuna_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'pip install "sparse-circuits\[search\]"'):
        run(tmp_path, 1)
