"""What commands have in common: their arguments, and how a result is told."""

import functools
import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

Out = Annotated[Path, tyro.conf.arg(help="Folder to write.")]
Json = Annotated[bool, tyro.conf.arg(help="Print the result as JSON on stdout.", name="json")]
ModelFolder = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(help="A folder of ours, the release or Hugging Face; or a released name."),
]
MaxToken = Annotated[
    int | None, tyro.conf.arg(help="Longest prompt, in tokens; 64 if left out, or 256 of a file of pairs.")
]
CircuitFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="A circuit's folder.")]


def tell(data: dict[str, Any], text: str, *, json: bool) -> None:
    """Print a result on stdout, as a table or as JSON."""
    sys.stdout.write((dump(data) if json else text) + "\n")


def dump(data: dict[str, Any]) -> str:
    """Return JSON as the commands print it: numbers that are not finite are null."""
    return json.dumps(_finite(data), indent=1, ensure_ascii=False, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def say(text: str) -> None:
    """Tell of progress, on stderr."""
    sys.stderr.write(f"{text}\n")


def wrote(path: Path) -> None:
    """Say what was written."""
    say(f"wrote {path}")


def task_for(model: Any, name: str, seed: int, max_token: int | None = None) -> Any:
    """Make a task for a model, with mined pairs if the run's corpus is still there."""
    from sparse_circuits.tasks import task

    return task(name, model.tokenizer, seed=seed, corpus=corpus_of(model, name), max_token=max_token)


def corpus_of(model: Any, name: str | None = None) -> Any:
    """Return the corpus that a model's run was trained on, if it is still there; none for a task that is a file."""
    from sparse_circuits.ablation import is_run
    from sparse_circuits.tasks import BEHAVIOURS, CONTROLS

    if model.folder is None or not is_run(model.folder) or name not in (None, *BEHAVIOURS, *CONTROLS):
        return None
    return _corpus_in(model.folder)


@functools.cache
def _corpus_in(run: Path) -> Any:
    """Open the corpus of a run once, and say once if it is gone."""
    from sparse_circuits.ablation import run_of
    from sparse_circuits.errors import CorpusError, FormatError

    try:
        return run_of(run)[1]
    except (CorpusError, FormatError) as error:
        say(f"no mined pairs: {error}")
        return None
