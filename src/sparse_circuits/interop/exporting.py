"""`sc.export`: a circuit in the format of another tool. What each loses: docs/interop.md."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparse_circuits.ablation import is_run, run_of
from sparse_circuits.circuit import Circuit
from sparse_circuits.corpus.shards import Batches
from sparse_circuits.errors import (
    ConfigError,
    CorpusError,
    FormatError,
    OutputExistsError,
    TaskError,
    did_you_mean,
)
from sparse_circuits.interop import graphs, mib, neuronpedia, viz_data_export
from sparse_circuits.tasks import task

N_ROW = 256
"""Rows of the corpus that samples of activations are taken from."""

N_PAIR = 64
"""Pairs of the task that the losses of a `viz_data.pt` are measured on."""


def export(circuit: Circuit | Path | str, path: Path | str, format: str, **settings: Any) -> Path:
    """Write a circuit in the format of another tool.

    Args:
        circuit: A circuit, or the folder of one.
        path: What to write: a file, or for `csv` and `parquet` a folder.
        format: `neuronpedia`, `mib`, `viz_data`, `graphml`, `csv`, `parquet` or `networkx` (node-link JSON).
        settings: Of `neuronpedia`: `prompt` and `answers`. Of `viz_data`: `pairs` and `text`, where neither the task
            can be drawn again nor the corpus be found.

    Returns:
        `path`.

    Raises:
        ConfigError: The format or a setting is unknown, or a package is missing.
        OutputExistsError: The path is there already.
    """
    if format not in FORMATS:
        raise ConfigError(f"no format is called {format!r}{did_you_mean(format, FORMATS)}")
    path, write = Path(path), FORMATS[format]
    known = [name for name, p in inspect.signature(write).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in settings:
        if name not in known:
            raise ConfigError(f"{format} has no setting {name!r}" + (did_you_mean(name, known) if known else ""))
    if path.is_dir() and format not in ("csv", "parquet"):
        raise OutputExistsError(f"{path} is a folder; {format} writes one file")
    for file in (path / f"nodes.{format}", path / f"edges.{format}") if path.is_dir() else (path,):
        if file.is_file():
            raise OutputExistsError(f"{file} is there already; name another or remove it")
    write(circuit if isinstance(circuit, Circuit) else Circuit.load(circuit), path, **settings)
    return path


def _write_viz_data(circuit: Circuit, path: Path, *, pairs: Any = None, text: Any = None) -> None:
    """Write `viz_data.pt`, with prompts drawn from the task again and samples from the corpus, or from the prompts."""
    vary = False
    if pairs is None:
        described = circuit.task
        try:
            drawn = task(
                described.get("path") or described["name"],
                circuit.model.tokenizer,
                seed=described["seed"],
                max_token=described.get("max_token"),
            )
        except TaskError as error:
            raise TaskError(f"the circuit's task can't be drawn again ({error}); give pairs") from None
        pairs, vary = drawn.split("select"), drawn.answers_vary
        pairs = pairs.take(torch.linspace(0, len(pairs) - 1, min(N_PAIR, len(pairs))).long())
    if text is None:
        text = _text(circuit)
    if text is None:
        shortest = int(pairs.length.min())
        text = pairs.tokens.flatten(0, 1)[:, :shortest]
    viz_data_export.write_viz_data(circuit, path, pairs=pairs, text=text, answers_vary=vary)


def _text(circuit: Circuit) -> torch.Tensor | None:
    """Return rows of the training text, if the model's corpus is still there."""
    folder = circuit.model.folder
    if folder is None or not is_run(folder):
        return None
    try:
        config, corpus = run_of(folder)
    except (CorpusError, FormatError):
        return None
    batches = Batches(
        corpus, shares=config.shares, context=config.context, batch_size=N_ROW, n_step=1, seed=config.seed
    )
    return batches(0)


FORMATS: dict[str, Callable[..., None]] = {
    "neuronpedia": neuronpedia.write_neuronpedia,
    "mib": mib.write_mib,
    "viz_data": _write_viz_data,
    "graphml": graphs.write_graphml,
    "csv": graphs.write_csv,
    "parquet": graphs.write_parquet,
    "networkx": graphs.write_networkx,
}
"""What writes each format."""
