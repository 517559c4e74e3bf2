"""A dense model that predicts as well as a sparse one, and how large its circuits are: `sc.match`."""

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TextIO

from sparse_circuits.ablation import run_of, settings_of
from sparse_circuits.configs import MatchConfig, PruneConfig, SparsityConfig, TrainConfig
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import ConfigError, FormatError
from sparse_circuits.files import is_done, write_json, written_whole
from sparse_circuits.loading import load
from sparse_circuits.runlog import read_records, say
from sparse_circuits.settings import require
from sparse_circuits.sparsity import count_nonzeros
from sparse_circuits.survey import geometric_mean, prune_all
from sparse_circuits.tables import aligned
from sparse_circuits.tasks import CONTROLS
from sparse_circuits.training import train
from sparse_circuits.viewer.curves import draw_models, mean_curve

FORMAT, VERSION = "sparse-circuits match", 1

COMPARED = ("sparse", "smaller dense", "larger dense")
"""The three models whose circuits are compared."""

NEAR = 1.5
"""Two widths that differ by at most this factor are near enough to interpolate between."""


def match(
    run: Path | str,
    out: Path | str,
    config: MatchConfig | None = None,
    *,
    tasks: Sequence[str] = (),
    prune_config: PruneConfig | None = None,
    progress: TextIO | None = None,
) -> dict[str, Any]:
    """Train dense models around a sparse one's validation loss, and interpolate between them.

    The dense models have the sparse one's depth, head width, data, tokens, batches, bigram table and sinks; every
    weight and activation is free. Their width is doubled or halved until one is better and one worse, then halved in
    log until the two are near. Sizes are interpolated in log along the loss.

    Args:
        run: The sparse model's finished run folder.
        out: A folder for the dense runs. What is there stays, so a match that was interrupted goes on.
        config: Where to start, and when to give up.
        tasks: Tasks to prune in all three models; the circuits of the dense two are interpolated as well.
        prune_config: How to prune.
        progress: Where progress goes; None is silent.

    Returns:
        What `match.json` holds; see docs/formats.md.

    Raises:
        FormatError: `run` is no finished run.
        ConfigError: No two dense models have the sparse one's loss between theirs, one that is there was trained
            with other settings, the first width is no multiple of d_head, or a task is a control.

    Source: the paper compares circuits at equal pretraining loss (section 3, Figure 2); how the models are found is
    ours.
    """
    run, out, config = Path(run), Path(out), config or MatchConfig()
    if nonsense := [name for name in tasks if name in CONTROLS]:
        raise ConfigError(f"{nonsense[0]} is a control, which no model solves; name tasks to compare circuits of")
    if not is_done(run):
        raise FormatError(f"{run}: not a finished run; train it to its end first")
    sparse, corpus = run_of(run)
    target = _described(run, sparse)

    def loss_of(width: int) -> float:
        folder = out / f"dense-{width}"
        _train_or_keep(folder, dense_config(sparse, width, lr=config.lr), corpus, progress)
        return _described(folder, sparse)["loss"]

    d_head, first = sparse.model.d_head, config.first_width or first_width(sparse, target["n_nonzero"])
    require(first % d_head == 0, f"first_width is {first}, expected a multiple of the heads' width {d_head}")
    widths = bracket(loss_of, target["loss"], first=first, step=d_head, n_model=config.n_model)
    dense = [{"d_model": width, **_described(out / f"dense-{width}", sparse)} for width in widths]
    weight = share_of_larger(target["loss"], dense[0]["loss"], dense[1]["loss"])
    found: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "run": str(run),
        "sparse": target,
        "dense": dense,
        "interpolated": {
            key: between(dense[0][key], dense[1][key], weight) for key in ("d_model", "n_nonzero", "n_node")
        },
    }
    if tasks:
        folders = {"sparse": run, **{f"dense-{width}": out / f"dense-{width}" for width in widths}}
        prune_config = prune_config or PruneConfig()
        surveys = _surveyed(folders, out / "circuits", prune_config, tasks, corpus, progress)
        found["circuits"] = compare_circuits([*surveys.values()], weight)
        _draw(surveys, found["circuits"]["tasks"], out / "curves.svg", prune_config.target_loss)
    write_json(out / "match.json", found)
    return found


def _surveyed(
    folders: dict[str, Path],
    out: Path,
    config: PruneConfig,
    tasks: Sequence[str],
    corpus: Corpus,
    progress: TextIO | None,
) -> dict[str, dict[str, Any]]:
    """Prune the tasks in every model, each into a folder of its own."""
    return {
        name: prune_all(load(folder), out / name, config, names=tasks, corpus=corpus, progress=progress)
        for name, folder in folders.items()
    }


def _train_or_keep(folder: Path, config: TrainConfig, corpus: Corpus, progress: TextIO | None) -> None:
    """Train a dense model, or keep the one that is there if it was trained with these settings."""
    if not is_done(folder):
        say(progress, f"dense, d_model {config.model.d_model}")
        train(config, corpus=corpus, out=folder, progress=progress)
    elif settings_of(folder) != config:
        raise ConfigError(f"{folder} was trained with other settings, such as lr; name another folder or remove it")


def dense_config(sparse: TrainConfig, width: int, *, lr: float) -> TrainConfig:
    """Return the settings of a dense model of another width; heads and neurons grow with the width.

    Args:
        sparse: The sparse run's.
        width: d_model.
        lr: Its rate; a dense model wants another one than a sparse one.
    """
    shape = sparse.model
    model = dataclasses.replace(
        shape,
        d_model=width,
        n_head=max(1, round(width * shape.n_head / shape.d_model)),
        d_mlp=max(1, round(width * shape.d_mlp / shape.d_model)),
        act_density=None,
    )
    return dataclasses.replace(
        sparse,
        model=model,
        sparsity=SparsityConfig(matrix_density=1.0, embedding_density=1.0, bias_density=1.0, n_alive=0, anneal="none"),
        optimizer=dataclasses.replace(sparse.optimizer, lr=lr, scale_lr_with_density=False),
    )


def first_width(sparse: TrainConfig, n_nonzero: int) -> int:
    """Return the width, a multiple of d_head, at which a dense model has about as many weights."""
    shape, step = sparse.model, sparse.model.d_head
    per_square = shape.n_layer * (4 * shape.d_attn + 2 * shape.d_mlp) / shape.d_model  # weights a layer are this · d²
    per_width = shape.n_vocab * (1 if shape.tied_unembedding else 2)
    width = (math.sqrt(per_width**2 + 4 * per_square * n_nonzero) - per_width) / (2 * per_square)
    return max(step, step * round(width / step))


def bracket(loss_of: Callable[[int], float], target: float, *, first: int, step: int, n_model: int) -> tuple[int, int]:
    """Return two near widths, the smaller with a loss above the target, the larger with one at or below.

    Args:
        loss_of: Trains a width.
        target: The loss between them, nats a token.
        first: Where to start.
        step: Widths are multiples of this.
        n_model: Most widths to train.

    Raises:
        ConfigError: After `n_model` widths the target is not between two of them.
    """
    losses: dict[int, float] = {}
    worse = better = 0
    width = first
    while len(losses) < n_model and width not in losses:
        losses[width] = loss_of(width)
        worse = max((w for w, loss in losses.items() if loss > target), default=0)
        better = min((w for w in losses if w > worse), default=0)
        if not better:
            width = 2 * worse
        elif not worse:
            width = max(step, step * round(better / 2 / step))
        elif better / worse <= NEAR:
            break
        else:
            width = step * round(math.sqrt(worse * better) / step)
    if worse and better:
        return worse, better
    tried = ", ".join(f"{width}: {loss:.3f}" for width, loss in sorted(losses.items()))
    raise ConfigError(
        f"no two dense models have the sparse one's validation loss {target:.3f} between theirs (d_model {tried}); "
        "raise n_model, or change lr"
    )


def share_of_larger(target: float, smaller_loss: float, larger_loss: float) -> float:
    """Return how far from the smaller model to the larger one the target loss lies, in [0, 1]."""
    return (smaller_loss - target) / (smaller_loss - larger_loss)


def between(smaller: float, larger: float, weight: float) -> float:
    """Interpolate in log: smaller^(1 − weight) · larger^weight; both above 0."""
    return math.exp((1 - weight) * math.log(smaller) + weight * math.log(larger))


def compare_circuits(surveys: Sequence[dict[str, Any]], weight: float) -> dict[str, Any]:
    """Compare the circuits of the sparse model with those of a dense model of equal loss.

    Args:
        surveys: `summary.json` of the sparse model, the smaller and the larger dense one.
        weight: `share_of_larger`.

    Returns:
        By task that all three solve the nodes in `sparse` and `dense` (interpolated) and their `ratio`, and
        `geometric_mean` of the ratios of those that aren't bigram-solvable; `left_out` names the other tasks, and which
        model has no circuit of them, and why.
    """
    rows = [survey["tasks"] for survey in surveys]
    shared = [name for name in rows[0] if all(name in row for row in rows)]
    found, counted = {}, []
    for name in shared:
        small, large = rows[1][name]["n_node"], rows[2][name]["n_node"]
        dense = between(small, large, weight)
        sparse = rows[0][name]["n_node"]
        found[name] = {"sparse": sparse, "dense": dense, "dense_two": [small, large], "ratio": dense / sparse}
        if not any(row[name]["is_bigram_solvable"] for row in rows):
            counted.append(dense / sparse)
    return {
        "tasks": found,
        "geometric_mean": geometric_mean(counted),
        "left_out": {
            name: f"{which}: {reason}"
            for which, survey in zip(COMPARED, surveys, strict=True)
            for name, reason in survey["skipped"].items()
        },
    }


def table(found: dict[str, Any]) -> str:
    """Write a match as a table."""
    rows = [["", "d_model", "validation loss", "nonzero weights", "nodes"]]
    for label, row in (("sparse", found["sparse"]), *(("dense", row) for row in found["dense"])):
        rows.append([label, str(row["d_model"]), f"{row['loss']:.4f}", f"{row['n_nonzero']:,}", f"{row['n_node']:,}"])
    at = found["interpolated"]
    rows.append(
        [
            "dense of equal loss",
            f"{at['d_model']:.1f}",
            f"{found['sparse']['loss']:.4f}",
            f"{at['n_nonzero']:,.0f}",
            f"{at['n_node']:,.0f}",
        ]
    )
    lines = aligned(rows)
    if "circuits" in found:
        rows = [["circuit, nodes", "sparse", "dense of equal loss", "ratio"]]
        for name, row in found["circuits"]["tasks"].items():
            rows.append([name, str(row["sparse"]), f"{row['dense']:.1f}", f"{row['ratio']:.1f}"])
        lines += ["", *aligned(rows)] if len(rows) > 1 else [""]
        if found["circuits"]["geometric_mean"]:
            lines.append(f"geometric mean of the ratios: {found['circuits']['geometric_mean']:.1f}")
        lines += [f"left out {name}: {told}" for name, told in found["circuits"]["left_out"].items()]
    return "\n".join(lines)


def _draw(surveys: dict[str, dict[str, Any]], shared: Collection[str], path: Path, target_loss: float) -> None:
    """Draw each model's mean curve over the tasks that all of them solve and no bigram table, if there are any."""
    rows = [[s["tasks"][task] for s in surveys.values()] for task in shared]
    counted = [of_task for of_task in rows if not any(row["is_bigram_solvable"] for row in of_task)]
    if counted:
        by_model = zip(surveys, zip(*counted, strict=True), strict=True)
        curves = {name: [mean_curve([row["curve"] for row in of_model])] for name, of_model in by_model}
        with written_whole(path) as temporary:
            temporary.write_text(draw_models(curves, target_loss=target_loss), encoding="utf-8")


def _described(run: Path, sparse: TrainConfig) -> dict[str, Any]:
    """Return width, validation loss (weighted as the training data), and size of a finished run."""
    model = load(run)
    losses = next(r for r in reversed(read_records(run / "metrics.jsonl")) if "validation_loss" in r)["validation_loss"]
    return {
        "d_model": model.config.d_model,
        "loss": sum(share * losses[source] for source, share in sparse.shares.items()),
        "validation_loss": losses,
        "n_nonzero": count_nonzeros(model).n_nonzero,
        "n_node": sum(model.config.node_widths().values()),
    }
