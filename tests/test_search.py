"""The search of settings: it finds the known circuit, goes on where it stopped, and survives a broken journal."""

import dataclasses
import io

import pytest
from hand_built import NODES, hand_built_model, hand_built_task
from known_circuits import FAKES, circuit_of

from sparse_circuits import search
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import ConfigError
from sparse_circuits.pruning import prune

QUICK = PruneConfig(ablation="zero", n_step=40, n_pair=8, target_loss=0.1)


def run(out, n_trial, progress=None):
    return search.search_settings(
        hand_built_model(), hand_built_task(), out, QUICK, n_trial=n_trial, n_at_once=3, progress=progress
    )


def stops(*_, **__):
    raise KeyboardInterrupt


def test_a_search_finds_the_known_circuit_and_goes_on_where_it_stopped(tmp_path):
    first = io.StringIO()
    assert run(tmp_path, 4, first).node_names() == NODES
    assert first.getvalue().count("trial") == 4
    second = io.StringIO()
    circuit = run(tmp_path, 5, second)
    assert circuit.node_names() == NODES
    assert second.getvalue().count("trial") == 1
    assert circuit.removed[0]["search"]["n_trial"] == 5
    assert 0.002 <= circuit.settings["lr"] <= 0.05


def journal_of(out):
    optuna = pytest.importorskip("optuna")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / "journal.log")))
    return optuna.load_study(study_name=None, storage=storage)


def test_a_search_that_goes_on_draws_other_settings_than_before(tmp_path):
    for n_trial in (2, 4):
        run(tmp_path, n_trial)
    trials = journal_of(tmp_path).get_trials()
    assert len({trial.params["lr"] for trial in trials}) == len(trials) == 4


def test_a_search_interrupted_while_a_trial_is_told_keeps_its_mask(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", stops)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, 1)
    assert (tmp_path / "best.safetensors").exists()


@pytest.mark.parametrize("harm", ["damaged", "lost"])
def test_the_best_mask_is_learned_again_where_its_file_is_damaged_or_lost(tmp_path, harm):
    first, best, told = run(tmp_path, 3), tmp_path / "best.safetensors", io.StringIO()
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


def test_another_search_in_the_same_folder_is_refused_and_its_trials_are_not_mixed_in(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(search.Pruning, "cut_out", stops)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, 3)
    other, before = dataclasses.replace(QUICK, target_loss=0.02), (tmp_path / "journal.log").read_bytes()
    with pytest.raises(ConfigError, match=r"best\.safetensors: the search begun there has another settings"):
        search.search_settings(hand_built_model(), hand_built_task(), tmp_path, other, n_trial=3)
    assert (tmp_path / "journal.log").read_bytes() == before
    (tmp_path / "best.safetensors").unlink()
    told = io.StringIO()
    search.search_settings(hand_built_model(), hand_built_task(), tmp_path, other, n_trial=2, progress=told)
    assert told.getvalue().count("trial") == 2  # the others' trials are not its own


def test_neither_a_search_nor_a_pruning_goes_on_with_what_the_other_left(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(search.Pruning, "choose_size", stops)  # the masks are kept by then
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "search", 2)
        with pytest.raises(KeyboardInterrupt):
            prune(hand_built_model(), hand_built_task(), QUICK, folder=tmp_path / "prune")
    with pytest.raises(ConfigError, match="the pruning begun there has another command"):
        prune(hand_built_model(), hand_built_task(), QUICK, folder=tmp_path / "search")
    with pytest.raises(ConfigError, match="the pruning begun there has another command"):
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
