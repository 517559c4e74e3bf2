"""One task pruned from several seeds: how much do its circuits agree? `sc.prune_seeds`."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, TextIO

import torch

from sparse_circuits.candidates import Evaluator
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import ConfigError
from sparse_circuits.faithfulness.selectivity import jaccard
from sparse_circuits.faithfulness.subject import kept_circuit
from sparse_circuits.files import is_done, write_json, written_whole
from sparse_circuits.model import Transformer
from sparse_circuits.pruning import prune
from sparse_circuits.settings import require
from sparse_circuits.tables import aligned
from sparse_circuits.tasks.pairs import Task
from sparse_circuits.viewer.curves import draw_models

FORMAT, VERSION = "sparse-circuits ensemble", 1


def prune_seeds(
    model: Transformer,
    task: Task,
    out: Path | str,
    config: PruneConfig | None = None,
    *,
    n_seed: int,
    first: Path | None = None,
    progress: TextIO | None = None,
) -> dict[str, Any]:
    """Prune a task once a seed, into folders of `out`, and compare the circuits.

    Circuits that are there are kept, so an ensemble that was interrupted goes on.

    Args:
        model: The model.
        task: What to prune for.
        out: Folder of the circuits, and of `ensemble.json`.
        config: How; its seed is the first one.
        n_seed: How many seeds, 1 or more.
        first: Folder of the circuit of the first seed, where that is not in `out`.
        progress: Where progress goes; None is silent.

    Raises:
        ConfigError: `n_seed` is below 1, or a circuit that is there was cut out with other settings.
        TaskError: Or for other prompts.

    Returns:
        What `ensemble.json` holds: `n_node` and `n_edge` of each circuit, `jaccard` of every two (shared nodes over all
        nodes of both), and for each k `common`: how many nodes k or more circuits have, and the calibrated loss on
        `select` with these alone.
    """
    require(n_seed >= 1, f"n_seed is {n_seed}, expected 1 or more")
    out, config = Path(out), config or PruneConfig()
    circuits = []
    # A pruning takes n_run seeds in a row.
    seeds = list(range(config.seed, config.seed + n_seed * config.n_run, config.n_run))
    for seed in seeds:
        folder = first if first is not None and seed == config.seed else out / f"seed-{seed}"
        circuits.append(_circuit(model, task, folder, dataclasses.replace(config, seed=seed), progress))
    evaluator = Evaluator(
        model=model, pairs=task.split("select"), values=circuits[0].values, may_shift=not task.answers_vary
    )
    keep = torch.stack([circuit.keep for circuit in circuits])
    common = [keep.sum(0) >= k for k in range(1, n_seed + 1)]
    losses = evaluator.losses(torch.stack(common)).tolist()
    found = {
        "format": FORMAT,
        "version": VERSION,
        "task": task.name,
        "seeds": seeds,
        "n_node": [circuit.n_node for circuit in circuits],
        "n_edge": [circuit.n_edge for circuit in circuits],
        "jaccard": [jaccard(one, other) for one, other in itertools.combinations(keep, 2)],
        "common": [
            {"k": k, "n_node": int(mask.sum()), "loss": loss}
            for k, (mask, loss) in enumerate(zip(common, losses, strict=True), 1)
        ],
    }
    write_json(out / "ensemble.json", found)
    curves = [[(p["n_node"], p["loss"]) for p in circuit.size_curve()] for circuit in circuits]
    if all(curves):
        with written_whole(out / "curves.svg") as temporary:
            temporary.write_text(draw_models({task.name: curves}, target_loss=config.target_loss), encoding="utf-8")
    return found


def _circuit(model: Transformer, task: Task, folder: Path, config: PruneConfig, progress: TextIO | None) -> Circuit:
    """Return the circuit that is there, or a new one.

    Raises:
        ConfigError: The one that is there was cut out with other settings.
        TaskError: Or for other prompts.
    """
    if not is_done(folder):
        prune(model, task, config, folder=folder, progress=progress)
    circuit = kept_circuit(folder, model, task)
    if others := circuit.other_settings(config):
        told = ", ".join(f"{name} {value}" for name, value in others.items())
        raise ConfigError(f"{folder} was cut out with other settings ({told}); name another folder or remove it")
    return circuit


def table(found: dict[str, Any]) -> str:
    """Write an ensemble as a table."""
    rows = [["seed", "nodes", "edges"]]
    rows += [
        [str(seed), str(n), str(e)] for seed, n, e in zip(found["seeds"], found["n_node"], found["n_edge"], strict=True)
    ]
    lines = aligned(rows)
    if found["jaccard"]:
        mean = sum(found["jaccard"]) / len(found["jaccard"])
        lines.append(f"Jaccard of two circuits: mean {mean:.2f}, least {min(found['jaccard']):.2f}")
    rows = [["in at least", "nodes", "loss with these alone"]]
    rows += [[f"{c['k']} of {len(found['n_node'])}", str(c["n_node"]), f"{c['loss']:.3f}"] for c in found["common"]]
    return "\n".join([*lines, *aligned(rows)])


def told_of_seeds(found: dict[str, Any]) -> str:
    """Write an ensemble of two or more in a line."""
    sizes, mean, shared = found["n_node"], sum(found["jaccard"]) / len(found["jaccard"]), found["common"][-1]
    return (
        f"{len(sizes)} seeds, {min(sizes)} to {max(sizes)} nodes, Jaccard {mean:.2f} in the mean; "
        f"{shared['n_node']} nodes common to all, loss {shared['loss']:.3f} with these alone"
    )
