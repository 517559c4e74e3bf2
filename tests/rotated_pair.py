"""A pair whose bridge is known: the dense model is the sparse one in a rotated basis.

The sparse model is that of `hand_built`, wider, with more channels that fillers light up. RMSNorm does not see a
rotation R, so with every read and write rotated the dense model computes the same, and decode(x) = R x is exact.
"""

import torch

from sparse_circuits.bridges.maps import Bridge, Bridges
from sparse_circuits.bridges.residual import OwnModel, frozen
from sparse_circuits.configs import ModelConfig
from sparse_circuits.model import Transformer

A, B, FILLER, X, Y = range(5)
WIDTH = 96
NODE = "0.attn.act_in:0"
"""The channel that has the first token's mark."""


def known_model() -> Transformer:
    """Build the sparse model: value 0 takes the mark of the first token along, the unembedding reads it."""
    model = Transformer(
        ModelConfig(
            n_vocab=5, n_ctx=16, n_layer=1, d_model=WIDTH, n_head=1, d_head=4, d_mlp=4, act_density=None,
            attention_sink=False, bigram="none",
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        spread = torch.randn(WIDTH - 8, generator=generator)
        for token, sign in ((A, 1.0), (B, -1.0), (FILLER, 0.0)):
            model.token_embedding.weight[token, 0] = sign
            model.token_embedding.weight[token, 8:] = spread / spread.norm() * (1 if sign else 2**0.5)
        linears = model.linears()
        linears["0.attn.qkv"].weight[8, 0] = 1
        linears["0.attn.out"].weight[3, 0] = 2
        model.unembedding.weight[X, 3] = 1
        model.unembedding.weight[Y, 3] = -1
    return model.eval()


def rotated(model: Transformer, rotation: torch.Tensor) -> Transformer:
    """Return the model with its stream in another basis."""
    turned = Transformer(model.config)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("token_embedding.weight", "unembedding.weight"):
        state[name] = state[name] @ rotation.T
    for block in ("blocks.0.attn.qkv.weight", "blocks.0.mlp.fc_in.weight"):
        state[block] = state[block] @ rotation.T
    for block in ("blocks.0.attn.out.weight", "blocks.0.mlp.fc_out.weight"):
        state[block] = rotation @ state[block]
    turned.load_state_dict(state)
    return turned.eval()


def known_bridge() -> Bridge:
    """Build the pair with its exact bridge."""
    sparse = known_model()
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    dense = OwnModel(rotated(sparse, rotation))
    bridges = Bridges(d_sparse=WIDTH, d_dense=WIDTH, sites=((0, 0), (1, 1), (2, 2)), density=None)
    with torch.no_grad():
        for encoder, decoder in zip(bridges.encoders, bridges.decoders, strict=True):
            decoder.weight.copy_(rotation)
            encoder.weight.copy_(rotation.T)
    rms = float((2 / WIDTH) ** 0.5)  # every embedding has length √2
    return Bridge(
        dense=frozen(dense),
        sparse=sparse,
        bridges=bridges.requires_grad_(False),
        rms=((rms, rms),) * 3,
        kind="trained",
    )
