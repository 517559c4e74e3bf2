"""The search of settings: it finds the known circuit, goes on where it stopped, and survives a broken journal."""

import io

import pytest
from hand_built import NODES, hand_built_model, hand_built_task

from sparse_circuits import search
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import ConfigError

QUICK = PruneConfig(ablation="zero", n_step=40, n_pair=8, target_loss=0.1)


def run(out, n_trial, progress=None):
    return search.search_settings(
        hand_built_model(), hand_built_task(), out, QUICK, n_trial=n_trial, n_at_once=3, progress=progress
    )


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


def test_a_broken_journal_is_kept_aside_and_begun_anew(tmp_path):
    (tmp_path / "journal.log").write_text("not a journal\n")
    told = io.StringIO()
    assert run(tmp_path, 3, told).node_names() == NODES
    assert "can't be read" in told.getvalue()
    assert (tmp_path / "journal.broken-1").read_text().startswith("not a journal\n")


def test_without_optuna_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'pip install "sparse-circuits\[search\]"'):
        run(tmp_path, 1)
