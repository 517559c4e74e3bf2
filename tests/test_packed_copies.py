"""Large models are read through once, and opened from a packed copy."""

import shutil

import pytest
import torch
from release_models import CASES, rewritten

import sparse_circuits as sc
from sparse_circuits import packed_copies
from sparse_circuits.configs import ModelConfig
from sparse_circuits.formats import mapped, official
from sparse_circuits.model import Transformer

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def every_size_is_large(monkeypatch):
    monkeypatch.setattr(packed_copies, "SMALLEST", 0)
    monkeypatch.setattr(mapped, "MAPPED_FROM", 0)


def sparse_release(folder):
    config = ModelConfig(n_vocab=16, n_ctx=8, n_layer=1, d_model=32, n_head=2, d_head=16, d_mlp=256, positions="added")
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)) < 0.02)
    return sc.convert(model, folder, "release")


@pytest.mark.usefixtures("every_size_is_large")
def test_a_large_model_is_read_through_once_and_opened_packed_from_its_copy(tmp_path, monkeypatch):
    folder = sparse_release(tmp_path / "release")
    first = sc.load(folder)
    monkeypatch.setattr(packed_copies, "count_not_finite", lambda _: pytest.fail("the weights were read through again"))
    again = sc.load(folder)
    ours, tokens = first.state_dict(), torch.arange(8)[None]
    assert all(torch.equal(tensor, ours[name]) for name, tensor in again.state_dict().items())
    monkeypatch.setattr(official, "load", lambda _: pytest.fail("the release's file was opened again"))
    torch.testing.assert_close(sc.load(folder, packed=True)(tokens), first(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("every_size_is_large")
def test_a_changed_file_is_read_anew_and_the_old_copy_goes(tmp_path):
    folder = sparse_release(tmp_path / "release")
    sc.load(folder)
    rewritten(folder, lambda state: state["transformer.wte.weight"].fill_(3))
    assert (sc.load(folder).token_embedding.weight == 3).all()
    assert len(list((tmp_path / "cache/packed").glob("*.safetensors"))) == 1


@pytest.mark.usefixtures("every_size_is_large")
def test_what_packing_does_not_shrink_is_mapped_each_time_and_still_said_to_hold_nan(tmp_path):
    folder = shutil.copytree(CASES[0], tmp_path / "dense")
    rewritten(folder, lambda state: [tensor.fill_(torch.nan) for tensor in state.values()])
    for _ in range(2):
        with pytest.warns(UserWarning, match="NaN or infinite"):
            sc.load(folder)
    assert list((tmp_path / "cache/packed").glob("*.safetensors")) == []


@pytest.mark.usefixtures("every_size_is_large")
def test_a_broken_copy_is_made_again_and_a_full_disk_costs_only_the_copy(tmp_path, monkeypatch):
    folder = sparse_release(tmp_path / "release")
    first = sc.load(folder)
    (copy,) = (tmp_path / "cache/packed").glob("*.safetensors")
    copy.write_bytes(copy.read_bytes()[:100])
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(sc.load(folder, packed=True)(tokens), first(tokens), rtol=1e-5, atol=1e-5)
    assert copy.stat().st_size > 100
    shutil.rmtree(tmp_path / "cache")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed_copies, "save_model", full)
    with pytest.warns(UserWarning, match="no packed copy was kept for next time .*No space left"):
        sc.load(folder)


def test_small_models_leave_nothing_in_the_cache(tmp_path):
    sc.load(CASES[0])
    assert not (tmp_path / "cache").exists()


# In the release's own code
