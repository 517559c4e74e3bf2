"""A packed model is the model: its logits, its hash, what it generates; what it can't do is said."""

import pytest
import torch

import sparse_circuits as sc
from sparse_circuits import checkpoint
from sparse_circuits.configs import ModelConfig
from sparse_circuits.errors import DeviceError, FormatError, TapError
from sparse_circuits.model import Transformer
from sparse_circuits.packed_model import PackedEmbedding, load_packed, pack_model
from sparse_circuits.sparse_products import sparse_products
from sparse_circuits.taps import EdgeCut
from sparse_circuits.tasks.sampling import SplitSizes


@pytest.fixture(scope="module")
def both():
    return sc.load(sc.example()), sc.load(sc.example(), packed=True)


def test_logits_are_the_models(both):
    model, packed = both
    tokens = torch.randint(model.config.n_vocab, (3, 40))
    assert all(linear.weight is None for linear in packed.linears().values())
    torch.testing.assert_close(packed(tokens), model(tokens), rtol=1e-5, atol=1e-4)
    at, vocab = torch.tensor([5, 39, 0]), torch.tensor([[1, 2], [3, 4], [5, 5]])
    torch.testing.assert_close(
        packed(tokens, at=at, vocab=vocab), model(tokens, at=at, vocab=vocab), rtol=1e-4, atol=1e-4
    )


def test_it_generates_what_the_model_generates(both):
    model, packed = both
    tokens = torch.randint(model.config.n_vocab, (2, 9))
    assert torch.equal(packed.generate(tokens, 20), model.generate(tokens, 20))


def test_its_hash_is_the_models(both):
    model, packed = both
    assert checkpoint.model_hash(packed) == checkpoint.model_hash(model)


def test_activations_can_be_read_and_replaced(both):
    model, packed = both
    tokens = torch.randint(model.config.n_vocab, (1, 8))
    found = []
    for one in (model, packed):
        with sc.replacing(one, {"0.mlp.post_act": torch.zeros_like}), sc.reading(one, "1.attn.q") as seen:
            one(tokens)
        found.append(seen["1.attn.q"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_cutting_its_edges_is_refused(both):
    model, packed = both
    weight = model.linears()["0.mlp.fc_in"].weight
    cut = EdgeCut(weight != 0, torch.zeros(weight.shape[1]))
    with (
        pytest.raises(TapError, match=r"0\.mlp\.fc_in is packed.*packed=False"),
        sc.cutting(packed, {"0.mlp.fc_in": cut}),
    ):
        pass


@pytest.mark.parametrize("layout", ["packed", "plain", "release", "huggingface"])
def test_converting_it_is_refused_before_anything_is_written(both, layout, tmp_path):
    with pytest.raises(TapError, match="its whole weights are needed"):
        sc.convert(both[1], tmp_path / "out", layout)
    assert list(tmp_path.iterdir()) == []


def test_opening_a_circuit_against_it_is_refused(both):
    with pytest.raises(TapError, match="its whole weights are needed"):
        sc.Circuit.load(sc.example("circuits/single_double_quote"), both[1])


def test_pruning_it_is_refused_before_anything_is_learned(both):
    task = sc.task("single_double_quote", both[1].tokenizer, sizes=SplitSizes(fit=8, select=4, test=4, hard=4))
    with pytest.raises(TapError, match="its whole weights are needed"):
        sc.prune(both[1], task)


def test_its_weights_stay_packed_where_others_are_packed_for_a_while(both):
    before = {name: linear.packed for name, linear in both[1].linears().items()}
    with sparse_products(both[1]) as chosen:
        assert chosen == []
    assert {name: linear.packed for name, linear in both[1].linears().items()} == before


def test_saving_it_again_is_refused(both, tmp_path):
    with pytest.raises(ValueError, match="copy the file that it was loaded from"):
        checkpoint.save_model(both[1], tmp_path / "model.safetensors")


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="device is cuda, but torch sees 0 GPUs here; take cpu"):
        sc.load(tmp_path / "nothing", packed=True, device="cuda")


def test_the_nonzeros_move_with_the_model_and_take_its_type():
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    model, packed = (sc.load(sc.example(), packed=wanted).double() for wanted in (False, True))
    torch.testing.assert_close(packed(tokens), model(tokens), rtol=1e-9, atol=1e-9)
    moved = sc.load(sc.example(), packed=True).to("meta")
    held = [linear.packed for linear in moved.linears().values()] + [moved.token_embedding.packed]
    assert {x.device.type for one in held for x in (one.values, one.columns, one.offsets)} == {"meta"}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", ["none", "added", "concatenated"])
@pytest.mark.parametrize("weights", ["packed", "plain"])
def test_every_kind_of_model_packs(tied, positions, weights, tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(
        n_vocab=70,
        n_ctx=20,
        n_layer=2,
        d_model=24,
        n_head=2,
        d_head=8,
        d_mlp=40,
        tied_unembedding=tied,
        positions=positions,
        d_position=6 if positions == "concatenated" else None,
    )
    model = Transformer(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_().mul_(torch.rand_like(parameter) < 0.1)
    tokens = torch.randint(70, (2, 20))
    expected, hashed = model(tokens), checkpoint.model_hash(model)
    checkpoint.save_model(model, tmp_path / "model.safetensors", weights=weights)
    for packed in (load_packed(tmp_path / "model.safetensors"), pack_model(model)):
        torch.testing.assert_close(packed(tokens), expected, rtol=1e-4, atol=1e-5)
        assert checkpoint.model_hash(packed) == hashed
    assert isinstance(model.token_embedding, PackedEmbedding) != tied


def test_a_file_whose_parts_do_not_fit_is_refused(tmp_path):
    source = next(sc.example().rglob("model.safetensors"))
    header, arrays = checkpoint.load_arrays(source, checkpoint.FORMAT, checkpoint.VERSION)
    name = "blocks.0.mlp.fc_in.weight"
    broken = {k: v for k, v in arrays.items() if k != f"{name}.columns"}
    checkpoint.save_arrays(tmp_path / "a", broken, header)
    with pytest.raises(FormatError, match=r"has no tensor blocks\.0\.mlp\.fc_in\.weight\.columns"):
        load_packed(tmp_path / "a")
    checkpoint.save_arrays(tmp_path / "b", arrays | {f"{name}.offsets": arrays[f"{name}.offsets"][:-1]}, header)
    with pytest.raises(FormatError, match=r"the parts of .* don't make a matrix"):
        load_packed(tmp_path / "b")
    checkpoint.save_arrays(tmp_path / "c", {k: v for k, v in arrays.items() if k != "logit_bias"}, header)
    with pytest.raises(FormatError, match="has no tensor logit_bias"):
        load_packed(tmp_path / "c")


def test_weights_of_another_type_are_refused_packed_or_whole(tmp_path):
    source = next(sc.example().rglob("model.safetensors"))
    header, arrays = checkpoint.load_arrays(source, checkpoint.FORMAT, checkpoint.VERSION)
    for name in ("logit_bias", "blocks.0.mlp.fc_in.weight.values"):
        path = tmp_path / name
        checkpoint.save_arrays(path, arrays | {name: arrays[name].astype("float64")}, header)
        for opened in (checkpoint.load_model, load_packed):
            with pytest.raises(FormatError, match=f"{name.removesuffix('.values')} holds float64, expected float32"):
                opened(path)
