"""Carry an edit of one sparse node over to the dense model, beside everything it must beat: `sc.steer`."""

import dataclasses
from pathlib import Path
from typing import Any, TextIO

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_circuits.bridges.controls import (
    along,
    at_norm_of,
    at_other_positions,
    null_directions,
    of_another_pair,
    skyline,
    unrelated_channel,
)
from sparse_circuits.bridges.costs import TypicalEdit, neutral_kl, other_accuracy
from sparse_circuits.bridges.directions import (
    Prompts,
    read_changes,
    read_direction,
    read_directions,
    read_node,
)
from sparse_circuits.bridges.drawing import draw_steering
from sparse_circuits.bridges.effects import EditedReads, edit_norm
from sparse_circuits.bridges.finding import find_nodes
from sparse_circuits.bridges.interchange import mechanism, mechanism_table
from sparse_circuits.bridges.maps import Bridge, Bridges
from sparse_circuits.bridges.ridge import ridge_bridge
from sparse_circuits.bridges.stream_view import on_stream
from sparse_circuits.configs import BridgeConfig, SteerConfig, TrainConfig
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import TaskError
from sparse_circuits.faithfulness.intervals import A_SHARE, Estimate, estimate
from sparse_circuits.files import write_json, written_whole
from sparse_circuits.runlog import say
from sparse_circuits.tables import aligned
from sparse_circuits.tasks import Task
from sparse_circuits.tasks import task as draw_task
from sparse_circuits.tasks.sampling import SplitSizes

FORMAT, VERSION = "sparse-circuits steering", 1
NONE, BRIDGED, RIDGE, UNTRAINED, SKYLINE = (
    "no steering",
    "bridged node",
    "ridge bridge",
    "untrained bridge",
    "difference of means (skyline)",
)


def steer(
    bridge: Bridge,
    task: Task,
    node: str | None = None,
    config: SteerConfig | None = None,
    *,
    corpus: Corpus | None = None,
    train: TrainConfig | None = None,
    out: Path | str | None = None,
    progress: TextIO | None = None,
) -> dict[str, Any]:
    """Steer the dense model with one node of the sparse one, and with every control.

    Each prompt of `test` gets, at every token, the node's activation on its partner minus its own, along the decoder's
    row (see `directions`), times a strength. What is measured is the probability of both answers out of the whole
    vocabulary, over both directions of each pair.

    Args:
        bridge: Models and bridges.
        task: Pairs; the node is chosen on `select`, results are on `test`.
        node: Such as `2.mlp.act_in:17`; found on `select` if left out.
        config: Sizes.
        corpus: For the ridge bridge and neutral text; the sparse run's if left out, with its settings.
        train: Which text.
        out: Folder for `steer.json` and `steer.svg`; None writes nothing.
        progress: Where progress goes; None is silent.

    Returns:
        What `steer.json` holds; see docs/formats.md.

    Raises:
        TapError: The node is not at a read location that is bridged.
        ConfigError: The sparse model has too few active nodes for a null band.
        TaskError: A prompt exceeds a model's context.

    Source: paper appendix A.4 and Figure 9; the controls and the search are ours.
    """
    config = config or SteerConfig()
    train, corpus = bridge.text(train, corpus)
    task.refuse_longer_than(min(bridge.dense.n_ctx, bridge.sparse_stream.n_ctx))
    if config.where == "stream":
        bridge = on_stream(bridge)
    if node is not None:
        read_node(bridge, node)  # refused before anything is computed
    select = Prompts.of(task.split("select").part(config.n_select_pair))
    candidates = []
    if node is None:
        say(progress, "finding a node on select")
        candidates = find_nodes(bridge, select, n_try=config.n_try)
        node = candidates[0].node
    experiment = _Experiment(bridge, task, node, select, config)
    found = experiment.told() | {"candidates": [c.to_json() for c in candidates]}
    say(progress, f"steering with {node}")
    found["rows"] = [experiment.row(name, edit) for name, edit in experiment.edits(corpus, train)]
    found["share_of_skyline"] = _share(found["rows"])
    say(progress, "the null band")
    found["null"] = experiment.null_band()
    found["directions"] = experiment.by_part()
    say(progress, "costs")
    found["costs"] = experiment.costs(corpus, train)
    say(progress, "interchange and projection")
    found["mechanism"] = mechanism(
        bridge, task, experiment.node, corpus=corpus, train=train, others=experiment.others, config=config
    )
    if out is not None:
        write_json(Path(out) / "steer.json", found)
        with written_whole(Path(out) / "steer.svg") as temporary:
            temporary.write_text(draw_steering(found), encoding="utf-8")
    return found


class _Experiment:
    """One node, one task: its prompts of `test`, and the dense model on them."""

    def __init__(self, bridge: Bridge, task: Task, node: str, select: Prompts, config: SteerConfig) -> None:
        self.bridge, self.task, self.config, self.select = bridge, task, config, select
        self.node = read_node(bridge, node)
        self.direction = read_direction(bridge, self.node)
        self.prompts = Prompts.of(task.split("test").part(config.n_pair))
        self.reads = EditedReads(bridge.dense, self.node.dense_site, self.prompts)
        self.change = read_changes(bridge, self.node.location, self.prompts)[..., self.node.channel]
        self.edit = along(self.change, self.direction)
        self.others: dict[str, Prompts] = {}
        self.left_out: dict[str, str] = {}
        self._draw_other_tasks()

    def told(self) -> dict[str, Any]:
        """Return what was measured on what, and how."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "task": self.task.name,
            "task_hash": self.task.hash,
            "split": "test",
            "node": f"{self.node.location}:{self.node.channel}",
            "where": self.config.where,
            "dense_site": self.node.dense_site,
            "bridge": self.bridge.kind,
            "dense_hash": self.bridge.dense.hash,
            "sparse_hash": self.bridge.sparse_stream.hash,
            "strengths": list(self.config.strengths),
            "config": self.config.to_json(),
        }

    def _draw_other_tasks(self) -> None:
        """Draw the other tasks' prompts of `select`, and note which the tokenizer breaks."""
        sizes = SplitSizes(fit=1, select=self.config.n_select_pair, test=1, hard=1, mined=0)
        for name in self.config.other_tasks:
            if name != self.task.name:
                try:
                    made = draw_task(name, self.bridge.sparse.tokenizer, seed=self.task.seed, sizes=sizes)
                except TaskError as error:
                    self.left_out[name] = str(error)
                    continue
                self.others[name] = Prompts.of(made.split("select").part(self.config.n_select_pair))

    def edits(self, corpus: Corpus, train: TrainConfig) -> list[tuple[str, Tensor | None]]:
        """Return every edit by what it is."""
        bridge, node, change, prompts = self.bridge, self.node, self.change, self.prompts
        settings = bridge.bridges
        found: list[tuple[str, Tensor | None]] = [(NONE, None), (BRIDGED, self.edit), ("sign flipped", -self.edit)]
        for name, other in self.others.items():
            channel = unrelated_channel(bridge, node, other)
            row = at_norm_of(read_directions(bridge, node.place)[channel], self.direction)
            found.append((f"unrelated node {node.location}:{channel} of {name}, equal norm", along(change, row)))
            break
        found.append(("another pair's difference", along(of_another_pair(change, prompts), self.direction)))
        found.append(("difference at other positions", along(at_other_positions(change, prompts), self.direction)))
        untrained = Bridges(
            d_sparse=bridge.sparse.config.d_model,
            d_dense=bridge.dense.d_model,
            sites=settings.sites,
            density=settings.density,
            seed=self.config.seed + 1,
        )
        row = read_directions(dataclasses.replace(bridge, bridges=untrained), node.place)[node.channel].detach()
        found.append((f"{UNTRAINED}, equal norm", along(change, at_norm_of(row, self.direction))))
        fitted = ridge_bridge(
            sparse=bridge.sparse, dense=bridge.dense, corpus=corpus, train=train, config=self._ridge_settings()
        )
        found.append((RIDGE, along(change, read_directions(fitted, node.place)[node.channel])))
        found.append((SKYLINE, skyline(EditedReads(bridge.dense, node.dense_site, self.select), prompts)))
        return found

    def _ridge_settings(self) -> BridgeConfig:
        sites = tuple(f"{s}:{d}" for s, d in self.bridge.bridges.sites)
        return BridgeConfig(sites=sites, n_ridge_token=self.config.n_ridge_token)

    def row(self, name: str, edit: Tensor | None) -> dict[str, Any]:
        """Measure one edit at all strengths; controls that only have to fail at 0.5 and 1."""
        is_drawn = name in (BRIDGED, RIDGE, SKYLINE)
        strengths = [s for s in self.config.strengths if is_drawn or s in (0.5, 1.0)]
        if edit is None:
            strengths = [0.0]
        answers = [self.reads.answers(None if edit is None or s == 0 else s * edit) for s in strengths]
        natural = edit_norm(self.reads.natural)
        return {
            "name": name,
            "strengths": strengths,
            "p_other": [self._estimate(a.other) for a in answers],
            "p_own": [self._estimate(a.own) for a in answers],
            "mass": [a.mass for a in answers],
            "follows": [self._estimate(a.follows) for a in answers],
            "norm": 0.0 if edit is None else edit_norm(edit),
            "norm_to_natural": 0.0 if edit is None else edit_norm(edit) / natural,
        }

    def _estimate(self, per_prompt: Float[Tensor, " prompt"]) -> dict[str, Any]:
        per_pair = per_prompt.unflatten(0, (-1, 2)).mean(1)
        return dataclasses.asdict(estimate(per_pair, self.prompts.templates, within=A_SHARE))

    def by_part(self) -> list[dict[str, Any]]:
        """Return P(other) at strength 1 by direction and by level."""
        answers = self.reads.answers(self.edit)
        plain = self.reads.answers(None)
        found = []
        for side in (0, 1):
            for level in sorted(set(self.prompts.levels)):
                is_its = torch.tensor([at == level for at in self.prompts.levels])
                entry: dict[str, Any] = {"presented": side, "level": level, "n_pair": int(is_its.sum())}
                for key, measured in (("without", plain), ("with", answers)):
                    entry[key] = float(measured.other.unflatten(0, (-1, 2))[is_its, side].mean())
                found.append(entry)
        return found

    def null_band(self) -> dict[str, Any]:
        """Return what decoder rows of other active nodes do at equal norm, and the p-value of the node.

        Each row counts with the better of its two signs. p = (1 + rows at or above the node) / (1 + rows).
        """
        pairs = self.task.split("test").part(self.config.n_null_pair)
        prompts = Prompts.of(pairs)
        reads = EditedReads(self.bridge.dense, self.node.dense_site, prompts)
        change = read_changes(self.bridge, self.node.location, prompts)[..., self.node.channel]
        generator = torch.Generator().manual_seed(self.config.seed)
        rows, n_own = null_directions(
            self.bridge, self.node, prompts, n_row=self.config.n_null_row, generator=generator
        )

        scaled = torch.stack([at_norm_of(row, self.direction) for row in rows])
        both = torch.cat((self.direction[None], scaled, -scaled))
        bands: dict[str, Any] = {"n_row": len(rows), "n_own_location": n_own, "n_pair": len(pairs), "strengths": []}
        for strength in (0.5, 1.0):
            answers = reads.answers_to(lambda part, s=strength: s * along(change, part[:, None, None]), both)
            found = torch.tensor([float(a.other.mean()) for a in answers])
            node = float(found[0])
            values = found[1:].unflatten(0, (2, -1)).amax(0)
            bands["strengths"].append(
                {
                    "strength": strength,
                    "node": node,
                    "p_value": (1 + int((values >= node).sum())) / (1 + len(values)),
                    "low": float(values.quantile(0.025)),
                    "median": float(values.median()),
                    "high": float(values.quantile(0.975)),
                    "highest": float(values.max()),
                }
            )
        return bands

    def costs(self, corpus: Corpus, train: TrainConfig) -> dict[str, Any]:
        """Return what the edit does to text and tasks that it has no business with."""
        typical = TypicalEdit(self.change, self.direction, self.prompts)
        dense, site = self.bridge.dense, self.node.dense_site
        context = min(train.context, dense.n_ctx)
        n_token = max(context, self.config.n_neutral_token // len(train.shares))
        kl = {
            name: neutral_kl(dense, site, corpus.windows(name, "validation", context=context, n_token=n_token), typical)
            for name in train.shares
        }
        accuracy = {name: other_accuracy(dense, site, prompts, typical) for name, prompts in self.others.items()}
        return {
            "neutral_kl": kl,
            "other_accuracy": {name: {"without": a, "with": b} for name, (a, b) in accuracy.items()},
            "left_out": self.left_out,
        }


def _share(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return what the bridged node reaches of the skyline at strength 1: of its P(other), and of its norm."""
    by_name = {row["name"]: row for row in rows}
    ours, best = by_name[BRIDGED], by_name[SKYLINE]
    value, most = (row["p_other"][_place_of_one(row)]["value"] for row in (ours, best))
    return {"p_other": value / max(most, 1e-12), "norm": ours["norm"] / max(best["norm"], 1e-12)}


def _place_of_one(row: dict[str, Any]) -> int:
    """Return where strength 1 stands in a row; the row without steering has one strength, 0."""
    return row["strengths"].index(1.0) if 1.0 in row["strengths"] else 0


def table(found: dict[str, Any]) -> str:
    """Write a steering experiment as a table: every edit at strength 1."""
    rows = [["edit, strength 1", "P(other answer)", "P(right answer)", "both", "norm / natural"]]
    for row in found["rows"]:
        at = _place_of_one(row)
        rows.append(
            [
                row["name"],
                str(Estimate(**row["p_other"][at])),
                str(Estimate(**row["p_own"][at])),
                f"{row['mass'][at]:.3f}",
                f"{row['norm_to_natural']:.2f}",
            ]
        )
    band, share = found["null"]["strengths"][-1], found["share_of_skyline"]
    lines = [
        f"{found['task']}, node {found['node']}, edit of the {found.get('where', 'read')} "
        f"at dense site {found['dense_site']}, split {found['split']}",
        "",
        *aligned(rows),
        "",
        f"null band of {found['null']['n_row']} rows at equal norm on {found['null']['n_pair']} pairs: "
        f"95 % in [{band['low']:.3f}, {band['high']:.3f}], highest {band['highest']:.3f}; "
        f"the node {band['node']:.3f}, p = {band['p_value']:.4f}",
        f"of the skyline: {share['p_other']:.0%} of its probability at {share['norm']:.2f} times its norm",
    ]
    for part in found["directions"]:
        lines.append(
            f"presented side {part['presented']}, level {part['level']}, {part['n_pair']} pairs: "
            f"P(other) {part['without']:.3f} without, {part['with']:.3f} with"
        )
    kl = ", ".join(f"{name} {value:.3f}" for name, value in found["costs"]["neutral_kl"].items())
    lines.append(f"KL on neutral text, nats a token: {kl}")
    for name, value in found["costs"]["other_accuracy"].items():
        lines.append(f"accuracy on {name}: {value['without']:.3f} without, {value['with']:.3f} with")
    lines += [f"left out: {reason}" for reason in found["costs"].get("left_out", {}).values()]
    if "mechanism" in found:
        lines += ["", mechanism_table(found["mechanism"])]
    return "\n".join(lines)
