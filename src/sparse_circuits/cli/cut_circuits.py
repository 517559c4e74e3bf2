"""Commands that cut circuits out and show them: tasks, prune, search, view."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from sparse_circuits.cli.told import (
    CircuitFolder,
    Json,
    MaxToken,
    ModelFolder,
    Out,
    corpus_of,
    say,
    task_for,
    tell,
    wrote,
)
from sparse_circuits.configs import PruneConfig


def tasks(
    model: ModelFolder,
    task: Annotated[
        str | None, tyro.conf.arg(help="One task, with its card: how it could be cheated. All if left out.")
    ] = None,
    seed: Annotated[int, tyro.conf.arg(help="Decides the prompts.")] = 0,
    json: Json = False,
) -> None:
    """Show what each task asks, with an example, and how well a model does it."""
    from sparse_circuits import survey
    from sparse_circuits.ablation import ablation_values
    from sparse_circuits.errors import TaskError
    from sparse_circuits.faithfulness.card import task_card
    from sparse_circuits.loading import load
    from sparse_circuits.tasks import CONTROLS

    opened = load(model)
    names = [task] if task else None
    found = survey.describe_tasks(opened, names=names, seed=seed, corpus=corpus_of(opened, task))
    text = survey.tasks_table(found)
    if task is None:
        text += f"\n\n--task NAME shows one with its card; there are controls as well: {', '.join(CONTROLS)}"
    elif "refused" in found[task]:
        raise TaskError(found[task]["refused"])
    else:
        made = task_for(opened, task, seed)
        values = ablation_values(opened, "task_mean", fit=made.split("fit"), n_token=1)
        card = dataclasses.asdict(task_card(opened, made, values))
        found[task]["card"] = card
        text += "\n" + "\n".join(f"  {key}: {value}" for key, value in card.items())
    tell(found, text, json=json)


def prune(
    model: ModelFolder,
    out: Out,
    config: Annotated[PruneConfig, tyro.conf.arg(name="")],
    task: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(help="Name of the task, or a .jsonl or .csv file of pairs.")
    ] = None,
    all: Annotated[bool, tyro.conf.arg(help="Every task that the model solves, each in a folder of OUT.")] = False,
    controls: Annotated[
        bool, tyro.conf.arg(help="With --all: nonsense tasks, and models that never learned, too.")
    ] = False,
    seeds: Annotated[int, tyro.conf.arg(help="Prune a task from this many seeds, and compare the circuits.")] = 1,
    max_token: MaxToken = None,
    json: Json = False,
) -> None:
    """Cut out the circuit behind a task, or those behind all tasks."""
    from sparse_circuits.errors import ConfigError
    from sparse_circuits.files import refuse_finished
    from sparse_circuits.loading import load
    from sparse_circuits.pruning import prune as cut_out
    from sparse_circuits.runlog import terminal

    if all == (task is not None):
        raise ConfigError("name one task, or say --all" if task is None else f"{task} and --all: say one of them")
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}, expected 1 or more")
    if all and max_token is not None:
        raise ConfigError("--max-token has no effect with --all")
    if controls and not all:
        raise ConfigError("--controls has no effect without --all")
    if all:
        from sparse_circuits import survey

        opened = load(model)
        summary = survey.prune_all(
            opened, out, config, controls=controls, n_seed=seeds, corpus=corpus_of(opened), progress=terminal()
        )
        tell(summary, survey.table(summary), json=json)
        wrote(out / "summary.json")
        return
    assert task is not None
    refuse_finished(out, "circuit")
    opened = load(model)
    made = task_for(opened, task, config.seed, max_token)
    for line, reason in made.dropped_rows.items():
        say(f"{task}, line {line} dropped: {reason}")
    if seeds > 1:
        from sparse_circuits import ensemble

        found = ensemble.prune_seeds(opened, made, out, config, n_seed=seeds, progress=terminal())
        tell(found, ensemble.table(found), json=json)
        wrote(out / "ensemble.json")
        return
    circuit = cut_out(opened, made, config, folder=out, progress=terminal())
    told = {"n_node": circuit.n_node, "n_node_total": circuit.n_node_total, "n_edge": circuit.n_edge, **circuit.losses}
    tell(told, str(circuit), json=json)
    wrote(out)


def search(
    model: ModelFolder,
    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="Name of the task, or a file of pairs.")],
    out: Out,
    config: Annotated[PruneConfig, tyro.conf.arg(name="")],
    n_trial: Annotated[int, tyro.conf.arg(help="Settings to try in all.")] = 32,
    n_at_once: Annotated[
        int, tyro.conf.arg(help="Settings that are drawn together, before any of them is judged.")
    ] = 8,
    json: Json = False,
) -> None:
    """Search the pruner's settings for the smallest circuit, or go on with the search that OUT holds."""
    from sparse_circuits import search as searching
    from sparse_circuits.files import refuse_finished
    from sparse_circuits.loading import load
    from sparse_circuits.runlog import terminal

    refuse_finished(out, "circuit")
    opened = load(model)
    circuit = searching.search_settings(
        opened,
        task_for(opened, task, config.seed),
        out,
        config,
        n_trial=n_trial,
        n_at_once=n_at_once,
        progress=terminal(),
    )
    tell({"n_node": circuit.n_node, "n_edge": circuit.n_edge, **circuit.losses}, str(circuit), json=json)
    wrote(out)


def view(
    circuit: CircuitFolder,
    out: Annotated[Path | None, tyro.conf.arg(help="The file; circuit.html beside the circuit if left out.")] = None,
    beside: Annotated[Path | None, tyro.conf.arg(help="Another circuit's folder, to compare with.")] = None,
    live: Annotated[bool, tyro.conf.arg(help="Serve it on this machine, with the model behind it.")] = False,
    port: Annotated[int, tyro.conf.arg(help="Where to serve; 0 takes a free port.")] = 0,
) -> None:
    """Write the page of a circuit, one file that needs no network, or serve it with the model behind it."""
    from sparse_circuits.errors import ConfigError

    if not 0 <= port <= 65_535:
        raise ConfigError(f"port is {port}, expected 0 to 65535")
    if live:
        from sparse_circuits.circuit import Circuit
        from sparse_circuits.viewer.server import serve
        from sparse_circuits.viewer.views import view_of

        if out is not None or beside is not None:
            raise ConfigError("--live writes no file and shows one circuit; leave --out and --beside away")
        opened = Circuit.load(circuit)
        shown = view_of(circuit, on_step=say)
        serve(circuit, shown, port=port, circuit=opened, on_ready=lambda url: say(f"open {url}\nCtrl-C ends it"))
        return
    if port:
        raise ConfigError(f"--port {port} has no effect without --live")
    from sparse_circuits.viewer import view as write

    wrote(write(circuit, out, beside=beside, on_step=say))
