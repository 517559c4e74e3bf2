"""Write a circuit as the release's `viz_data.pt`, so that the release's dashboard opens it.

The release stores the sum of the two sides' losses: every loss below is twice ours. Lost are the ablation values, the
calibration, the hashes, and what `verify` found; docs/interop.md has the list.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_circuits.candidates import Evaluator
from sparse_circuits.circuit import Circuit
from sparse_circuits.edges import EDGE_ENDS, EdgeSpace, edges_between
from sparse_circuits.files import written_whole
from sparse_circuits.formats.official_config import to_release
from sparse_circuits.interop.viz_data import FINAL
from sparse_circuits.scoring import all_logit_differences, task_loss
from sparse_circuits.taps import reading
from sparse_circuits.tasks.pairs import Pairs

SHARES = (0.001, 0.01, 0.1, 0.5)
"""Of all tokens: how far from the extremes a sample may lie."""

N_PAIR = 16
"""Sample prompts of each side."""

N_SAMPLE = 5
"""Samples in a list; the dashboard shows as many."""

_THEIR_SETTINGS = {"lr": "lr", "weight_decay": "wd", "temperature": "heaviside_temp", "count_coefficient": "logk_coef"}


@torch.no_grad()
def write_viz_data(
    circuit: Circuit, path: Path, *, pairs: Pairs, text: Int[Tensor, "batch pos"], answers_vary: bool = False
) -> None:
    """Write the file, whole or not at all.

    Args:
        circuit: The circuit.
        path: The file; the dashboard looks for `viz/MODEL/TASK/SWEEP/K/viz_data.pt`.
        pairs: Prompts of its task; losses are measured on them, and the first sixteen become the sample prompts.
        text: Tokens to take samples of activations from.
        answers_vary: Whether the answers differ from pair to pair; then calibrations have no shift.
    """
    model = circuit.model
    shown = pairs.take(torch.arange(min(N_PAIR, len(pairs))))
    prompts = shown.tokens.transpose(0, 1).flatten(0, 1).clone()  # side 0 of all pairs, then side 1 of all
    is_prompt = torch.arange(prompts.shape[1]) < shown.length.repeat(2)[:, None]
    prompts = prompts * is_prompt
    with circuit.applied():
        in_circuit = _activations(circuit, prompts, is_prompt)
    losses = _losses(circuit, pairs, answers_vary)
    data = {
        "all_loss": [
            (int(r["step"]), 2 * loss) for r, loss in zip(circuit.history, _best_so_far(circuit), strict=True)
        ],
        "circuit_data": _kept(circuit),
        "is_kiter_bug_fixed": True,
        "num_total_nodes": circuit.n_node_total + model.config.d_model,
        "prune_config": _their_settings(circuit.settings),
        "samples": _samples(circuit, text),
        "importances": {
            "beeg_model_config": to_release(model.config) | {"tokenizer_name": "tinypython_2k"},
            "loss": 2 * float(task_loss(all_logit_differences(model, pairs)[0])),
            **losses,
            "pair_data": _pairs(circuit, is_weight=False),
            "pair_data_connections": _pairs(circuit, is_weight=True),
            "task_samples": (prompts, _activations(circuit, prompts, is_prompt)),
            "task_samples_circuit": (prompts, in_circuit),
        },
    }
    with written_whole(path) as temporary:
        torch.save(data, temporary)


def _kept(circuit: Circuit) -> dict[str, Int[Tensor, " kept"]]:
    """Return the kept channels by location; the final stream is whole in our circuits."""
    kept = {name: part.nonzero().flatten() for name, part in circuit.space.split(circuit.keep).items()}
    return kept | {FINAL: torch.arange(circuit.model.config.d_model)}


def _best_so_far(circuit: Circuit) -> list[float]:
    best, losses = float("inf"), []
    for record in circuit.history:
        best = min(best, float(record["loss"]))
        losses.append(best)
    return losses


def _their_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return our settings of pruning under the release's names where it has one; an imported circuit's as they came."""
    settings = settings.get("imported", settings)
    theirs = {_THEIR_SETTINGS.get(name, name): value for name, value in settings.items()}
    if isinstance(settings.get("beta2"), float):
        theirs["inv_beta2"] = 1 - settings["beta2"]
    wanted = ("heaviside_temp", "init_noise_bias", "init_noise_scale", "inv_beta2", "logk_coef", "lr", "seed", "wd")
    plain = {name: value for name, value in theirs.items() if isinstance(value, int | float | str | bool | None)}
    return dict.fromkeys(wanted) | plain


def _losses(circuit: Circuit, pairs: Pairs, answers_vary: bool) -> dict[str, Any]:
    """Measure the circuit without each node, each location's nodes, and each sublayer's; twice our loss."""
    space, whole = circuit.space, edges_between(circuit.model, circuit.keep)
    edges = EdgeSpace.of(whole)
    kept_edges = [circuit.edges[name][ends[:, 0], ends[:, 1]] for name, ends in edges.ends.items()]
    keep = torch.cat((circuit.keep, *kept_edges))
    evaluator = Evaluator(
        model=circuit.model, pairs=pairs, values=circuit.values, may_shift=not answers_vary, edges=edges
    )
    locations = {name: torch.arange(part.start, part.stop) for name, part in space.slices()}
    layers = {f"{i}.{kind}": f"{i}.{kind}." for i in range(circuit.model.config.n_layer) for kind in ("attn", "mlp")}
    parts: dict[str, list[Tensor]] = {
        "circuit": [torch.empty(0, dtype=torch.long)],
        "nodes": list(circuit.keep.nonzero()),
        "locations": [places[circuit.keep[places]] for places in locations.values()],
        "layers": [
            torch.cat([places[circuit.keep[places]] for name, places in locations.items() if name.startswith(prefix)])
            for prefix in layers.values()
        ],
    }
    found = {}
    for what, removed in parts.items():
        candidates = [evaluator.without(keep, gone) for gone in removed]
        found[what] = (2 * evaluator.losses(torch.stack(candidates), base=keep)).tolist() if candidates else []
    by_node = dict(zip(circuit.node_names(), found["nodes"], strict=True))
    split = space.split(circuit.keep)
    channels = {
        name: [by_node[f"{name}:{channel}"] for channel in part.nonzero().flatten().tolist()]
        for name, part in split.items()
    }
    return {
        "interv_loss": found["circuit"][0],
        "ch_interv_losses": channels | {FINAL: [found["circuit"][0]] * circuit.model.config.d_model},
        "layer_interv_losses": dict(zip(layers, found["layers"], strict=True)),
        "loc_interv_losses": dict(zip(locations, found["locations"], strict=True)),
    }


def _pairs(circuit: Circuit, *, is_weight: bool) -> list[list[Any]]:
    """Return, for each two locations with weights between them, the matrix (source, target) of the kept nodes.

    Args:
        circuit: The circuit.
        is_weight: Weights, with a last row of biases; else how much the loss rises without each edge, where measured.
    """
    keeps = {name: part.nonzero().flatten() for name, part in circuit.space.split(circuit.keep).items()}
    found = []
    for name, linear in circuit.model.linears().items():
        layer, kind = name.split(".", 1)
        source, targets = f"{layer}.{EDGE_ENDS[kind][0]}", [f"{layer}.{target}" for target in EDGE_ENDS[kind][1]]
        edges, width = circuit.edges[name], len(linear.weight) // len(targets)
        for i, target in enumerate(targets):
            rows = i * width + keeps[target]
            kept = edges[rows][:, keeps[source]]  # (target, source)
            if is_weight:
                matrix = (linear.weight.detach()[rows][:, keeps[source]] * kept).T
                bias = torch.zeros(len(rows)) if linear.bias is None else linear.bias.detach()[rows]
            else:
                matrix = _effects(circuit, source, target, keeps[source], keeps[target], kept)
                bias = torch.zeros(len(rows))
            sources: list[Any] = [*keeps[source].tolist(), "bias"]
            found.append([torch.cat((matrix, bias[None])), sources, keeps[target].tolist(), (source, target)])
    return found


def _effects(
    circuit: Circuit,
    source: str,
    target: str,
    sources: Int[Tensor, " source"],
    targets: Int[Tensor, " target"],
    kept: Bool[Tensor, "target source"],
) -> Float[Tensor, "source target"]:
    matrix = torch.zeros(len(sources), len(targets))
    for row, column in kept.nonzero().tolist():
        edge = f"{source}:{int(sources[column])} → {target}:{int(targets[row])}"
        matrix[column, row] = 2 * circuit.effects.get(edge, 0.0)
    return matrix


def _activations(
    circuit: Circuit, prompts: Int[Tensor, "row pos"], is_prompt: Bool[Tensor, "row pos"]
) -> dict[str, dict[int, Float[Tensor, "row pos"]]]:
    kept = {name: part.nonzero().flatten().tolist() for name, part in circuit.space.split(circuit.keep).items()}
    with reading(circuit.model, *kept) as seen:
        circuit.model(prompts)
    return {name: {c: (seen[name][..., c] * is_prompt).clone() for c in channels} for name, channels in kept.items()}


def _samples(circuit: Circuit, text: Int[Tensor, "batch pos"]) -> dict[str, dict[Tensor, dict[float, Any]]]:
    """Return, for each kept node, places in the text among its lowest and among its highest activations."""
    kept = {name: part.nonzero().flatten() for name, part in circuit.space.split(circuit.keep).items()}
    parts: dict[str, list[Tensor]] = {name: [] for name in kept}
    for rows in text.split(16):
        with reading(circuit.model, *kept) as seen:
            circuit.model.run(circuit.model.embed(rows))
        for name, channels in kept.items():
            parts[name].append(seen[name][..., channels])
    found: dict[str, dict[Tensor, dict[float, Any]]] = {}
    for name, channels in kept.items():
        values = torch.cat(parts[name])  # (batch, pos, kept)
        found[name] = {channel: _extremes(text, values[..., i]) for i, channel in enumerate(channels)}
    return found


def _extremes(text: Int[Tensor, "batch pos"], values: Float[Tensor, "batch pos"]) -> dict[float, Any]:
    order = values.flatten().argsort(stable=True)
    by_share = {}
    for share in SHARES:
        n_place = max(int(share * len(order)), min(N_SAMPLE, len(order)))
        spread = torch.linspace(0, n_place - 1, min(N_SAMPLE, n_place)).long()
        lists = []
        for places in (order[:n_place], order.flip(0)[:n_place]):
            rows, positions = places[spread] // text.shape[1], places[spread] % text.shape[1]
            lists.append([(text[r].clone(), values[r].clone(), int(p)) for r, p in zip(rows, positions, strict=True)])
        by_share[share] = tuple(lists)
    return by_share
