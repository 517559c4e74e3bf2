"""Cutting out the circuit behind a behaviour: learn masks, choose a size, refine. `sc.prune`."""

import dataclasses
from typing import Any, TextIO

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_circuits.ablation import ablation_values
from sparse_circuits.candidates import Evaluator
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import PruneError
from sparse_circuits.masks import LearnedMasks, MaskRun, learn_masks
from sparse_circuits.model import Transformer
from sparse_circuits.refinement import Goal, loss_at_sizes, refine, scan_sizes
from sparse_circuits.runlog import RunLog
from sparse_circuits.scoring import all_logit_differences, fit_calibration, match_loss, r_squared, task_loss
from sparse_circuits.tasks.pairs import Pairs, Task


def prune(
    model: Transformer,
    task: Task,
    config: PruneConfig | None = None,
    *,
    progress: TextIO | None = None,
    **settings: Any,
) -> Circuit:
    """Find the fewest nodes of a model that do a task at a target loss, everything else at its ablation value.

    Args:
        model: The model; it is not changed.
        task: Masks are learned on its `fit` split, sizes, calibration and removals decided on `select`.
        config: How; defaults if left out.
        progress: Where a progress line goes; None is silent.
        settings: Fields of `config` to change, such as `target_loss=0.1`.

    Returns:
        The circuit. Its loss on `test` is `verify`'s to say.

    Raises:
        PruneError: The full model, or every mask that was learned, misses the target on `select`.
        ConfigError: A setting is out of range.
    """
    config = dataclasses.replace(config or PruneConfig(), **settings)
    fit, select = task.split("fit"), task.split("select")
    values = ablation_values(model, config.ablation, fit=fit, n_token=config.n_mean_token)
    full = all_logit_differences(model, select)[0]
    wanted = full if config.goal == "model" else None
    evaluator = Evaluator(model=model, pairs=select, values=values, may_shift=not task.answers_vary, wanted=wanted)
    model_loss = float(evaluator.losses(torch.ones(1, evaluator.n_node, dtype=torch.bool)))
    if model_loss > config.target_loss and not task.is_control:
        raise PruneError(
            f"target_loss {config.target_loss} can't be met: the full model's calibrated loss on "
            f"{task.name} (select) is {model_loss:.3f}; train longer, or set target_loss above that"
        )
    learned = _learn(model, task, values, config, progress)
    some = torch.arange(0, len(fit), max(1, len(fit) // len(select)))
    more = Pairs.join([select, fit.take(some)])
    without = dataclasses.replace(evaluator, pairs=more, wanted=None)
    keep, scanned, goal = _choose_size(evaluator, without, learned, task, config)

    def show_round(record: dict[str, Any]) -> None:
        if progress is not None:
            edges = "" if record["n_edge"] is None else f", {record['n_edge']} edges"
            progress.write(f"{task.name}: {record['n_node']} nodes{edges} left, loss {record['loss']:.3f}\n")

    refined = refine(goal, keep, cuts_edges=config.cuts_edges, on_round=show_round)
    circuit = Circuit(
        model=model,
        keep=refined.keep,
        edges=refined.edges,
        values=values,
        task={
            "name": task.name,
            "hash": task.hash,
            "seed": task.seed,
            "path": task.path,
            "example": _example(model, task),
        },
        settings=config.to_json(),
        effects=refined.effects,
        removed=[scanned, *refined.rounds],
        history=learned.history[scanned["scan"]["run"]],
    )
    difference = circuit.logit_difference(select, calibrated=False)
    if config.goal == "labels":
        circuit.calibration = fit_calibration(difference, may_shift=not task.answers_vary)
    circuit.losses = {
        "circuit": float(task_loss(circuit.calibration(difference))),
        "circuit_uncalibrated": float(task_loss(difference)),
        "model": model_loss,
        "match": float(match_loss(difference, full)),
        "r_squared": r_squared(difference, full),
    }
    return circuit


def _learn(
    model: Transformer, task: Task, values: Float[Tensor, " node"], config: PruneConfig, progress: TextIO | None
) -> LearnedMasks:
    """Learn `n_run` masks from different seeds, with a progress line."""
    log = RunLog(None, n_step=config.n_step, stream=progress)

    def show(step: int, records: list[dict[str, float]]) -> None:
        best = min(records, key=lambda record: record["n_node"])
        log.show(step, f"{task.name}: loss {best['loss']:.3f}  {best['n_node']:,} nodes")

    configs = [dataclasses.replace(config, seed=config.seed + run, n_run=1) for run in range(config.n_run)]
    fit, may_shift = task.split("fit"), not task.answers_vary
    runs = [MaskRun(fit=fit, values=values, config=config, may_shift=may_shift) for config in configs]
    return learn_masks(model, runs, on_step=show)


def _choose_size(
    evaluator: Evaluator, without: Evaluator, learned: LearnedMasks, task: Task, config: PruneConfig
) -> tuple[Bool[Tensor, " node"], dict[str, Any], Goal]:
    """Return the smallest circuit of all runs that reaches the goal, how it was found, and the goal.

    If no size takes the information out of the model, the limit on AUROC is given up, and the record says so.
    """
    for max_auroc in sorted({config.max_auroc, 1.0}):
        goal = Goal(evaluator=evaluator, without=without, target_loss=config.target_loss, max_auroc=max_auroc)
        found = [(run, *scan_sizes(goal, tau)) for run, tau in enumerate(learned.tau)]
        passed = [(int(keep.sum()), run, keep, curve) for run, keep, curve in found if keep is not None]
        if passed:
            size, run, keep, curve = min(passed, key=lambda one: one[:2])
            sizes = loss_at_sizes(goal.on_part().evaluator, learned.tau[run])
            scan = {"size": size, "run": run, "max_auroc": max_auroc, "curve": curve, "sizes": sizes}
            return keep, {"scan": scan}, goal
    n_node = int(learned.keep.sum(1).min())
    raise PruneError(
        f"no size meets target_loss {config.target_loss} on {task.name}: masks ended with {n_node} nodes at "
        f"loss {learned.history[0][-1]['loss']:.3f}; raise target_loss or n_step"
    )


def _example(model: Transformer, task: Task) -> list[dict[str, str]]:
    """Return the shortest pair of `select` as text."""
    if model.tokenizer is None:
        return []
    pairs = task.split("select")
    shortest = pairs.take(pairs.length.argmin()[None])
    return [
        {"prompt": model.tokenizer.decode(tokens), "answer": model.tokenizer.decode([answer])}
        for tokens, answer in zip(shortest.tokens[0].tolist(), shortest.answers[0].tolist(), strict=True)
    ]
