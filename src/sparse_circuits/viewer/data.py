"""What a picture of a circuit shows, as plain JSON values: the view-model."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

from sparse_circuits.checkpoint import model_hash
from sparse_circuits.circuit import Circuit
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import CorpusError, FormatError, TaskError
from sparse_circuits.files import read_json
from sparse_circuits.readings import N_TOKEN, read_corpus
from sparse_circuits.scoring import CHANCE
from sparse_circuits.tasks import task as make_task
from sparse_circuits.tasks.own_pairs import MAX_TOKENS_OF_FILE
from sparse_circuits.tasks.pairs import MAX_TOKENS, Task
from sparse_circuits.viewer import graph
from sparse_circuits.viewer.notes import read_notes
from sparse_circuits.viewer.prompts import N_PAIR, node_effects, show_pairs
from sparse_circuits.viewer.samples import sample_nodes

FORMAT, VERSION = "sparse-circuits view", 2

SHAPE = ("n_layer", "n_head", "d_head", "d_model", "n_ctx", "n_vocab")
"""What a page says of the model's shape."""

MOST_RECORDS = 300
"""Points of the training curve that are kept."""


def view_model(
    circuit: Circuit,
    *,
    folder: Path | None = None,
    task: Task | None = None,
    n_pair: int = N_PAIR,
    n_token: int = N_TOKEN,
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return everything that a picture of the circuit needs.

    Args:
        circuit: The circuit.
        folder: Its folder, for report, notes and provenance.
        task: The task that it was cut for, for prompts and intervals; nothing of them is shown if it is left out.
        n_pair: Pairs of prompts to show.
        n_token: Tokens of the corpus to look for examples in; 0 for no examples.
        on_step: Called with a sentence before each step.

    Raises:
        TaskError: The task's prompts are not those that the circuit was cut for.
    """
    if task is not None and task.hash != circuit.task["hash"]:
        raise TaskError(f"the circuit was cut for other prompts than these of {task.name}")
    missing: dict[str, str] = {}
    nodes = graph.nodes(circuit)
    prompts = None
    if task is None:
        missing["prompts"] = "the page was made without the task"
    else:
        on_step("explaining some of them")
        prompts = show_pairs(circuit, task, n_pair=n_pair)
        on_step("measuring each node's effect")
        effects = node_effects(circuit, task)
        nodes = [node | {"effect_estimate": effects[node["name"]]} for node in nodes]
    on_step("reading the corpus for examples")
    samples, why = _samples(circuit, n_token)
    missing |= {"samples": why} if why else {}
    report = None if folder is None else folder / "report.json"
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": circuit.task["name"],
        "model": {"hash": model_hash(circuit.model), **{name: getattr(circuit.model.config, name) for name in SHAPE}},
        "task": _passed_on(circuit.task),
        "summary": _summary(circuit),
        "nodes": nodes,
        **_links(circuit, prompts),
        "prompts": prompts,
        "samples": samples,
        "missing": missing,
        "history": _thinned(circuit.history),
        "removed": circuit.removed,
        "settings": circuit.settings,
        "report": read_json(report) if report is not None and report.exists() else None,
        "notes": None if folder is None else read_notes(folder),
        "provenance": _provenance(circuit, folder),
        "vocabulary": _vocabulary(circuit),
    }


def _links(circuit: Circuit, prompts: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "edges": graph.edges(circuit),
        "carries": graph.carries(circuit),
        "scores": graph.scores(circuit),
        "embedding": graph.embedding_edges(circuit, _pair_ids(circuit, prompts)),
        "unembedding": graph.unembedding_edges(circuit, _answers(circuit, prompts)),
        "channels": graph.channel_tokens(circuit),
    }


def _samples(circuit: Circuit, n_token: int) -> tuple[dict[str, Any] | None, str]:
    """Return examples from the corpus, or why there are none."""
    if n_token == 0:
        return None, "the page was made without the corpus"
    try:
        return sample_nodes(read_corpus(circuit.model, circuit.node_names(), n_token=n_token)), ""
    except (CorpusError, FormatError) as error:
        return None, without_paths(str(error), circuit)


def without_paths(text: str, circuit: Circuit) -> str:
    """Return a text without this machine's paths to the run and to a task's file: a page is passed on."""
    path = circuit.task.get("path")
    for folder, name in ((circuit.model.folder, "the run"), (path, file_name(path or ""))):
        text = text if folder is None else text.replace(str(folder), name)
    return text


def file_name(path: str) -> str:
    """Return the name at the end of a path, written on whichever system."""
    return PureWindowsPath(path).name


def _passed_on(task: dict[str, Any]) -> dict[str, Any]:
    """Return what a page says of a task: of its file, if it has one, the name alone."""
    return task | {"path": file_name(task["path"])} if task.get("path") else task


def _summary(circuit: Circuit) -> dict[str, Any]:
    return {
        "n_node": circuit.n_node,
        "n_node_total": circuit.n_node_total,
        "n_edge": circuit.n_edge,
        "chance": CHANCE,
        "calibration": dataclasses.asdict(circuit.calibration),
        "losses": circuit.losses,
    }


def task_of(circuit: Circuit) -> Task:
    """Draw the task of a circuit again.

    Raises:
        TaskError: It can't be, or the prompts are others now.
    """
    described = circuit.task
    made = make_task(
        described.get("path") or described["name"],
        circuit.model.tokenizer,
        seed=described["seed"],
        max_token=described.get("max_token"),
    )
    if made.hash != described["hash"]:
        raise TaskError(f"the prompts of {described['name']} are not those that the circuit was cut for")
    return made


def _pair_ids(circuit: Circuit, prompts: dict[str, Any] | None) -> list[list[list[int]]]:
    """Return both sides of some pairs as token ids: those that are shown, or the task's example."""
    if prompts is not None:
        return [pair["tokens"] for pair in prompts["pairs"]]
    tokenizer, sides = circuit.model.tokenizer, circuit.task.get("example", [])
    if tokenizer is None or len(sides) != 2:
        return []
    both = [tokenizer.encode(side["prompt"]) for side in sides]
    return [both] if len(both[0]) == len(both[1]) else []


def _answers(circuit: Circuit, prompts: dict[str, Any] | None) -> list[int]:
    """Return the answers whose logits are drawn: those of the first pairs, side 0's before side 1's."""
    if prompts is not None:
        found = [pair["answers"][side] for side in (0, 1) for pair in prompts["pairs"][:3]]
        return list(dict.fromkeys(found))
    tokenizer = circuit.model.tokenizer
    sides = [] if tokenizer is None else circuit.task.get("example", [])
    tokens = [tokenizer.token(side["answer"]) for side in sides] if tokenizer is not None else []
    return [token for token in dict.fromkeys(tokens) if token is not None]


def _thinned(records: list[dict[str, float]]) -> list[dict[str, float]]:
    step = -(-len(records) // MOST_RECORDS) or 1
    return records[::step]


def _vocabulary(circuit: Circuit) -> list[str]:
    """Return every token's text by id, or nothing without a tokenizer."""
    tokenizer = circuit.model.tokenizer
    return [] if tokenizer is None else [tokenizer.decode([token]) for token in range(tokenizer.n_vocab)]


def _provenance(circuit: Circuit, folder: Path | None) -> dict[str, Any]:
    """Return hashes, versions, and the command that makes it again."""
    described = {} if folder is None else json.loads((folder / "circuit.json").read_text(encoding="utf-8"))
    return {
        "model_hash": model_hash(circuit.model),
        "task_hash": circuit.task["hash"],
        "versions": described.get("versions", {}),
        "test_readings": circuit.test_readings,
        "command": _command(circuit, folder),
    }


def _command(circuit: Circuit, folder: Path | None) -> str:
    """Return the command that imports it, or else prunes it with settings that differ where the circuit's do."""
    run = "RUN" if circuit.model.folder is None else str(circuit.model.folder.name)
    out = "OUT" if folder is None else folder.name
    if circuit.task.get("origin"):
        words = ["sparse-circuits", "import", circuit.task["origin"], "--model", run, "--out", out]
        words += ["--corpus", "CORPUS"] if circuit.settings.get("means") == "corpus" else []
        return shlex.join([*words, "--task", circuit.task["name"]])
    path, max_token = circuit.task.get("path"), circuit.task.get("max_token")
    # No paths of this machine here either.
    words = ["sparse-circuits", "prune", run, file_name(path) if path else circuit.task["name"], "--out", out]
    if max_token not in (None, MAX_TOKENS_OF_FILE if path else MAX_TOKENS):
        words += ["--max-token", str(max_token)]
    defaults = PruneConfig().to_json()
    for name, value in circuit.settings.items():
        flag = name.replace("_", "-")
        if name not in defaults or value == defaults[name]:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    return shlex.join(words)
