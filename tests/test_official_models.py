"""The release's models give the release's numbers (tests/golden/README.md says how they were computed)."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sparse_circuits import kernels
from sparse_circuits.formats import official
from sparse_circuits.taps import reading, replacing

CASES = sorted((Path(__file__).parent / "golden/models").iterdir())


@pytest.fixture(params=CASES, ids=lambda folder: folder.name.split("_")[0])
def case(request):
    folder = request.param
    golden = load_file(folder / "golden.safetensors")
    return official.load(folder), golden, json.loads((folder / "golden.json").read_text())


def close(actual, expected, tolerance=1e-4):
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def loss_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def recorded(golden):
    return {name.removeprefix("hook/"): tensor for name, tensor in golden.items() if name.startswith("hook/")}


def test_logits_loss_and_every_activation_are_the_releases(case):
    model, golden, _ = case
    with torch.no_grad(), reading(model) as seen:
        logits = model(golden["idx"])
    close(logits, golden["logits"])
    torch.testing.assert_close(loss_of(logits, golden["targets"]), golden["loss"], rtol=0, atol=1e-5)
    for name, expected in recorded(golden).items():
        close(seen[name], expected)
        if model.config.act_density is not None and name.split(".")[-1] not in ("resid_in", "resid_mid"):
            assert torch.equal(seen[name] != 0, expected != 0), name


EDITS = {
    "zero_1.mlp.post_act": {"1.mlp.post_act": lambda x: x * 0},
    "add_0.attn.resid_delta_ch3": {"0.attn.resid_delta": lambda x: x + 0.5 * F.one_hot(torch.tensor(3), x.shape[-1])},
}
EDITS["both"] = EDITS["zero_1.mlp.post_act"] | EDITS["add_0.attn.resid_delta_ch3"]


@pytest.mark.parametrize("key", EDITS)
def test_interventions_have_the_releases_effect(case, key):
    model, golden, _ = case
    with torch.no_grad(), replacing(model, EDITS[key]), reading(model, "final_resid") as seen:
        logits = model(golden["idx"])
    close(logits, golden[f"intervention/{key}/logits"])
    close(seen["final_resid"], golden[f"intervention/{key}/final_resid"])


def test_generation_gives_the_releases_tokens(case):
    model, golden, _ = case
    n_new = len(golden["generate/ids"].flatten()) - golden["idx"].shape[1]
    assert torch.equal(model.generate(golden["idx"][:1], n_new).flatten(), golden["generate/ids"].flatten())


def topk_with_the_releases_ties(x, n_keep):
    """AbsTopK as the release computes it: among equal magnitudes, whichever torch.topk names."""
    kept = x.abs().topk(n_keep, dim=-1, sorted=False).indices
    return torch.zeros_like(x).scatter(-1, kept, x.gather(-1, kept))


def test_gradients_are_the_releases(case, monkeypatch):
    # Sparse weights leave many exact zeros. Which of them AbsTopK keeps changes no activation, but it decides where
    # gradient passes: the release leaves that to torch.topk, we give ties to the lower index. Here its rule is lent.
    monkeypatch.setattr(kernels, "abs_topk", topk_with_the_releases_ties)
    model, golden, notes = case
    if notes["gradients"] is None:
        pytest.skip("the case has no gradients")
    names = official.parameter_names(model.config)
    with reading(model, *recorded(golden)) as seen:
        loss = loss_of(model(golden["idx"]), golden["targets"])
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, [*seen.values(), *parameters.values()])
    expected = [golden[f"grad/hook/{name}"] for name in seen]
    expected += [golden[f"grad/param/{names[name]}"] for name in parameters]
    for actual, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()) + 1e-9)
