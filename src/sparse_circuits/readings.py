"""Activations of some nodes over held-out text of the corpus that a model was trained on."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.ablation import run_of
from sparse_circuits.errors import CorpusError
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.taps import reading

N_TOKEN = 65_536
"""Tokens of held-out text that are read where nothing else is asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusReading:
    """What some nodes of the full model did on held-out text."""

    names: list[str]
    """The nodes."""

    tokens: Int[Tensor, "window context"]
    """The text, in windows of the run's context."""

    activations: Float[Tensor, "node window context"]
    """Behind AbsTopK, nothing ablated."""

    corpus_hash: str
    """The corpus."""


@torch.no_grad()
def read_corpus(model: Transformer, names: list[str], *, n_token: int = N_TOKEN) -> CorpusReading:
    """Read nodes over validation text, each source in the share that the model trained on.

    Args:
        model: A model of a run folder; no edit should be in force.
        names: Nodes, such as `1.attn.v:25`.
        n_token: Tokens to read in all, in whole windows; fewer if the corpus has fewer.

    Raises:
        CorpusError: The model comes from no run folder, or its corpus is not there any more.
        TapError: A name is not that of a node.
    """
    if model.folder is None or not (model.folder / "config.json").exists():
        raise CorpusError("the model comes from no run folder, so its corpus is not known")
    config, corpus = run_of(model.folder)
    space = NodeSpace.of(model.config)
    index = torch.tensor([space.index(name) for name in names], dtype=torch.long)
    places = {name: part for name, part in space.slices() if ((index >= part.start) & (index < part.stop)).any()}
    windows = torch.cat(
        [
            corpus.windows(source, "validation", context=config.context, n_token=max(1, round(n_token * share)))
            for source, share in config.shares.items()
        ]
    )
    activations = torch.empty(len(names), *windows.shape)
    start = 0
    for part in windows.split(max(1, 4096 // config.context)):
        with reading(model, *(places or ["0.resid_in"])) as seen:
            model.run(model.embed(part))
        for location, nodes in places.items():
            here = ((index >= nodes.start) & (index < nodes.stop)).nonzero().flatten()
            activations[here, start : start + len(part)] = seen[location][..., index[here] - nodes.start].permute(
                2, 0, 1
            )
        start += len(part)
    return CorpusReading(names=names, tokens=windows, activations=activations, corpus_hash=corpus.hash)
