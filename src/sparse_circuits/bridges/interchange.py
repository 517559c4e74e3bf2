"""Does the dense model use the bridged component? Interchange it alone between two prompts; take it out.

Two readings of "the component of a node" in a dense read r, with direction v (see `directions`):

- along the decoder's row: the orthogonal projection, r' = r + v̂ v̂ᵀ(r* − r), r* the partner's read;
- through the bridge: r' = r + v · (a(x*) − a(x)), where a(x) is what the encoder makes of the dense stream, at the
  sparse read's scale, before AbsTopK. No sparse model runs.

Source: ours; the paper's A.4 steers, which shows a lever but not that the model uses it.
"""

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.bridges.controls import null_directions
from sparse_circuits.bridges.directions import Prompts, ReadNode, partner, read_direction
from sparse_circuits.bridges.effects import EditedReads
from sparse_circuits.bridges.maps import Bridge
from sparse_circuits.configs import SteerConfig, TrainConfig
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import TaskError
from sparse_circuits.faithfulness.intervals import A_SHARE, Estimate, estimate
from sparse_circuits.tables import aligned
from sparse_circuits.tasks import Task

N_NULL_ROW = 100
"""Other rows that are interchanged for comparison."""


def projection_change(
    reads: Float[Tensor, "prompt pos d_dense"], wanted: Float[Tensor, "prompt pos d_dense"], direction: Tensor
) -> Float[Tensor, "prompt pos d_dense"]:
    """Return what gives `reads` the component along a direction that `wanted` has, and changes nothing else."""
    unit = direction / direction.norm()
    return ((wanted - reads) @ unit)[..., None] * unit


def encoded_change(
    bridge: Bridge, node: ReadNode, reads: EditedReads, direction: Tensor
) -> Float[Tensor, "prompt pos d_dense"]:
    """Return the partner's bridged activation minus the own one, along the direction."""
    site, _ = bridge.bridges.sites[node.place]
    linear = bridge.bridges.encoders[node.place]
    with torch.no_grad():
        value = linear(reads.stream)[..., node.channel] * reads.prompts.is_prompt  # (prompt, pos)
        gain = bridge.sparse_stream.to_read(site, torch.eye(bridge.sparse.config.d_model))[node.channel, node.channel]
    activation = value * gain / bridge.rms[node.place][0]
    return (partner(activation) - activation)[..., None] * direction


def mechanism(
    bridge: Bridge,
    task: Task,
    node: ReadNode,
    *,
    corpus: Corpus,
    train: TrainConfig,
    others: dict[str, Prompts],
    config: SteerConfig,
) -> dict[str, Any]:
    """Interchange the bridged component between the sides of pairs, and project it out.

    Args:
        bridge: Models and bridges.
        task: Its `test` split is the plain form, `hard` the hard one.
        node: Whose component.
        corpus: Text whose mean component takes the place of one that is projected out.
        train: Which text.
        others: Other tasks' prompts, which projecting should leave alone.
        config: Sizes.

    Returns:
        By form, interchange accuracy (the share of prompts whose likelier answer of the two is the partner's) of each
        reading with interval, of the whole read, and of other rows; and accuracies with the component at its mean.
    """
    direction = read_direction(bridge, node)
    mean = mean_read(bridge, node, corpus, train, n_token=config.n_neutral_token)
    found: dict[str, Any] = {"interchange": [], "projected_out": []}
    for form, split in (("plain", "test"), ("hard", "hard")):
        try:
            pairs = task.split(split).part(config.n_pair)
        except TaskError:
            continue  # a task of one's own may have no hard form
        prompts = Prompts.of(pairs)
        reads = EditedReads(bridge.dense, node.dense_site, prompts)
        natural = reads.reads
        edits = {
            "nothing": None,
            "along the decoder's row": projection_change(natural, partner(natural), direction),
            "through the bridge": encoded_change(bridge, node, reads, direction),
            "the whole read": reads.natural,
        }
        for name, edit in edits.items():
            per_pair = reads.answers(edit).follows.unflatten(0, (-1, 2)).mean(1)
            measured = dataclasses.asdict(estimate(per_pair, prompts.templates, within=A_SHARE))
            found["interchange"].append({"form": form, "what": name, **measured})
        removed = projection_change(natural, mean.expand_as(natural), direction)
        before, after = (1 - float(reads.answers(e).follows.mean()) for e in (None, removed))
        found["projected_out"].append({"task": f"{task.name}, {form}", "without": before, "with": after})
    found["null"] = _null(bridge, task, node, config)
    for name, prompts in others.items():
        reads = EditedReads(bridge.dense, node.dense_site, prompts)
        natural = reads.reads
        removed = projection_change(natural, mean.expand_as(natural), direction)
        before, after = (1 - float(reads.answers(e).follows.mean()) for e in (None, removed))
        found["projected_out"].append({"task": name, "without": before, "with": after})
    return found


@torch.no_grad()
def mean_read(
    bridge: Bridge, node: ReadNode, corpus: Corpus, train: TrainConfig, *, n_token: int
) -> Float[Tensor, " d_dense"]:
    """Return the mean of the dense read over held-out text, sources by share."""
    context = min(train.context, bridge.dense.n_ctx)
    total = torch.zeros(bridge.dense.d_model)
    for name, share in train.shares.items():
        windows = corpus.windows(name, "validation", context=context, n_token=max(context, round(share * n_token)))
        x = torch.cat([bridge.dense.run(bridge.dense.embed(t), 0, node.dense_site) for t in windows.split(32)])
        read = bridge.dense.to_read(node.dense_site, x) / bridge.dense.divisor(node.dense_site, x)[..., None]
        total += share * read.mean((0, 1))
    return total


def mechanism_table(found: dict[str, Any]) -> str:
    """Write interchange and projection as a table."""
    rows = [["interchange between prompts of", "what", "accuracy"]]
    for row in found["interchange"]:
        measured = Estimate(**{field.name: row[field.name] for field in dataclasses.fields(Estimate)})
        rows.append([row["form"], row["what"], str(measured)])
    null = found["null"]
    rows.append(["plain", f"{null['n_row']} other rows", f"median {null['median']:.3f}, highest {null['highest']:.3f}"])
    removed = [["component at its mean", "accuracy without", "with"]]
    removed += [[r["task"], f"{r['without']:.3f}", f"{r['with']:.3f}"] for r in found["projected_out"]]
    return "\n".join([*aligned(rows), f"p = {null['p_value']:.4f}", "", *aligned(removed)])


def _null(bridge: Bridge, task: Task, node: ReadNode, config: SteerConfig) -> dict[str, Any]:
    """Return the interchange accuracy along other nodes' decoder rows, and the share at or above the node's."""
    prompts = Prompts.of(task.split("test").part(config.n_null_pair))
    reads = EditedReads(bridge.dense, node.dense_site, prompts)
    natural = reads.reads
    generator = torch.Generator().manual_seed(config.seed)
    rows, _ = null_directions(bridge, node, prompts, n_row=N_NULL_ROW, generator=generator)

    change = partner(natural) - natural

    def edits(part: Tensor) -> Tensor:
        unit = part / part.norm(dim=1, keepdim=True)
        return torch.einsum("bpd,rd->rbp", change, unit)[..., None] * unit[:, None, None]

    answers = reads.answers_to(edits, torch.cat((read_direction(bridge, node)[None], rows)))
    accuracies = torch.tensor([float(a.follows.mean()) for a in answers])
    own, values = float(accuracies[0]), accuracies[1:]
    return {
        "n_row": len(rows),
        "n_pair": len(prompts) // 2,
        "node": own,
        "median": float(values.median()),
        "highest": float(values.max()),
        "p_value": (1 + int((values >= own).sum())) / (1 + len(values)),
    }
