"""Small models to bridge: random, untrained, with the same tokens."""

import torch

from sparse_circuits.bridges.maps import Bridges
from sparse_circuits.bridges.residual import OwnModel, frozen
from sparse_circuits.configs import ModelConfig
from sparse_circuits.model import Transformer

N_VOCAB = 24


def random_model(seed: int, **settings) -> Transformer:
    """Build a model of two layers with random weights."""
    shape = {"d_model": 8, "n_layer": 2, "n_head": 2, "d_head": 4, "d_mlp": 12, "bigram": "none"}
    model = Transformer(ModelConfig(n_vocab=N_VOCAB, n_ctx=10, **(shape | settings)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    return model.eval()


def pair(*, density: float | None = 0.5, dense_width: int = 12, **dense) -> tuple[OwnModel, OwnModel, Bridges]:
    """Build a sparse model, a frozen dense one, and random bridges at every site."""
    sparse = OwnModel(random_model(0, act_density=0.5))
    other = OwnModel(random_model(1, act_density=None, d_model=dense_width, **dense))
    frozen(other)
    sites = tuple((s, s) for s in range(sparse.n_sublayer + 1))
    return sparse, other, Bridges(d_sparse=8, d_dense=dense_width, sites=sites, density=density)


def random_tokens(n_row: int = 3, n_pos: int = 7) -> torch.Tensor:
    """Draw tokens."""
    return torch.randint(N_VOCAB, (n_row, n_pos), generator=torch.Generator().manual_seed(2))
