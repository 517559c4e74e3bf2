"""Commands that put circuits to the test: verify, predict."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sparse_circuits.cli.told import CircuitFolder, Json, corpus_of, say, task_for, tell, wrote
from sparse_circuits.configs import COSTLY, PruneConfig, VerifyConfig


def verify(
    circuit: CircuitFolder,
    config: Annotated[VerifyConfig, tyro.conf.arg(name="")],
    quick: Annotated[bool, tyro.conf.arg(help="A first look: fewer checks, on fewer pairs and sets.")] = False,
    controls: Annotated[
        bool,
        tyro.conf.arg(help="Prune nonsense tasks and untrained models too; kept for all circuits of the run."),
    ] = False,
    uniqueness: Annotated[
        bool,
        tyro.conf.arg(help="Prune from other seeds, and again with the circuit forbidden; kept by the circuit."),
    ] = False,
    others: Annotated[
        bool, tyro.conf.arg(help="Measure the circuits beside this one too, for the selectivity.")
    ] = True,
    hypothesis: Annotated[
        str | None, tyro.conf.arg(help="path/to/file.py:function that says a variable's value for a prompt's text.")
    ] = None,
    hypothesis_nodes: Annotated[
        tuple[str, ...], tyro.conf.arg(help="Nodes that hold the variable; the whole circuit if left out.")
    ] = (),
    ablation: Annotated[
        Literal["mean", "zero", "task_mean"] | None,
        tyro.conf.arg(help="What removed nodes are set to, for an imported circuit that does not say."),
    ] = None,
    out: Annotated[
        Path | None, tyro.conf.arg(help="Folder for the report and what is kept; the circuit's own if left out.")
    ] = None,
    json: Json = False,
) -> None:
    """Test a circuit on prompts that nothing was decided on, and write report.json beside it."""
    from sparse_circuits.circuit import Circuit
    from sparse_circuits.errors import ConfigError
    from sparse_circuits.faithfulness import verify as check
    from sparse_circuits.faithfulness.hypothesis import load_variable
    from sparse_circuits.runlog import terminal

    variable = None if hypothesis is None else load_variable(hypothesis)
    if hypothesis_nodes and variable is None:
        raise ConfigError("--hypothesis-nodes has no effect without --hypothesis")
    if quick:
        changed = [
            f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(VerifyConfig(), f.name)
        ]
        if changed:
            raise ConfigError(f"--quick decides {', '.join(changed)}; give one or the other")
        config = VerifyConfig.quick()
    wanted = [name for name, asked in zip(COSTLY, (controls, uniqueness), strict=True) if asked]
    config = dataclasses.replace(config, checks=(*config.checks, *(n for n in wanted if n not in config.checks)))
    opened = Circuit.load(circuit, values=None if ablation is None else partial(_values, circuit, ablation))
    if ablation is not None and "ablation" in opened.settings:
        raise ConfigError(f"{circuit} has ablation values ({opened.settings['ablation']}): --ablation has no effect")
    report = check(
        opened,
        _task_of(opened.model, opened.task),
        config,
        folder=out or circuit,
        others=_beside(circuit, opened) if others and "selectivity" in config.checks else None,
        corpus=corpus_of(opened.model) if "selectivity" in config.checks else None,
        hypothesis=variable,
        hypothesis_nodes=hypothesis_nodes,
        cache=out,
        progress=terminal(),
        on_step=say,
    )
    tell(report.to_json(), str(report), json=json)
    wrote((out or circuit) / "report.json")
    if out is not None:  # last, so that a circuit that can't be written to costs no report
        opened.log_test_reading(circuit, "verify")


def _task_of(model: Any, task: dict[str, Any]) -> Any:
    """Make the task that a circuit was cut for."""
    return task_for(model, task.get("path") or task["name"], task["seed"], task.get("max_token"))


def _values(folder: Path, how: Literal["mean", "zero", "task_mean"], model: Any) -> Any:
    """Make the ablation values of a circuit that came without."""
    from sparse_circuits.ablation import ablation_values
    from sparse_circuits.files import read_json

    say(f"{folder}: has no ablation values; made anew by {how}, so published numbers need not come out")
    fit = _task_of(model, read_json(folder / "circuit.json")["task"]).split("fit")
    return ablation_values(model, how, fit=fit, n_token=PruneConfig().n_mean_token)


def _beside(folder: Path, circuit: Any) -> dict[str, Any]:
    """Open the other finished circuits in the same folder that are of the same model, with their tasks."""
    from sparse_circuits.circuit import Circuit
    from sparse_circuits.errors import SparseCircuitsError

    found = {}
    for path in sorted(folder.resolve().parent.glob("*/circuit.json")):
        if path.parent == folder.resolve():
            continue
        try:
            other = Circuit.load(path.parent, circuit.model)
            if other.task["name"] != circuit.task["name"]:
                found[other.task["name"]] = (other, _task_of(other.model, other.task))
        except SparseCircuitsError as error:
            say(f"left out of the selectivity: {error}")
    return found


def predict(
    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="The circuit's task, such as bracket_counting.")],
    circuit: CircuitFolder,
    family: Annotated[
        tuple[Path, ...], tyro.conf.arg(help="Files of pairs whose column template tells members of a family apart.")
    ] = (),
    out: Annotated[
        Path | None, tyro.conf.arg(help="Folder for predictions.json and .svg; the circuit's own if left out.")
    ] = None,
    json: Json = False,
) -> None:
    """Predict from a circuit where its model fails, and measure the model there, side by side."""
    from sparse_circuits.circuit import Circuit
    from sparse_circuits.errors import TaskError
    from sparse_circuits.faithfulness.predictions import family_from_file
    from sparse_circuits.faithfulness.predictions import predict as predicted
    from sparse_circuits.files import write_json, written_whole
    from sparse_circuits.viewer.families import draw_families

    opened = Circuit.load(circuit)
    if opened.task["name"] != task:
        raise TaskError(f"{circuit} was cut for {opened.task['name']}, not for {task}")
    families, model = None, opened.model
    if family:
        if model.tokenizer is None:
            raise TaskError("the model has no tokenizer, so prompts can't be given to it")
        limit = model.config.n_ctx
        families = {path.stem: family_from_file(path, model.tokenizer, max_token=limit) for path in family}
    found = predicted(opened, families)
    folder = out or circuit
    write_json(folder / "predictions.json", found.to_json())
    with written_whole(folder / "predictions.svg") as temporary:
        temporary.write_text(draw_families(found.to_json()), encoding="utf-8")
    tell(found.to_json(), str(found), json=json)
    wrote(folder / "predictions.json")
    wrote(folder / "predictions.svg")
