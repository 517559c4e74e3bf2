"""The release's weight top-k and training loop, step by step (tests/golden/README.md)."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sparse_circuits.configs import OptimizerConfig, SparsityConfig
from sparse_circuits.errors import ConfigError
from sparse_circuits.formats import official
from sparse_circuits.model import Transformer
from sparse_circuits.optimizer import Optimizer, lr_at
from sparse_circuits.sparsity import budgets, check_quota, matrix_density_at, project_

GOLDEN = Path(__file__).parent / "golden"
TOPK = GOLDEN / "topk/t01_untied_bigram_sink"
TRAIN = GOLDEN / "train/tr01_release_like"
SETTINGS = json.loads((TOPK / "golden.json").read_text())["settings"]


def model_before(tmp_path):
    config = json.loads((TOPK / "golden.json").read_text())["config"]
    (tmp_path / "beeg_config.json").write_text(json.dumps(config))
    model = Transformer(official.read_config(tmp_path / "beeg_config.json"))
    official.load_state(model, load_file(TOPK / "before.safetensors"), where="before")
    return model


def release_sparsity(setting):
    ef, ef_mlp = setting["expansion_factor"], setting["expansion_factor_mlp"]
    return SparsityConfig(
        matrix_density=setting["final_pfrac"] / (ef * ef_mlp),
        embedding_density=setting["final_pfrac"] / ef,
        bias_density=1.0,
        n_alive=setting["minimum_alive_per_neuron"] if setting["achyuta_mixed_neuronwise_v2"] else 0,
    )


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: str(s["index"]))
def test_projection_is_the_releases_bit_for_bit(setting, tmp_path):
    model, config = model_before(tmp_path), release_sparsity(setting)
    density = setting["pfrac"] / (setting["expansion_factor"] * setting["expansion_factor_mlp"])
    if "expected_error" in setting:
        with pytest.raises(ConfigError, match=r"n_alive 4 asks for .* lower n_alive"):
            check_quota(model, config)
        return
    project_(model, density, config=config)
    names, state = official.parameter_names(model.config), model.state_dict()
    for name, expected in load_file(TOPK / setting["after"]).items():
        ours = next(mine for mine, theirs in names.items() if theirs == name)
        assert torch.equal(state[ours], expected), name


def test_a_quota_over_half_the_budget_is_warned_of(tmp_path):
    config = SparsityConfig(matrix_density=0.5, embedding_density=1.0, n_alive=5)
    with pytest.warns(UserWarning, match="over half"):
        check_quota(model_before(tmp_path), config)


def test_thirty_one_steps_are_the_releases():
    golden = json.loads((TRAIN / "golden.json").read_text())
    tensors = load_file(TRAIN / "golden.safetensors")
    run, n_step = golden["hyperparameters"], golden["total_steps"]
    sparsity = SparsityConfig(
        matrix_density=run["pfrac"] / 4,
        embedding_density=run["pfrac"] / 2,
        bias_density=1.0,
        anneal_start_frac=run["pfrac_anneal_start_frac"],
        anneal_stop_frac=run["pfrac_anneal_stop_frac"],
        n_alive=run["minimum_alive_per_neuron"],
    )
    optimizer = OptimizerConfig(
        lr=run["lr"], warmup_frac=run["lr_warmup_frac"], eps=run["eps"], weight_decay=run["weight_decay"]
    )
    model = Transformer(official.read_config(TRAIN / "beeg_config.json"))
    official.load_state(model, load_file(TRAIN / "initial.safetensors"), where="initial")
    adam = Optimizer(model, optimizer=optimizer, sparsity=sparsity, n_step=n_step)
    names = official.parameter_names(model.config)
    for step, (expected, batch) in enumerate(zip(golden["per_step"], tensors["batches"], strict=True)):
        density = matrix_density_at(step, n_step=n_step, config=sparsity)
        lr = lr_at(step, n_step=n_step, optimizer=optimizer, sparsity=sparsity)
        assert density * 4 == pytest.approx(expected["pfrac"], rel=1e-9)
        assert lr == pytest.approx(expected["lr"], rel=1e-9)
        loss = F.cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        assert float(loss.detach()) == pytest.approx(expected["loss"], abs=1e-4)
        loss.backward()
        if step < 2:
            for name, parameter in model.named_parameters():
                wanted = tensors[f"grad/step{step:03d}/{names[name]}"]
                torch.testing.assert_close(parameter.grad, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()) + 1e-9)
        update = adam.step(step)
        assert float(update.grad_rms) == pytest.approx(expected["grad_rms"], rel=1e-3)
        for budget in budgets(model, sparsity):
            if budget.name.endswith("weight"):
                wanted = expected["topk"][names[budget.name]]["nonzero_after"]
                assert int(model.get_parameter(budget.name).count_nonzero()) == wanted, (step, budget.name)
        file = TRAIN / f"after_step{step:03d}.safetensors"
        if file.exists():
            state = model.state_dict()
            for ours, theirs in names.items():
                if theirs in (after := load_file(file)):
                    torch.testing.assert_close(state[ours], after[theirs], rtol=0, atol=1e-4)
                    assert torch.equal(state[ours] != 0, after[theirs] != 0), (step, theirs)
