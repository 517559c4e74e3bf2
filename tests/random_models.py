"""Small models of every kind with random parameters, and tokens for them."""

import dataclasses

import torch
from torch import Tensor

from sparse_circuits.configs import NODE_SITES, STREAM_SITES, ModelConfig
from sparse_circuits.model import Transformer

BASE = ModelConfig(n_vocab=30, n_ctx=12, n_layer=2, d_model=16, n_head=2, d_head=8, d_mlp=24, act_density=0.5)
CONFIGS = {
    "sinks and bigram": BASE,
    "dense activations": dataclasses.replace(BASE, act_density=None),
    "no sinks, no bigram": dataclasses.replace(BASE, attention_sink=False, bigram="none", linear_bias=False),
    "layer norm, tied": dataclasses.replace(BASE, norm="layer", norm_bias=True, tied_unembedding=True, bigram="fixed"),
    "added positions": dataclasses.replace(BASE, positions="added", activation="relu"),
    "concatenated positions": dataclasses.replace(BASE, positions="concatenated", d_position=6),
    "waves, wide heads": dataclasses.replace(BASE, positions="sinusoidal", d_position=5, d_head=12),
    "activated stream": dataclasses.replace(
        BASE, residual_activation="relu", act_sites=NODE_SITES + STREAM_SITES, bigram_trains_last_row=False
    ),
}
DENSE = CONFIGS["dense activations"]


def random_model(config: ModelConfig = BASE, seed: int = 0) -> Transformer:
    """A model all of whose parameters matter: biases, gains, sinks and bigram too."""
    generator, model = torch.Generator().manual_seed(seed), Transformer(config)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)
    return model.eval()


def random_tokens(n_row: int = 4, n_pos: int = 9, seed: int = 1) -> Tensor:
    return torch.randint(BASE.n_vocab, (n_row, n_pos), generator=torch.Generator().manual_seed(seed))


def random_vector(width: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(width))


AT = torch.tensor([8, 0, 5, 3])


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
