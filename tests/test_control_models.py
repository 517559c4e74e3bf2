"""Models that never learned: as many nonzeros where they were, and nothing of what was known."""

import dataclasses

import pytest
import torch
from hand_built import hand_built_model, random_model

import sparse_circuits as sc
from sparse_circuits.checkpoint import model_hash
from sparse_circuits.control_models import KINDS, control_model, control_run
from sparse_circuits.errors import ConfigError, FormatError, TapError
from sparse_circuits.scoring import all_logit_differences, task_loss


@pytest.mark.parametrize("kind", KINDS)
def test_each_matrix_has_as_many_nonzeros_and_the_bigram_table_stays(kind):
    model = random_model()
    before = model_hash(model)
    control = control_model(model, kind, seed=1)
    assert model_hash(model) == before
    for (name, old), new in zip(model.named_parameters(), control.parameters(), strict=True):
        if name == "bigram":
            assert torch.equal(old, new)
        elif old.ndim == 2:
            assert new.count_nonzero() == old.count_nonzero(), name
            assert not torch.equal(old, new), name


def test_shuffling_keeps_the_weights_of_each_row_and_all_that_is_no_matrix():
    model = random_model()
    control = control_model(model, "shuffled")
    for (name, old), new in zip(model.named_parameters(), control.parameters(), strict=True):
        assert torch.equal(old.sort(-1).values, new.sort(-1).values) if old.ndim == 2 else torch.equal(old, new), name


def test_random_weights_have_the_trained_ones_size():
    model = random_model()
    control = control_model(model, "random")
    old, new = model.unembedding.weight, control.unembedding.weight
    n = int(old.count_nonzero())
    assert float(new.detach().square().sum()) == pytest.approx(
        float(old.detach().square().sum()), rel=4 * (2 / n) ** 0.5
    )
    assert torch.equal(control.final_norm.weight, torch.ones_like(control.final_norm.weight))


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind):
    model = random_model()
    one, same, other = (control_model(model, kind, seed=seed) for seed in (3, 3, 4))
    assert model_hash(one) == model_hash(same) != model_hash(other)


def test_a_control_is_a_run_folder_that_is_made_once(tmp_path, quick_run, idioms_corpus):
    model = sc.train(quick_run, corpus=idioms_corpus, out=tmp_path / "run")
    made = control_run(model, "shuffled", tmp_path / "control", seed=2)
    assert model_hash(made) == model_hash(control_model(model, "shuffled", seed=2))
    assert model_hash(control_run(model, "shuffled", tmp_path / "control", seed=2)) == model_hash(made)
    assert made.tokenizer is not None
    for kind, seed in (("shuffled", 5), ("random", 2)):
        with pytest.raises(ConfigError, match="holds a control of another model, kind or seed"):
            control_run(model, kind, tmp_path / "control", seed=seed)
    with torch.no_grad():
        model.blocks[0].mlp.fc_in.weight[0, 0] += 1
    with pytest.raises(ConfigError, match="holds a control of another model, kind or seed"):
        control_run(model, "shuffled", tmp_path / "control", seed=2)


def test_positions_that_nobody_learned_stay_and_a_packed_model_is_refused():
    model = sc.Transformer(dataclasses.replace(random_model().config, positions="sinusoidal", d_position=4))
    for kind in KINDS:
        control = control_model(model, kind)
        assert torch.equal(control.position_embedding.weight, model.position_embedding.weight)
        with pytest.raises(TapError, match="is packed, and its whole weights are needed"):
            control_model(sc.load(sc.example(), packed=True), kind)


def test_a_model_without_a_run_folder_has_no_control_run(tmp_path):
    with pytest.raises(FormatError, match="controls need the run folder"):
        control_run(hand_built_model(), "random", tmp_path)


def test_the_shipped_model_no_longer_knows_quotes_when_it_is_shuffled():
    model = sc.load(sc.example())
    pairs = sc.task("single_double_quote", model.tokenizer).split("test")
    control = control_model(model, "shuffled")
    assert float(task_loss(all_logit_differences(model, pairs)[0])) < 0.1
    assert float(task_loss(all_logit_differences(control, pairs)[0])) > 0.5
