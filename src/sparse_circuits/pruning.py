"""Cutting out the circuit behind a behaviour: learn masks, choose a size, refine. `sc.prune`."""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from jaxtyping import Bool
from torch import Tensor

from sparse_circuits.ablation import ablation_values
from sparse_circuits.candidates import Evaluator
from sparse_circuits.checkpoint import model_hash
from sparse_circuits.circuit import Circuit
from sparse_circuits.completeness import needed_nodes
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import ConfigError, PruneError
from sparse_circuits.files import refuse_finished, sha256_of_json
from sparse_circuits.mask_runs import MaskRun, excluded_nodes
from sparse_circuits.masks import LearnedMasks, Stops, learn_masks
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.refinement import Goal, Refined, Refining, keep_top, loss_at_sizes, refine, scan_sizes
from sparse_circuits.runlog import RunLog, say
from sparse_circuits.scoring import all_logit_differences, fit_calibration, match_loss, r_squared, task_loss
from sparse_circuits.tasks.pairs import Pairs, Task
from sparse_circuits.unfinished import Unfinished

LEARNED_SHARES = (0.7, 0.35, 0.1)
"""Shares of the target loss that masks are learned for, one after the other until some size reaches the target on
the pairs that decide: a mask does worse on templates that it was not learned on."""

FAR = 4
"""A size above this many times the nodes that a run learned says that its learning failed: it lost useful nodes, and
found others for them too late. Masks are learned again then, while there are shares left."""


def prune(
    model: Transformer,
    task: Task,
    config: PruneConfig | None = None,
    *,
    folder: Path | str | None = None,
    progress: TextIO | None = None,
    **settings: Any,
) -> Circuit:
    """Find the fewest nodes of a model that do a task at a target loss, everything else at its ablation value.

    Args:
        model: The model; it is not changed.
        task: Masks are learned on its `fit` split; sizes, calibration and removals are decided on `select` and as many
            pairs of `fit`, whose other templates keep removals from fitting those of `select`.
        config: How; defaults if left out.
        folder: Where the circuit is saved, and until then what is done so far: a call that was interrupted, repeated,
            goes on. If left out, nothing is written.
        progress: Where a progress line goes; None is silent.
        settings: Fields of `config` to change, such as `target_loss=0.1`.

    Returns:
        The circuit. Its loss on `test` is `verify`'s to say.

    Raises:
        PruneError: The full model, or every mask that was learned, misses the target there.
        TapError: The model is packed.
        TaskError: A prompt exceeds the model's context.
        ConfigError: A setting is out of range, or means are asked for and can't be had.
        OutputExistsError: The folder holds a finished circuit, or the beginning of another pruning.
    """
    config = dataclasses.replace(config or PruneConfig(), **settings)
    folder = None if folder is None else Path(folder)
    if folder is not None:
        refuse_finished(folder, "circuit")
    pruning = Pruning(model, task, config, folder=folder, progress=progress)
    configs = [dataclasses.replace(config, seed=config.seed + run, n_run=1) for run in range(config.n_run)]
    # Only a price that follows the loss depends on the target; under a fixed one a second attempt would be the first.
    shares = LEARNED_SHARES if config.count_coefficient is None else (1.0,)
    while True:
        share = shares[pruning.unfinished.n_missed]
        try:
            circuit = pruning.cut_out(pruning.learned_masks(configs, share), takes_far=share == shares[-1])
            break
        except PruneError as error:
            if share == shares[-1]:
                pruning.unfinished.remove()
                raise
            pruning.say(f"{error}; learning again for a lower loss")
            pruning.unfinished.miss()
    if folder is not None:
        circuit.save(folder)
        pruning.unfinished.remove()
    return circuit


class Pruning:
    """One task to be pruned: what all attempts at it share, and the steps from settings to a circuit.

    Args:
        model: The model.
        task: What to prune for.
        config: The target, and all that is not searched.
        folder: Where what is done so far is kept; None keeps nothing.
        command: What prunes. A search learns its masks with settings of its own, so neither goes on with the other's.
        progress: Where progress goes; None is silent.

    Raises:
        ConfigError: Means are asked for and can't be had, or every node is excluded.
        OutputExistsError: The folder holds the beginning of another pruning.
        PruneError: The full model misses the target, or its loss is NaN.
        TapError: The model is packed.
        TaskError: A prompt exceeds the model's context.
    """

    def __init__(
        self,
        model: Transformer,
        task: Task,
        config: PruneConfig,
        *,
        folder: Path | None = None,
        command: Literal["prune", "search"] = "prune",
        progress: TextIO | None = None,
    ) -> None:
        model.require_whole()
        self.model, self.task, self.config, self.progress = model, task, config, progress
        excluded = excluded_nodes(NodeSpace.of(model.config), config)
        if excluded.all():
            raise ConfigError(f"exclude names every node of the model ({len(excluded):,}); leave some for the circuit")
        task.refuse_longer_than(model.config.n_ctx)
        self.values = ablation_values(model, config.ablation, fit=task.split("fit"), n_token=config.n_mean_token)
        self.unfinished = Unfinished(folder, self._made_of(command))
        self.pairs = deciding_pairs(task)
        self.full = all_logit_differences(model, self.pairs)[0]
        self.without = Evaluator(model=model, pairs=self.pairs, values=self.values, may_shift=not task.answers_vary)
        self.evaluator = dataclasses.replace(self.without, wanted=self.full if config.goal == "model" else None)
        self.needed = torch.zeros(self.evaluator.n_node, dtype=torch.bool)
        every_node = torch.ones(1, self.evaluator.n_node, dtype=torch.bool)
        self.model_loss = float(self.evaluator.losses(every_node))
        if math.isnan(self.model_loss):
            raise PruneError(f"the full model's loss on {task.name} is NaN: its answers are not finite; train it anew")
        if self.model_loss > config.target_loss and not task.is_control:
            raise PruneError(
                f"target_loss {config.target_loss} can't be met: the full model's calibrated loss on "
                f"{task.name} (select and fit) is {self.model_loss:.6f}, chance 0.693; "
                "train longer or raise target_loss"
            )
        # What the last token alone tells of the answer, by embedding and bigram table, no removal of nodes takes away.
        last_token_tells = float(self.goal(1.0).auroc(every_node)) > config.max_auroc
        self.max_auroc = 1.0 if last_token_tells else config.max_auroc
        if config.needed_loss is not None:
            self.needed = needed_nodes(self.without, config.needed_loss) & ~excluded
            self.say(f"{int(self.needed.sum())} nodes that the model can't be without")

    def _made_of(self, command: str) -> dict[str, str]:
        """Return what decides the circuit, by name."""
        settings = sha256_of_json(self.config.deciding())
        found = {"settings": settings, "task": self.task.hash, "model": model_hash(self.model), "command": command}
        if self.config.ablation == "mean":  # all others follow from settings, task and model
            found["ablation"] = hashlib.sha256(self.values.numpy().tobytes()).hexdigest()
        return found

    def goal(self, max_auroc: float) -> Goal:
        """Return what a circuit must reach, under a limit on AUROC."""
        target = self.config.target_loss * (1 - self.config.margin)
        return Goal(
            evaluator=self.evaluator,
            without=self.without,
            target_loss=target,
            max_auroc=max_auroc,
            needed=self.needed,
        )

    def learn(
        self, configs: Sequence[PruneConfig], *, share: float = LEARNED_SHARES[0], stops: Stops = lambda *_: False
    ) -> LearnedMasks:
        """Learn a mask for each of the settings, side by side, with a progress line.

        Args:
            configs: Settings; all with the same number of steps and pairs.
            share: Of their target loss, which is what the masks are learned for.
            stops: As for `learn_masks`.
        """
        log = RunLog(None, n_step=configs[0].n_step, stream=self.progress)

        def show(step: int, records: list[dict[str, float]]) -> None:
            best = min(records, key=lambda record: record["n_node"])
            log.show(step, f"{self.task.name}: loss {best['loss']:.3f}  {best['n_node']:,} nodes")

        fit, may_shift = self.task.split("fit"), not self.task.answers_vary
        aimed = [dataclasses.replace(config, target_loss=share * config.target_loss) for config in configs]
        runs = [MaskRun(fit=fit, values=self.values, config=config, may_shift=may_shift) for config in aimed]
        memory = self.config.memory_mib << 20
        return learn_masks(self.model, runs, memory=memory, on_step=show, stops=stops)

    def learned_masks(self, configs: Sequence[PruneConfig], share: float) -> LearnedMasks:
        """Return the masks that an interrupted call learned, or learn them."""
        if self.unfinished.learned is not None:
            self.say(f"going on with what {self.unfinished.path} holds")
            return self.unfinished.learned
        return self.learn(configs, share=share)

    def choose_size(
        self, learned: LearnedMasks, *, takes_far: bool = True
    ) -> tuple[Bool[Tensor, " node"], dict[str, Any], Goal]:
        """Return the smallest circuit of all runs that reaches the goal, how it was found, and the goal.

        If no size takes the information out of the model, the limit on AUROC is given up, and the record says so.

        Args:
            learned: What was learned.
            takes_far: Take a size, too, that is far above the number of nodes that its run learned; see `FAR`.

        Raises:
            PruneError: No size of any run reaches the target, or only one that is too far.
        """
        tried: list[dict[str, float]] = []
        for max_auroc in sorted({self.max_auroc, 1.0}):
            goal = self.goal(max_auroc)
            found = [(run, *scan_sizes(goal, tau)) for run, tau in enumerate(learned.tau)]
            tried += [point for *_, curve in found for point in curve]
            passed = [(int(keep.sum()), run, keep, curve) for run, keep, curve in found if keep is not None]
            close = [one for one in passed if one[0] <= FAR * int((learned.keep[one[1]] | self.needed).sum())]
            if passed and not close and not takes_far:
                break
            if passed:
                size, run, keep, curve = min(close or passed, key=lambda one: one[:2])
                sizes = loss_at_sizes(goal.on_part().evaluator, learned.tau[run])
                scan = {"size": size, "run": run, "max_auroc": max_auroc, "curve": curve, "sizes": sizes}
                return keep, {"scan": scan}, goal
        ends = ", ".join(f"{int(h[-1]['n_node'])} nodes at loss {h[-1]['loss']:.3f}" for h in learned.history)
        near = "" if takes_far else " near what was learned"
        lowest = min(tried, key=lambda point: point["loss"])
        raise PruneError(
            f"no size{near} meets target_loss {self.config.target_loss} less the margin of {self.config.margin:.0%} on "
            f"{self.task.name}: masks ended with {ends}, the best of the sizes tried is {lowest['n_node']} nodes at "
            f"loss {lowest['loss']:.3f}; raise target_loss or n_step"
        )

    def cut_out(self, learned: LearnedMasks, *, takes_far: bool = True) -> Circuit:
        """Choose a size, refine, calibrate.

        Args:
            learned: What was learned.
            takes_far: As for `choose_size`.

        Raises:
            PruneError: As `choose_size`.
        """
        if self.unfinished.learned is None or not torch.equal(self.unfinished.learned.tau, learned.tau):
            self.unfinished.begin(learned)
        keep, scanned, goal = self.choose_size(learned, takes_far=takes_far)
        starts = self._starts(goal, keep, learned.tau[scanned["scan"]["run"]])
        ways = list(itertools.product(starts, range(self.config.n_order)))
        found = [self._refine(goal, start, order, way) for way, (start, order) in enumerate(ways)]
        refined = min(found, key=lambda one: (one.n_node, one.n_edge))
        if len(found) > 1:
            self.say(f"{len(found)} ways of removal end at {', '.join(str(one.n_node) for one in found)} nodes")
        scanned["orders"] = [
            {"n_node_start": int(start.sum()), "n_node": one.n_node, "n_edge": one.n_edge}
            for (start, _), one in zip(ways, found, strict=True)
        ]
        task = self.task
        circuit = Circuit(
            model=self.model,
            keep=refined.keep,
            edges=refined.edges,
            values=self.values,
            task={
                "name": task.name,
                "hash": task.hash,
                "seed": task.seed,
                "max_token": task.max_token,
                "path": task.path,
                "example": example_pair(self.model, task),
            },
            settings=self.config.to_json(),
            effects=refined.effects,
            removed=[scanned, *refined.rounds],
            history=learned.history[scanned["scan"]["run"]],
        )
        difference = circuit.logit_difference(self.pairs, calibrated=False)
        if self.config.goal == "labels":
            circuit.calibration = fit_calibration(difference, may_shift=not task.answers_vary)
        circuit.losses = {
            "circuit": float(task_loss(circuit.calibration(difference))),
            "circuit_uncalibrated": float(task_loss(difference)),
            "model": self.model_loss if self.config.goal == "labels" else float(task_loss(self.full)),
            "match": float(match_loss(difference, self.full)),
            "r_squared": r_squared(difference, self.full),
        }
        return circuit

    def say(self, text: str) -> None:
        """Tell of progress."""
        say(self.progress, f"{self.task.name}: {text}")

    def _starts(self, goal: Goal, keep: Bool[Tensor, " node"], tau: Tensor) -> list[Bool[Tensor, " node"]]:
        """Return what refinement starts from: the chosen size, and those of its doubles that reach the goal."""
        sizes = [int(keep.sum()) << doubling for doubling in range(1, self.config.n_start)]
        ranked = tau.masked_fill(goal.needed, torch.inf)
        wider = keep_top(ranked, torch.tensor([n for n in sizes if n <= int((ranked > -torch.inf).sum())]).long())
        return [keep, *(start for start in wider if goal.judge(start[None])[1])]

    def _refine(self, goal: Goal, keep: Bool[Tensor, " node"], order: int, way: int) -> Refined:
        def on_round(now: Refining) -> None:
            record = now.rounds[-1]
            edges = "" if record["n_edge"] is None else f", {record['n_edge']} edges"
            self.say(f"{record['n_node']} nodes{edges} left, loss {record['loss']:.3f}")
            self.unfinished.note(way, now)

        begun = self.unfinished.refining.get(way)
        return refine(goal, keep, cuts_edges=self.config.cuts_edges, order=order, begun=begun, on_round=on_round)


def deciding_pairs(task: Task) -> Pairs:
    """Return the pairs that sizes, calibration and removals are decided on: `select`, and as many spread over `fit`."""
    fit, select = task.split("fit"), task.split("select")
    return Pairs.join([select, fit.part(len(select))])


def example_pair(model: Transformer, task: Task) -> list[dict[str, str]]:
    """Return the shortest pair of `select` as text: prompt and answer of each side."""
    if model.tokenizer is None:
        return []
    pairs = task.split("select")
    shortest = pairs.take(pairs.length.argmin()[None])
    return [
        {"prompt": model.tokenizer.decode(tokens), "answer": model.tokenizer.decode([answer])}
        for tokens, answer in zip(shortest.tokens[0].tolist(), shortest.answers[0].tolist(), strict=True)
    ]
