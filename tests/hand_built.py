"""A model whose circuit is known by construction, and its task.

The first token of a prompt is A or B, fillers follow, and the answer is X after A, Y after B. Attention is uniform; the
only path from the first token to the answers is

    0.attn.act_in:0  →  0.attn.v:0  →  0.attn.resid_delta:3

with two edges. Beside it a value, a write and a neuron look at the fillers and say nothing about the answer.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from sparse_circuits.candidates import Evaluator
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import ModelConfig
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.scoring import Calibration
from sparse_circuits.tasks.pairs import Pairs, Task, hash_splits

A, B, FILLER, X, Y = range(5)
NODES = ["0.attn.act_in:0", "0.attn.v:0", "0.attn.resid_delta:3"]
"""The circuit."""


def hand_built_model(**settings) -> Transformer:
    """Build the model; every token's embedding has the same length, so norms are the same everywhere."""
    config = ModelConfig(
        n_vocab=5,
        n_ctx=12,
        n_layer=1,
        d_model=8,
        n_head=1,
        d_head=4,
        d_mlp=4,
        act_density=None,
        attention_sink=False,
        bigram="none",
        **settings,
    )
    model = Transformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.token_embedding.weight[A, 0] = 1
        model.token_embedding.weight[B, 0] = -1
        model.token_embedding.weight[FILLER, 1] = 1
        linears = model.linears()
        linears["0.attn.qkv"].weight[8 + 0, 0] = 3  # value 0 looks at the first token's mark
        linears["0.attn.out"].weight[3, 0] = 2
        linears["0.attn.qkv"].weight[8 + 1, 1] = 1  # value 1 looks at fillers
        linears["0.attn.out"].weight[4, 1] = 0.5
        linears["0.mlp.fc_in"].weight[2, 1] = 1  # so does neuron 2
        linears["0.mlp.fc_out"].weight[5, 2] = 0.5
        model.unembedding.weight[X, 3] = 2
        model.unembedding.weight[Y, 3] = -2
    return model.eval()


def hand_built_task(n_pair: int = 24) -> Task:
    """Make the task: prompts of 2 to 7 tokens, twelve templates by length and number."""

    def pairs(offset: int) -> Pairs:
        length = 2 + (torch.arange(n_pair) + offset) % 6
        tokens = torch.full((n_pair, 2, 7), FILLER)
        tokens[:, 0, 0], tokens[:, 1, 0] = A, B
        return Pairs(
            tokens=tokens,
            length=length,
            answers=torch.tensor([[X, Y]]).repeat(n_pair, 1),
            templates=tuple(f"{offset}:{i % 12}" for i in range(n_pair)),
            levels=tuple("i" if i % 2 else "ii" for i in range(n_pair)),
        )

    splits = {name: pairs(i) for i, name in enumerate(("fit", "select", "test", "hard"))}
    return Task(name="first_token", seed=0, splits=splits, n_dropped={}, answers_vary=False, hash=hash_splits(splits))


def random_model() -> Transformer:
    """Build a model of two layers with everything on and random weights, two thirds of them zero."""
    config = ModelConfig(n_vocab=16, n_ctx=12, n_layer=2, d_model=8, n_head=2, d_head=4, d_mlp=12, linear_bias=True)
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            keep = torch.rand(parameter.shape, generator=generator) < (1 / 3 if parameter.ndim == 2 else 1)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * keep)
    return model.eval()


def random_pairs(n_pair: int = 9) -> Pairs:
    """Draw pairs of 3 to 8 random tokens."""
    generator = torch.Generator().manual_seed(0)
    return Pairs(
        tokens=torch.randint(16, (n_pair, 2, 8), generator=generator),
        length=torch.randint(3, 9, (n_pair,), generator=generator),
        answers=torch.randint(16, (n_pair, 2), generator=generator),
        templates=("t",) * n_pair,
        levels=("i",) * n_pair,
    )


def kept_nodes(model: Transformer, names: list[str]) -> Bool[Tensor, " node"]:
    """Return the mask that keeps the nodes of these names."""
    space = NodeSpace.of(model.config)
    keep = torch.zeros(space.n_node, dtype=torch.bool)
    keep[[space.index(name) for name in names]] = True
    return keep


def evaluator_of(model: Transformer, task: Task) -> Evaluator:
    """Measure circuits on the task's `select`, removed nodes at zero."""
    values = torch.zeros(NodeSpace.of(model.config).n_node)
    return Evaluator(model=model, pairs=task.split("select"), values=values, may_shift=True)


def hand_built_circuit(model: Transformer, task: Task, names: list[str]) -> Circuit:
    """Make the circuit of these nodes, removed nodes at zero."""
    keep = kept_nodes(model, names)
    told = {"name": task.name, "hash": task.hash, "seed": 0}
    return Circuit.of_nodes(model, keep, values=torch.zeros(len(keep)), calibration=Calibration(), task=told)
