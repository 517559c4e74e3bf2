"""The circuits of many tasks of one model, in one folder and one table: `sc.prune_all`."""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from sparse_circuits.ablation import is_run
from sparse_circuits.attribution import gradient_ranking, integrated_ranking
from sparse_circuits.candidates import Evaluator
from sparse_circuits.checkpoint import model_hash
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import PruneConfig
from sparse_circuits.control_models import KINDS, Kind, control_run
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.ensemble import prune_seeds, told_of_seeds
from sparse_circuits.errors import ConfigError, OutputExistsError, PruneError, TaskError
from sparse_circuits.faithfulness.card import BIGRAM_SOLVABLE
from sparse_circuits.faithfulness.controls import circuit_or_reason
from sparse_circuits.faithfulness.subject import kept_circuit
from sparse_circuits.files import is_done, write_json, written_whole
from sparse_circuits.model import Transformer
from sparse_circuits.pruning import deciding_pairs, example_pair, prune
from sparse_circuits.refinement import N_RANKING_PAIR, loss_at_sizes
from sparse_circuits.runlog import say
from sparse_circuits.scoring import accuracy, all_logit_differences, task_loss
from sparse_circuits.tables import aligned
from sparse_circuits.tasks import BEHAVIOURS, CONTROLS
from sparse_circuits.tasks import task as make_task
from sparse_circuits.tasks.pairs import Task
from sparse_circuits.viewer.curves import draw_curves

FORMAT, VERSION = "sparse-circuits survey", 1

N_ATTRIBUTION_PAIR = 128
"""Pairs of `fit` that the gradient rankings look at."""

SOLVED = 0.1
"""A task is solved if the model's loss is at most this, in nats."""


def prune_all(
    model: Transformer,
    out: Path | str,
    config: PruneConfig | None = None,
    *,
    names: Sequence[str] | None = None,
    controls: bool = False,
    n_seed: int = 1,
    corpus: Corpus | None = None,
    progress: TextIO | None = None,
) -> dict[str, Any]:
    """Cut out the circuit of every task that a model solves.

    Args:
        model: The model.
        out: Folder of the circuits, one a task, and of `summary.json`. Circuits that are there are kept, so a survey
            that was interrupted goes on, and one of a task that the model does not quite solve can be put beside. A
            task whose circuit was cut for other prompts, or whose folder holds the beginning of another pruning, is
            skipped.
        config: How to prune.
        names: Tasks, by name or file; all of them if left out. A file's circuit lies in a folder of its stem.
        controls: Prune the nonsense tasks too, and the tasks in models that never learned them, with the same budget.
            One whose target can't be reached counts at the size of the whole model.
        n_seed: Prune each task from this many seeds, and compare the circuits; the table is of the first one.
        corpus: For mined pairs.
        progress: Where progress goes; None is silent.

    Returns:
        What `summary.json` holds; see docs/formats.md. Losses of circuits are on `test`, which decides nothing.

    Raises:
        ConfigError: Controls, or means over the corpus, are asked for, and the model comes from no run folder; or a
            folder for a control model holds another one.
    """
    out, config = Path(out), config or PruneConfig()
    if controls and (model.folder is None or not is_run(model.folder)):
        raise ConfigError("controls need models like this one that never learned: open the model from its run folder")
    untrained: dict[Kind, Transformer] = {
        kind: control_run(model, kind, out / f"{kind}-model", seed=config.seed) for kind in KINDS if controls
    }
    rows, skipped = {}, {}
    for name in [*(names or BEHAVIOURS), *(CONTROLS if controls else ())]:
        try:
            task = make_task(name, model.tokenizer, seed=config.seed, corpus=corpus)
            row = rows[name] = _row(model, task, out / task.name, config, progress)
        except (TaskError, PruneError, OutputExistsError) as error:
            skipped[name] = str(error)
            say(progress, f"skipped {name}: {error}")
            continue
        say(progress, f"{name}: {row['n_node']} nodes, {row['n_edge']} edges")
        if n_seed > 1 and not task.is_control:
            row["seeds"] = _seeds(model, task, out / task.name, config, n_seed, progress)
    sizes = {name: row["n_node"] for name, row in rows.items() if _counts(row)}
    summary = {
        "format": FORMAT,
        "version": VERSION,
        "model_hash": model_hash(model),
        "config": config.to_json(),
        "tasks": rows,
        "skipped": skipped,
        **_means(rows),
        "control_models": {
            kind: _sizes_in_control(control, kind, sizes, out / f"{kind}-model" / "circuits", config, progress)
            for kind, control in untrained.items()
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "summary.json", summary)
    _draw(rows, out / "curves.svg", config.target_loss)
    return summary


def describe_tasks(
    model: Transformer, *, names: Sequence[str] | None = None, seed: int = 0, corpus: Corpus | None = None
) -> dict[str, Any]:
    """Say what each task asks, and how well the model does it.

    Args:
        model: The model.
        names: Tasks; all of them if left out.
        seed: Of the prompts.
        corpus: For mined pairs.

    Returns:
        By task: `behaviour` (one sentence), `hash` of its prompts, `example` (the shortest pair), and by level, `hard`
        form and `mined` pairs `loss` (nats a side, chance 0.693) and `accuracy` of the full model; or `refused`, and
        why.
    """
    known, found = BEHAVIOURS | CONTROLS, {}
    for name in names or BEHAVIOURS:
        try:
            task = make_task(name, model.tokenizer, seed=seed, corpus=corpus)
            task.refuse_longer_than(model.config.n_ctx)
        except TaskError as error:
            found[name] = {"refused": str(error)}
            continue
        parts = {level: task.split("test").at_level(level) for level in sorted(set(task.split("test").levels))}
        parts |= {split: task.split(split) for split in ("hard", "mined") if split in task.splits}
        numbers = {}
        for part, pairs in parts.items():
            if len(pairs):
                difference = all_logit_differences(model, pairs)[0]
                numbers[part] = {"loss": float(task_loss(difference)), "accuracy": float(accuracy(difference))}
        behaviour = (known[name].__doc__ or "").strip().split("\n")[0] if name in known else f"pairs of {task.path}"
        found[name] = {
            "behaviour": behaviour,
            "hash": task.hash,
            "example": example_pair(model, task),
            "numbers": numbers,
        }
    return found


def tasks_table(found: dict[str, Any]) -> str:
    """Write what `describe_tasks` found: loss and accuracy of the full model, then what each task asks."""
    parts = ("i", "ii", "hard", "mined")
    rows = [["task", *(f"{part}: loss, accuracy" for part in parts)]]
    for name, row in found.items():
        numbers = row.get("numbers", {})
        cells = [f"{numbers[p]['loss']:.3f}  {numbers[p]['accuracy']:.1%}" if p in numbers else "—" for p in parts]
        rows.append([name, *cells])
    lines = aligned(rows)
    for name, row in found.items():
        lines += ["", f"{name}: {row.get('behaviour') or row['refused']}"]
        for side in row.get("example", ()):
            prompt = side["prompt"].replace("\n", "\\n")
            answer = side["answer"].replace("\n", "\\n")
            lines.append(f"  {prompt}  →  {answer!r}")
    return "\n".join(lines)


def geometric_mean(values: Sequence[float]) -> float | None:
    """Return exp of the mean logarithm of positive values; None of nothing."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def mean_count(counts: Sequence[int]) -> float | None:
    """Return the geometric mean of counts, zero counting as one; None of nothing."""
    return geometric_mean([max(count, 1) for count in counts])


def _circuit(
    model: Transformer, task: Task, folder: Path, config: PruneConfig, progress: TextIO | None
) -> Circuit | None:
    """Return a task's circuit, the one that is there or a new one; None for a control that misses the target.

    Raises:
        PruneError: No size reaches the target, and the task is no control.
        TaskError: The circuit that is there was cut for other prompts.
        OutputExistsError: The beginning of another pruning is there.
    """
    if task.is_control:
        found = circuit_or_reason(model, task, folder, config, progress)
        return None if isinstance(found, str) else found
    if is_done(folder):
        return kept_circuit(folder, model, task)
    return prune(model, task, config, folder=folder, progress=progress)


def _row(model: Transformer, task: Task, folder: Path, config: PruneConfig, progress: TextIO | None) -> dict[str, Any]:
    """Prune one task, unless its circuit is there, and measure the circuit.

    Raises:
        PruneError: The model does not solve the task, or no size reaches the target.
        TaskError: A prompt exceeds the model's context, or the circuit was cut for other prompts.
        OutputExistsError: The beginning of another pruning is there.
    """
    task.refuse_longer_than(model.config.n_ctx)
    select, test = task.split("select"), task.split("test")
    difference = all_logit_differences(model, deciding_pairs(task))[0]
    loss, is_new = float(task_loss(difference)), not folder.exists()
    if loss > SOLVED and not task.is_control and not is_done(folder):
        raise PruneError(
            f"the model does not solve it: loss {loss:.3f}, accuracy {float(accuracy(difference)):.3f} on select "
            f"and fit (solved is {SOLVED}, chance 0.693); train longer, or prune it alone with a higher target_loss"
        )
    row: dict[str, Any] = {"is_control": task.is_control, "is_bigram_solvable": False}
    started = time.monotonic()
    circuit = _circuit(model, task, folder, config, progress)
    if circuit is None:
        n_node = sum(model.config.node_widths().values())
        return row | {"n_node": n_node, "n_edge": 0, "n_edge_all": 0, "is_reached": False}
    seconds = round(time.monotonic() - started, 1) if is_new else None
    circuit.log_test_reading(folder, "survey")
    nothing = torch.zeros(1, circuit.n_node_total, dtype=torch.bool)
    evaluator = Evaluator(model=model, pairs=select, values=circuit.values, may_shift=not task.answers_vary)
    # The pairs and the loss that the sizes of learned masks were tried by.
    wanted = difference if circuit.settings.get("goal") == "model" else None
    tried = dataclasses.replace(evaluator, pairs=deciding_pairs(task), wanted=wanted).on_part(N_RANKING_PAIR)
    part = task.split("fit").part(N_ATTRIBUTION_PAIR)
    curves = {
        "learned": circuit.size_curve(),
        "gradient": loss_at_sizes(tried, gradient_ranking(model, part, circuit.values)),
        "integrated_gradients": loss_at_sizes(tried, integrated_ranking(model, part, circuit.values)),
    }
    by_level = {level: test.at_level(level) for level in sorted(set(test.levels))}
    embedding = circuit.n_embedding_edge()
    return row | {
        "is_bigram_solvable": float(accuracy(evaluator.differences(nothing))[0]) > BIGRAM_SOLVABLE,
        "is_reached": True,
        "other_settings": circuit.other_settings(config),
        "model_loss": float(task_loss(all_logit_differences(model, test)[0])),
        "circuit_loss": float(task_loss(circuit.logit_difference(test))),
        "circuit_loss_by_level": {
            level: float(task_loss(circuit.logit_difference(part))) for level, part in by_level.items()
        },
        "sealed_loss": float(task_loss(circuit.logit_difference(test, sealed=True))),
        "n_node": circuit.n_node,
        "n_edge": circuit.n_edge,
        "n_edge_all": circuit.n_edge + embedding["embedding"] + embedding["unembedding"],
        "curve": [(point["n_node"], point["loss"]) for point in curves["learned"]],
        "size_by_ranking": {
            name: next((point["n_node"] for point in curve if point["loss"] <= config.target_loss), None)
            for name, curve in curves.items()
        },
        "seconds": seconds,
    }


def _seeds(
    model: Transformer, task: Task, folder: Path, config: PruneConfig, n_seed: int, progress: TextIO | None
) -> dict[str, Any]:
    """Prune a task from more seeds, beside its circuit, and compare; or say in `refused` why that can't be done."""
    try:
        return prune_seeds(model, task, folder / "seeds", config, n_seed=n_seed, first=folder, progress=progress)
    except (ConfigError, TaskError, PruneError, OutputExistsError) as error:
        say(progress, f"no other seeds of {task.name}: {error}")
        return {"refused": str(error)}


def _means(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the geometric means over the tasks that count, that over the nonsense ones, and their ratio."""
    real = [row for row in rows.values() if _counts(row)]
    means = {key: mean_count([row[key] for row in real]) for key in ("n_node", "n_edge", "n_edge_all")}
    control = mean_count([row["n_node"] for row in rows.values() if row["is_control"]])
    ratio = control / means["n_node"] if control and means["n_node"] else None
    return {"geometric_means": means, "control_mean": control, "control_ratio": ratio}


def _draw(rows: dict[str, dict[str, Any]], path: Path, target_loss: float) -> None:
    """Draw the curves of the tasks that count, if there are any."""
    curves = {name: row["curve"] for name, row in rows.items() if row.get("curve") and _counts(row)}
    if curves:
        with written_whole(path) as temporary:
            temporary.write_text(draw_curves(curves, target_loss=target_loss), encoding="utf-8")


def _counts(row: dict[str, Any]) -> bool:
    """Say whether a task is part of the means: no control, and not solved by a bigram table."""
    return not row["is_control"] and not row["is_bigram_solvable"]


def _sizes_in_control(
    control: Transformer, kind: Kind, sizes: dict[str, int], out: Path, config: PruneConfig, progress: TextIO | None
) -> dict[str, Any]:
    """Prune the tasks in a model that never learned them.

    Args:
        control: That model.
        kind: Which control it is.
        sizes: Nodes of the real circuits, by task.
        out: Folder of its circuits.
        config: How the real circuits were pruned.
        progress: Where progress goes.

    Returns:
        Nodes by task (None where the target was not reached), the geometric mean of control over real, and the tasks
        that were skipped, with the reason.
    """
    n_all, found, skipped = sum(control.config.node_widths().values()), {}, {}
    for name in sizes:
        task = dataclasses.replace(make_task(name, control.tokenizer, seed=config.seed), is_control=True)
        try:
            circuit = _circuit(control, task, out / task.name, config, progress)
        except (TaskError, OutputExistsError) as error:
            skipped[name] = str(error)
            say(progress, f"skipped {name} in the {kind} model: {error}")
            continue
        found[name] = None if circuit is None else circuit.n_node
        say(progress, f"{name} in the {kind} model: {found[name] or 'target not reached'}")
    ratio = geometric_mean([(n or n_all) / sizes[name] for name, n in found.items()])
    return {"n_node": found, "ratio": ratio, "skipped": skipped}


def table(summary: dict[str, Any]) -> str:
    """Write a survey as a table: losses in nats on `test`, chance 0.693."""
    head = ["task", "model", "circuit", "at level i", "sealed", "nodes", "edges", "with embeddings", "seconds"]
    rows = [head]
    for name, row in summary["tasks"].items():
        mark = " (bigram-solvable)" if row["is_bigram_solvable"] else " (control)" if row["is_control"] else ""
        level_i = row.get("circuit_loss_by_level", {}).get("i")
        found = (row.get("model_loss"), row.get("circuit_loss"), level_i, row.get("sealed_loss"))
        losses = ["—" if loss is None else f"{loss:.3f}" for loss in found]
        sizes = [f"{row[key]:,}" for key in ("n_node", "n_edge", "n_edge_all")]
        seconds = row.get("seconds")
        rows.append([name + mark, *losses, *sizes, "—" if seconds is None else f"{seconds:.0f}"])
    lines = aligned(rows)
    lines += [f"skipped {name}: {reason}" for name, reason in summary["skipped"].items()]
    for name, row in summary["tasks"].items():
        if others := row.get("other_settings"):
            told = ", ".join(f"{key} {value}" for key, value in others.items())
            lines.append(f"{name} was there already, cut out with other settings: {told}")
        if seeds := row.get("seeds"):
            lines.append(f"{name}: {seeds.get('refused') or told_of_seeds(seeds)}")
    for name in ("gradient", "integrated_gradients"):
        pairs = [row["size_by_ranking"] for row in summary["tasks"].values() if _counts(row) and row["is_reached"]]
        ratios = [sizes[name] / sizes["learned"] for sizes in pairs if sizes[name] and sizes["learned"]]
        if ratio := geometric_mean(ratios):
            lines.append(f"nodes ranked by {name.replace('_', ' ')}: {ratio:.1f} times as many as by learned masks")
    means = summary["geometric_means"]
    if means["n_node"]:
        lines.append(
            f"geometric means over tasks that aren't bigram-solvable: {means['n_node']:.1f} nodes, "
            f"{means['n_edge']:.1f} edges, {means['n_edge_all']:.0f} with embeddings"
        )
    if summary["control_mean"]:
        ratio = summary["control_ratio"]
        lines.append(
            f"nonsense controls: {summary['control_mean']:.1f} nodes"
            + (f", {ratio:.1f} times the real tasks'" if ratio else "")
        )
    for kind, found in summary["control_models"].items():
        n_reached = sum(n is not None for n in found["n_node"].values())
        lines.append(
            f"the same tasks in a model with {kind} weights: {n_reached} of {len(found['n_node'])} reach the target"
            + (f"; {found['ratio']:.1f} times the nodes" if found["ratio"] else "")
        )
        lines += [f"skipped {name} in a model with {kind} weights: {told}" for name, told in found["skipped"].items()]
    return "\n".join(lines)
