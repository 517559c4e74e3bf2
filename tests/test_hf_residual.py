"""Models of transformers give their own logits sublayer by sublayer, can be bridged, and others are refused."""

import json

import pytest
import torch
from bridge_models import random_model
from test_bridges import gradients, plain_loss

from sparse_circuits import training
from sparse_circuits.bridges.learning import train_bridges
from sparse_circuits.bridges.maps import Bridge, Bridges
from sparse_circuits.bridges.objective import backward
from sparse_circuits.bridges.residual import OwnModel, ResidualModel, frozen, open_residual
from sparse_circuits.bridges.ridge import quick_bridge
from sparse_circuits.configs import BridgeConfig
from sparse_circuits.errors import ConfigError, FormatError
from sparse_circuits.formats.hf_residual import HFModel, is_hf_folder, open_hf

transformers = pytest.importorskip("transformers")

SHAPE = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GATED = SHAPE | {"intermediate_size": 24, "num_key_value_heads": 1, "max_position_embeddings": 12}


def tiny(kind: str):
    """Build a random model of a family."""
    torch.manual_seed(0)
    config = {
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=24, n_embd=16, n_layer=2, n_head=2, n_positions=12, bos_token_id=0, eos_token_id=0
        ),
        "llama": lambda: transformers.LlamaConfig(**GATED),
        "qwen2": lambda: transformers.Qwen2Config(**GATED),
        "qwen3": lambda: transformers.Qwen3Config(**GATED, head_dim=8),
    }[kind]()
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


FAMILIES = ["gpt2", "llama", "qwen2", "qwen3"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_sublayer_by_sublayer_it_gives_its_own_logits(kind):
    model = HFModel(tiny(kind))
    assert isinstance(model, ResidualModel)
    tokens = torch.randint(24, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = model.embed(tokens)
        for site in range(model.n_sublayer):
            x = model.run(x, site, site + 1)
        torch.testing.assert_close(model.unembed(x, tokens), model.model(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_read_is_the_norms_output_but_for_its_bias(kind):
    model = HFModel(tiny(kind))
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    for site in range(5):
        norm = model.norm(site)
        expected = norm(x) - (norm.bias if kind == "gpt2" else 0)
        read = model.to_read(site, x) / model.divisor(site, x)[..., None]
        torch.testing.assert_close(read, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", FAMILIES)
def test_adding_to_a_read_acts_once_and_ends(kind):
    model = HFModel(tiny(kind))
    tokens = torch.randint(24, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = model.embed(tokens)
        before = model.run(x)
        delta = torch.zeros_like(x)
        delta[:, 3] = 1.0
        with model.adding(2, delta):
            changed = model.run(x)
        assert torch.equal(model.run(x), before)
        assert torch.equal(changed[:, :3], before[:, :3])
        assert not torch.allclose(changed[:, 3:], before[:, 3:], atol=1e-4)


def test_gradients_through_a_model_of_transformers_are_those_of_the_plainest_autograd():
    sparse, dense = OwnModel(random_model(0, act_density=0.5)), HFModel(tiny("llama"))
    frozen(dense)
    bridges = Bridges(d_sparse=8, d_dense=16, sites=tuple((s, s) for s in range(5)), density=0.5)
    tokens = torch.randint(24, (3, 7), generator=torch.Generator().manual_seed(2))
    config = BridgeConfig(hybrids_at_once=2)
    backward(bridges, sparse=sparse, dense=dense, tokens=tokens, config=config)
    found = gradients(bridges, sparse)
    for module in (bridges, sparse.model):
        module.zero_grad()
    plain_loss(bridges, sparse, dense, tokens, config).backward()
    for name, grad in gradients(bridges, sparse).items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-4, msg=name)


def test_a_folder_is_opened_offline_and_its_hash_is_its_weights(tmp_path, idioms_corpus):
    model = tiny("gpt2")
    model.save_pretrained(tmp_path / "gpt2")
    idioms_corpus.tokenizer.save(tmp_path / "gpt2/tokenizer.json")
    opened = open_residual(tmp_path / "gpt2")
    assert opened.hash == HFModel(model).hash
    assert opened.tokenizer is not None
    assert opened.tokenizer.means_the_same(idioms_corpus.tokenizer)
    with torch.no_grad():
        model.transformer.h[0].ln_1.weight[0] += 1
    assert opened.hash != HFModel(model).hash


def test_a_quick_bridge_to_a_folder_of_transformers_round_trips_and_trains(idioms_corpus, quick_run, tmp_path):
    training.train(quick_run, corpus=idioms_corpus, out=tmp_path / "sparse")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=512, n_embd=12, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    idioms_corpus.tokenizer.save(tmp_path / "gpt2/tokenizer.json")
    settings = BridgeConfig(n_ridge_token=500, n_token=3 * 4 * 16, batch_size=4)
    quick = quick_bridge(settings, dense=tmp_path / "gpt2", sparse=tmp_path / "sparse")
    quick.save(tmp_path / "quick")
    again = Bridge.load(tmp_path / "quick")
    assert again.dense.hash == quick.dense.hash
    trained = train_bridges(
        settings, dense=tmp_path / "gpt2", sparse=tmp_path / "sparse", corpus=idioms_corpus, out=tmp_path / "trained"
    )
    assert trained.kind == "trained"
    assert Bridge.load(tmp_path / "trained").dense.hash == quick.dense.hash
    with pytest.raises(ConfigError, match="name a corpus"):
        train_bridges(settings, dense=tmp_path / "gpt2", sparse=tmp_path / "sparse", out=tmp_path / "other")


def test_what_is_no_such_model_is_refused(tmp_path):
    windowed = transformers.Qwen2Config(**GATED, use_sliding_window=True, sliding_window=4, max_window_layers=0)
    with pytest.raises(FormatError, match="through a window"):
        HFModel(transformers.AutoModelForCausalLM.from_config(windowed))
    neox = transformers.GPTNeoXConfig(**SHAPE, intermediate_size=24, max_position_embeddings=12)
    with pytest.raises(FormatError, match="GPTNeoXForCausalLM"):
        HFModel(transformers.AutoModelForCausalLM.from_config(neox))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert is_hf_folder(tmp_path)
    with pytest.raises(FormatError, match="transformers can't open it"):
        open_hf(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"format": "sparse-circuits run"}))
    assert not is_hf_folder(tmp_path)
