"""A pruning that was interrupted goes on where it stood, and with nothing but what it was begun with."""

import dataclasses

import pytest
import torch
from hand_built import NODES, hand_built_model, hand_built_task

from sparse_circuits import pruning
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import FormatError, OutputExistsError, PruneError
from sparse_circuits.files import is_done
from sparse_circuits.masks import LearnedMasks
from sparse_circuits.pruning import prune
from sparse_circuits.unfinished import NAME, Unfinished

QUICK = PruneConfig(ablation="zero", n_step=2, n_pair=8, lr=1e-3, target_loss=0.1)


def interrupted(folder, monkeypatch, n_round):
    """Prune until so many rounds are noted; return their records, or None if there are not so many."""
    kept, note = [], Unfinished.note

    def note_and_stop(self, order, now):
        note(self, order, now)
        kept[:] = now.rounds
        if len(now.rounds) == n_round:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "note", note_and_stop)
        try:
            prune(hand_built_model(), hand_built_task(), QUICK, folder=folder)
        except KeyboardInterrupt:
            return kept
    return None


def test_an_interrupted_pruning_goes_on_from_every_round_without_learning_again(tmp_path, monkeypatch):
    for n_round in range(1, 100):
        folder = tmp_path / str(n_round)
        rounds = interrupted(folder, monkeypatch, n_round)
        if rounds is None:
            break
        assert not is_done(folder)
        with monkeypatch.context() as patch:
            patch.setattr(pruning, "learn_masks", None)
            circuit = prune(hand_built_model(), hand_built_task(), QUICK, folder=folder)
        assert circuit.node_names() == NODES
        assert circuit.n_edge == 2
        assert circuit.removed[1 : 1 + n_round] == rounds
        assert is_done(folder)
        assert not (folder / NAME).exists()
    assert n_round > 2


def test_what_was_begun_with_other_settings_is_refused_and_stays(tmp_path, monkeypatch):
    interrupted(tmp_path, monkeypatch, 1)
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(OutputExistsError, match=f"{NAME}: the pruning begun there has another settings"):
        prune(hand_built_model(), hand_built_task(), QUICK, folder=tmp_path, target_loss=0.09)
    assert (tmp_path / NAME).read_bytes() == before


def test_what_was_begun_with_other_means_is_refused(tmp_path, monkeypatch):
    config, model = dataclasses.replace(QUICK, ablation="mean"), hand_built_model()
    n_node = sum(model.config.node_widths().values())

    def begun(value):
        monkeypatch.setattr(pruning, "ablation_values", lambda *_, **__: torch.full((n_node,), value))
        return pruning.Pruning(model, hand_built_task(), config, folder=tmp_path).unfinished

    begun(0.0).begin(LearnedMasks(tau=torch.zeros(1, n_node), history=[[]]))
    assert begun(0.0).learned is not None
    with pytest.raises(OutputExistsError, match="the pruning begun there has another ablation"):
        begun(0.01)


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    interrupted(tmp_path, monkeypatch, 1)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:100])
    with pytest.raises(FormatError, match=f"{NAME}: truncated"):
        prune(hand_built_model(), hand_built_task(), QUICK, folder=tmp_path)


def test_a_finished_circuit_is_not_written_over(tmp_path):
    prune(hand_built_model(), hand_built_task(), QUICK, folder=tmp_path)
    with pytest.raises(OutputExistsError, match="already holds a finished circuit"):
        prune(hand_built_model(), hand_built_task(), QUICK, folder=tmp_path)


def test_attempts_that_missed_are_not_made_again_and_the_last_leaves_nothing(tmp_path, monkeypatch):
    tried = []

    def miss(self, learned, *, takes_far):
        tried.append(self.unfinished.n_missed)
        assert takes_far == (self.unfinished.n_missed == 2)
        if len(tried) == 2:
            raise KeyboardInterrupt
        raise PruneError("missed")

    monkeypatch.setattr(pruning.Pruning, "cut_out", miss)
    with pytest.raises(KeyboardInterrupt):
        prune(hand_built_model(), hand_built_task(), QUICK, folder=tmp_path)
    with pytest.raises(PruneError, match="missed"):
        prune(hand_built_model(), hand_built_task(), QUICK, folder=tmp_path)
    assert tried == [0, 1, 1, 2]
    assert not (tmp_path / NAME).exists()
