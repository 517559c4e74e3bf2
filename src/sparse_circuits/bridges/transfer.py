"""Does a whole circuit carry over? The dense model with all but the circuit's nodes at their mean, in bridge space."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_circuits.bridges.directions import Prompts, read_activations, read_locations
from sparse_circuits.bridges.effects import EditedReads
from sparse_circuits.bridges.maps import Bridge
from sparse_circuits.bridges.residual import streams
from sparse_circuits.bridges.ridge import text_batches
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import TrainConfig
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.faithfulness.subject import of_task
from sparse_circuits.files import write_json
from sparse_circuits.tables import aligned
from sparse_circuits.tasks import Task

FORMAT, VERSION = "sparse-circuits transfer", 1


def transfer_circuit(
    bridge: Bridge,
    circuit: Circuit,
    task: Task,
    *,
    corpus: Corpus | None = None,
    train: TrainConfig | None = None,
    n_pair: int = 256,
    n_set: int = 20,
    n_mean_token: int = 16_384,
    seed: int = 0,
    out: Path | str | None = None,
) -> dict[str, Any]:
    """Measure how much of the dense model's logit difference survives, site by site.

    At each bridged read of the sparse model where the circuit has nodes, the dense stream x becomes
    decode(where(kept, encode(x), mean of encode)). What survives is the difference of the logit difference between
    the two sides, over that of the untouched dense model.

    Args:
        bridge: Models and bridges.
        circuit: Of the bridge's sparse model.
        task: The circuit's task; results are on `test`.
        corpus: Text for the means; the sparse run's if left out, with its settings.
        train: Which text.
        n_pair: Pairs of `test`.
        n_set: Random sets of as many active nodes, at each site.
        n_mean_token: Tokens that the means are taken over.
        seed: Decides the random sets.
        out: Folder for `transfer.json`; None writes nothing.

    Returns:
        What `transfer.json` holds; see docs/formats.md.

    Raises:
        TaskError: The circuit was cut for other prompts, or one exceeds a model's context.

    Source: ours.
    """
    train, corpus = bridge.text(train, corpus)
    circuit = of_task(circuit, task, n_pair=n_pair).circuit
    task.refuse_longer_than(min(bridge.dense.n_ctx, bridge.sparse_stream.n_ctx))
    prompts = Prompts.of(task.split("test").part(n_pair))
    kept_nodes = circuit.space.split(circuit.keep)
    means = _mean_encodings(bridge, corpus, train, n_mean_token)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for location, place in read_locations(bridge).items():
        keep = kept_nodes[location][: bridge.sparse.config.d_model]
        if keep.any():
            is_active = read_activations(bridge, location, prompts).flatten(0, 1).any(0)
            drawn = [_random_set(is_active & ~keep, int(keep.sum()), generator) for _ in range(n_set)]
            site = _Site(bridge, place, prompts, means[place])
            rows.append({"location": location, **site.row(keep, is_active | keep, drawn)})
    found: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "task": task.name,
        "dense_hash": bridge.dense.hash,
        "sparse_hash": bridge.sparse_stream.hash,
        "n_pair": len(prompts) // 2,
        "n_set": n_set,
        "rows": rows,
    }
    if out is not None:
        write_json(Path(out) / "transfer.json", found)
    return found


class _Site:
    """One pair of sites: the dense stream there on the prompts, and what survives of its answer in a set of nodes."""

    def __init__(self, bridge: Bridge, place: int, prompts: Prompts, mean: Float[Tensor, " d_sparse"]) -> None:
        self.bridge, self.place, self.mean = bridge, place, mean
        self.reads = EditedReads(bridge.dense, bridge.bridges.sites[place][1], prompts)
        self.whole = separation(self.reads, self.reads.stream)
        with torch.no_grad():
            self.encoded = bridge.bridges.encode(place, self.reads.stream)

    def survives(self, keep: Bool[Tensor, " d_sparse"]) -> float:
        """Return the share of the logit difference that is left when all other nodes are at their mean."""
        with torch.no_grad():
            stream = self.bridge.bridges.decode(self.place, torch.where(keep, self.encoded, self.mean))
        return separation(self.reads, stream) / self.whole

    def row(self, keep: Tensor, candidates: Tensor, drawn: list[Tensor]) -> dict[str, Any]:
        """Measure a circuit's nodes, all nodes, none, and random sets of as many."""
        circuit, random = self.survives(keep), [self.survives(mask) for mask in drawn]
        return {
            "dense_site": self.bridge.bridges.sites[self.place][1],
            "n_node": int(keep.sum()),
            "n_active": int(candidates.sum()),
            "circuit": circuit,
            "all_nodes": self.survives(torch.ones_like(keep)),
            "no_node": self.survives(torch.zeros_like(keep)),
            "random_mean": sum(random) / len(random),
            "random_highest": max(random),
            "p_value": (1 + sum(share >= circuit for share in random)) / (1 + len(random)),
        }


@torch.no_grad()
def separation(reads: EditedReads, stream: Float[Tensor, "prompt pos d_dense"]) -> float:
    """Return the mean of logit(own) − logit(other) with another stream at the site, nats."""
    before, reads.stream = reads.stream, stream
    try:
        log_p = torch.cat([reads.log_probabilities(rows, None) for rows in reads.rows()])
    finally:
        reads.stream = before
    return float((log_p[:, 0] - log_p[:, 1]).mean())


def table(found: dict[str, Any]) -> str:
    """Write a transfer as a table."""
    rows = [["read", "nodes", "circuit", "all nodes", "none", f"{found['n_set']} random sets: mean, highest", "p"]]
    for row in found["rows"]:
        rows.append(
            [
                row["location"],
                f"{row['n_node']} of {row['n_active']}",
                *(f"{row[key]:.0%}" for key in ("circuit", "all_nodes", "no_node")),
                f"{row['random_mean']:.0%}, {row['random_highest']:.0%}",
                f"{row['p_value']:.3f}",
            ]
        )
    head = (
        f"{found['task']}: share of the dense model's logit difference that survives, {found['n_pair']} pairs of test"
    )
    return "\n".join([head, "", *aligned(rows)])


@torch.no_grad()
def _mean_encodings(
    bridge: Bridge, corpus: Corpus, train: TrainConfig, n_token: int
) -> list[Float[Tensor, " d_sparse"]]:
    """Return the mean of the encoded dense stream over training text, by pair of sites."""
    totals = [torch.zeros(bridge.sparse.config.d_model, dtype=torch.double) for _ in bridge.bridges.sites]
    n = 0
    for tokens in text_batches(corpus, train, n_token=n_token, n_ctx=bridge.dense.n_ctx):
        h_d, _ = streams(bridge.dense, tokens, bridge.bridges.dense_sites)
        for i, h in enumerate(h_d):
            totals[i] += bridge.bridges.encode(i, h).double().sum((0, 1))
        n += tokens.numel()
    return [(total / n).float() for total in totals]


def _random_set(is_active: Bool[Tensor, " d_sparse"], n: int, generator: torch.Generator) -> Tensor:
    """Draw n active channels, or all that there are."""
    places = is_active.nonzero().flatten()
    mask = torch.zeros_like(is_active)
    mask[places[torch.randperm(len(places), generator=generator)[:n]]] = True
    return mask
