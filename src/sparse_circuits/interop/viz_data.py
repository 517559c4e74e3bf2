"""The release's published circuits, `viz_data.pt`: what is in them, and the circuit that they make with their model.

Every loss in such a file is the sum over the two sides of a pair; here it is the mean, as everywhere.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.ablation import sum_activations
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import ModelConfig
from sparse_circuits.corpus.shards import Batches, Corpus
from sparse_circuits.edges import EDGE_ENDS
from sparse_circuits.errors import FormatError, WrongModelError
from sparse_circuits.formats.mapped import open_plain
from sparse_circuits.formats.official_config import from_release
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace

FINAL = "final_resid"
"""A location that the release prunes too; our circuits leave the final stream whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A place in a text where a node is active, or not."""

    tokens: list[int]
    """The text."""

    activations: list[float]
    """The node's, at each token."""

    position: int
    """The place meant."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VizData:
    """What a `viz_data.pt` says, with losses in nats a side and plain keys."""

    config: ModelConfig
    """The shape of its model."""

    nodes: dict[str, list[int]]
    """Kept channels by location, `final_resid` included."""

    loss: float
    """The model's on the task, before pruning."""

    circuit_loss: float
    """The circuit's."""

    node_losses: dict[str, float]
    """The circuit's loss without a node."""

    layer_losses: dict[str, float]
    """Without a sublayer's nodes, such as `0.attn`."""

    location_losses: dict[str, float]
    """Without a location's nodes."""

    edges: dict[str, float] | None
    """Weights between kept nodes, such as `0.attn.act_in:3 → 0.attn.q:17`; None if the file says nothing of edges."""

    edge_effects: dict[str, float]
    """How much the circuit's loss rises without an edge."""

    prompts: Int[Tensor, "pair 2 pos"]
    """The task's sample prompts: side 0 and side 1 of each pair, zeros behind them."""

    lengths: Int[Tensor, " pair"]
    """Their tokens. Zeros at both sides' end count as padding, though token 0 is a character too."""

    samples: dict[str, dict[float, tuple[list[Sample], list[Sample]]]]
    """By node and share of all tokens: places among the lowest and among the highest activations."""

    settings: dict[str, Any]
    """How it was pruned."""

    seed: int
    """Of these settings; 0 if they have none."""

    curve: list[tuple[int, float]]
    """Steps of the search of settings, and the best loss so far."""

    n_node_total: int
    """Nodes of the model, `final_resid` included."""

    @property
    def lacks(self) -> tuple[str, ...]:
        """Say what the file does not hold and a circuit needs to be run."""
        lost = ["the mean activations that removed nodes are set to", "the calibration of the answers"]
        if len(self.nodes.get(FINAL, [])) < self.config.d_model:
            lost.append("a place in our circuits for the final stream's channels, which the release prunes too")
        return tuple(lost)

    def circuit(
        self,
        model: Transformer,
        *,
        task: str = "imported",
        means: Float[Tensor, " node"] | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
    ) -> Circuit:
        """Make the circuit that can be run.

        Args:
            model: The model that it was cut from.
            task: The task's name.
            means: What removed nodes are set to.
            tokens: Text of the model's corpus, to compute the means over; at least some ten thousand tokens. With
                neither, the means are taken over the sample prompts, and the circuit says so.

        Raises:
            WrongModelError: The model has another shape, or other weights between the nodes.
        """
        space = NodeSpace.of(model.config)
        self._check(model, space)
        keep = torch.zeros(space.n_node, dtype=torch.bool)
        for location, part in space.slices():
            keep[part][self.nodes.get(location, [])] = True
        how = "given" if means is not None else "corpus"
        if means is None:
            how, means = (
                ("corpus", _means(model, tokens)) if tokens is not None else ("prompts", self._task_means(model))
            )
        made = Circuit.of_nodes(
            model,
            keep,
            values=means,
            task={"name": task, "hash": "", "seed": self.seed, "origin": "viz_data.pt"},
            settings={
                "imported": self.settings,
                "means": how,
                "lacks": list(self.lacks),
                FINAL: self.nodes.get(FINAL, []),
            },
            losses={"model": self.loss, "circuit_as_published": self.circuit_loss},
        )
        self._keep_edges(made)
        made.effects = {node: loss - self.circuit_loss for node, loss in self.node_losses.items() if FINAL not in node}
        made.effects |= self.edge_effects
        return made

    def _check(self, model: Transformer, space: NodeSpace) -> None:
        for name in ("n_layer", "d_model", "n_head", "d_head", "d_mlp", "n_vocab", "d_position"):
            ours, theirs = getattr(model.config, name), getattr(self.config, name)
            if ours != theirs:
                raise WrongModelError(f"the circuit is of a model with {name} {theirs}, this one has {ours}")
        for location, channels in self.nodes.items():
            width = model.config.d_model if location == FINAL else space.widths.get(location)
            if width is None or any(not 0 <= channel < width for channel in channels):
                raise WrongModelError(f"the model has no {location} with channels up to {max(channels, default=0)}")

    def _keep_edges(self, made: Circuit) -> None:
        """Keep the edges that the file has; if it says nothing of edges, every weight between kept nodes stays."""
        if self.edges is None:
            return
        named = set(self.edges)
        n_wrong, linears = 0, made.model.linears()
        for name, mask in made.edges.items():
            weight, kept = linears[name].weight.detach(), torch.zeros_like(mask)
            for row, column in mask.nonzero().tolist():
                edge = edge_name(name, row, column, weight.shape[0])
                if edge in named:
                    kept[row, column] = True
                    n_wrong += not math.isclose(
                        self.edges[edge], float(weight[row, column]), rel_tol=0.01, abs_tol=1e-4
                    )
                    named.discard(edge)
            made.edges[name] = kept
        if n_wrong + len(named) > 0.05 * len(self.edges):
            raise WrongModelError(
                f"{n_wrong + len(named)} of the circuit's {len(self.edges)} edges have another weight in this model: "
                "it is not the one that the circuit was cut from"
            )

    def _task_means(self, model: Transformer) -> Float[Tensor, " node"]:
        tokens = self.prompts.flatten(0, 1)
        counts = (torch.arange(tokens.shape[1]) < self.lengths.repeat_interleave(2)[:, None]).long()
        return _means(model, tokens, counts)


def edge_name(linear: str, row: int, column: int, n_row: int) -> str:
    """Return the name of the edge that a weight of a linear map is, such as `0.attn.act_in:3 → 0.attn.q:17`."""
    layer, kind = linear.split(".", 1)
    source, targets = EDGE_ENDS[kind]
    width = n_row // len(targets)
    return f"{layer}.{source}:{column} → {layer}.{targets[row // width]}:{row % width}"


def read_viz_data(path: Path | str) -> VizData:
    """Read a published circuit.

    Raises:
        FormatError: The file is missing, truncated, wants code, or is not of this structure.
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    data = open_plain(path)
    try:
        return _read(data, str(path))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        text = str(error).splitlines() or [""]
        raise FormatError(
            f"{path}: not a viz_data.pt of the release ({type(error).__name__}: {text[0]:.100})"
        ) from None


def corpus_rows(folder: Path | str, model: Transformer, *, n_row: int = 512) -> Int[Tensor, "batch pos"]:
    """Return rows of a corpus's training text, every source alike, for the means that a file lacks.

    Raises:
        CorpusError: It is not a whole corpus.
        WrongModelError: Its tokenizer is not the model's.
    """
    corpus = Corpus(Path(folder))
    if model.tokenizer is not None and model.tokenizer.to_json() != corpus.tokenizer.to_json():
        raise WrongModelError(f"{folder}: the corpus is cut into other tokens than the model reads")
    if corpus.tokenizer.n_vocab > model.config.n_vocab:
        raise WrongModelError(f"{folder}: the corpus has tokens that the model doesn't know")
    shares = {name: 1 / len(corpus.sources) for name in corpus.sources}
    context = min(model.config.n_ctx, 256)
    return Batches(corpus, shares=shares, context=context, batch_size=n_row, n_step=1, seed=0)(0)


def _read(data: dict[str, Any], where: str) -> VizData:
    found = data["importances"]
    config = from_release(dict(found["beeg_model_config"]), where=f"{where}: beeg_model_config")
    nodes = {str(location): _integers(kept) for location, kept in data["circuit_data"].items()}
    prompts, lengths = _prompts(found["task_samples"][0])
    settings = {str(name): value for name, value in (data.get("prune_config") or {}).items()}
    weights = _joined(found.get("pair_data_connections") or [])
    return VizData(
        config=config,
        nodes=nodes,
        loss=float(found["loss"]) / 2,
        circuit_loss=float(found["interv_loss"]) / 2,
        node_losses={
            f"{location}:{channel}": float(loss) / 2
            for location, losses in found["ch_interv_losses"].items()
            for channel, loss in zip(nodes.get(location, []), losses, strict=True)
        },
        layer_losses={name: float(loss) / 2 for name, loss in found["layer_interv_losses"].items()},
        location_losses={name: float(loss) / 2 for name, loss in found["loc_interv_losses"].items()},
        edges=_edges(weights) if weights else None,
        edge_effects={name: value / 2 for name, value in _edges(_joined(found["pair_data"])).items()},
        prompts=prompts,
        lengths=lengths,
        samples=_samples(data["samples"]),
        settings=settings,
        seed=int(settings.get("seed") or 0),
        curve=[(int(step), float(loss) / 2) for step, loss in data.get("all_loss") or []],
        n_node_total=int(data["num_total_nodes"]),
    )


def _joined(pairs: list[Any]) -> list[Any]:
    """Join the lists of each process, which one version of the files has."""
    if all(not part or isinstance(part[0], list | tuple) for part in pairs):
        return [pair for part in pairs for pair in part]
    return pairs


def _edges(pairs: list[Any]) -> dict[str, float]:
    """Name the nonzero entries of the matrices between two locations; the row of the biases is no edge."""
    edges = {}
    for matrix, sources, targets, (source, target) in pairs:
        sources = [None if name == "bias" else int(name) for name in sources]
        targets = [int(name) for name in targets]
        matrix = torch.as_tensor(matrix)
        if matrix.numel() and matrix.shape != (len(sources), len(targets)):
            raise ValueError(f"the matrix from {source} to {target} has shape {tuple(matrix.shape)}")
        for row, column in matrix.nonzero().tolist() if matrix.numel() else []:
            if sources[row] is not None:
                edges[f"{source}:{sources[row]} → {target}:{targets[column]}"] = float(matrix[row, column])
    return edges


def _prompts(tokens: Tensor) -> tuple[Int[Tensor, "pair 2 pos"], Int[Tensor, " pair"]]:
    """Take the rows, side 0 of all pairs before side 1 of all, apart; trailing zeros of both sides are padding."""
    if tokens.ndim != 2 or len(tokens) % 2:
        raise ValueError(f"task_samples has shape {tuple(tokens.shape)}, expected an even number of rows")
    pairs = torch.stack(tokens.long().chunk(2), 1)  # (pair, 2, pos)
    places = torch.arange(1, tokens.shape[1] + 1)
    return pairs, ((pairs != 0).any(1) * places).amax(1)


def _samples(found: dict[str, Any]) -> dict[str, dict[float, tuple[list[Sample], list[Sample]]]]:
    return {
        f"{location}:{int(channel)}": {
            float(share): (_places(lists[0]), _places(lists[1])) for share, lists in by_share.items()
        }
        for location, by_channel in found.items()
        for channel, by_share in by_channel.items()
    }


def _places(items: list[Any]) -> list[Sample]:
    return [
        Sample(tokens=_integers(tokens), activations=[float(a) for a in activations], position=int(position))
        for tokens, activations, position in items
    ]


def _integers(values: Any) -> list[int]:
    return [int(value) for value in (values.flatten().tolist() if isinstance(values, Tensor) else values)]


@torch.no_grad()
def _means(
    model: Transformer, tokens: Int[Tensor, "batch pos"], counts: Int[Tensor, "batch pos"] | None = None
) -> Float[Tensor, " node"]:
    counts = torch.ones_like(tokens) if counts is None else counts
    total = sum(
        sum_activations(model, part, counts=count)
        for part, count in zip(tokens.split(32), counts.split(32), strict=True)
    )
    return (torch.as_tensor(total) / int(counts.sum())).float()
