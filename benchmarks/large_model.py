"""Makes the model that `load.py` and `generate.py` measure, once: 0.4 billion weights, of which 1 in 1,000 is nonzero.

8 layers, d_model 2048, d_mlp 8192, 128 heads of 16, 2,048 tokens, a dense bigram table; the weights are random. It is
written packed as a run folder of ours, and, where a peer is compared, as the release's two files.
"""

import json
from pathlib import Path

import numpy as np
import torch

from sparse_circuits import checkpoint
from sparse_circuits.configs import ModelConfig

SHAPE = ModelConfig(
    n_ctx=256,
    n_layer=8,
    d_model=2048,
    n_head=128,
    d_head=16,
    d_mlp=8192,
    attention_sink=False,
    positions="none",
    bigram="learned",
)
DENSITY = 1e-3


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor, by our names."""
    from sparse_circuits.model import Transformer

    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in Transformer(config).state_dict().items()}


def made(folder: Path) -> Path:
    """Write the packed model, if it isn't there, without ever making it whole."""
    file = folder / checkpoint.MODEL_NAME
    if file.exists():
        return folder
    generator = np.random.default_rng(0)
    arrays = {}
    for name, shape in shapes(SHAPE).items():
        if name == "bigram":
            arrays[name] = generator.normal(0, 1, shape).astype(np.float32)
        elif len(shape) == 2:
            places = np.sort(generator.choice(shape[0] * shape[1], int(DENSITY * shape[0] * shape[1]), replace=False))
            rows, columns = np.divmod(places, shape[1])
            arrays[f"{name}.values"] = generator.normal(0, 1, len(places)).astype(np.float32)
            arrays[f"{name}.columns"] = columns.astype(np.uint16)
            arrays[f"{name}.offsets"] = np.searchsorted(rows, np.arange(shape[0] + 1)).astype(np.uint32)
        else:
            arrays[name] = (np.ones if "norm" in name else np.zeros)(shape, dtype=np.float32)
    header = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "config": SHAPE.to_json()}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_arrays(file, arrays, header)
    return folder


def made_for_release(folder: Path) -> Path:
    """Write the same model as the release's files; needs 2 GB of memory for a moment."""
    from sparse_circuits.formats import official

    file = folder / "final_model.pt"
    if file.exists():
        return folder
    _, arrays = checkpoint.load_arrays(folder / checkpoint.MODEL_NAME, checkpoint.FORMAT, checkpoint.VERSION)
    names, state = official.parameter_names(SHAPE), {}
    for name, shape in shapes(SHAPE).items():
        packed = f"{name}.values" in arrays
        array = checkpoint.unpack(arrays, name, shape, str(folder)) if packed else arrays[name]
        state[names[name]] = torch.from_numpy(array)
    state["transformer.wpe.weight"] = torch.zeros(1024, SHAPE.d_model)
    config = {
        "block_size": 1024,
        "vocab_size": SHAPE.n_vocab,
        "n_layer": SHAPE.n_layer,
        "n_head": SHAPE.n_head,
        "d_head": SHAPE.d_head,
        "d_model": SHAPE.d_model,
        "d_mlp": SHAPE.d_mlp,
        "rms_norm": True,
        "activation_type": "gelu",
        "tied_unembed": False,
        "afrac": SHAPE.act_density,
        "afrac_loctypes": "attn_in,attn_out,mlp_in,mlp_out,mlp_neuron,attn_v,attn_k,attn_q",
        "enable_bigram_table": True,
        "learnable_bigram_table": True,
    }
    torch.save(state, file)
    (folder / "beeg_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
