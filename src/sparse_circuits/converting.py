"""Write a model in another layout: packed or plain weights of ours, a folder of the release or of Hugging Face."""

import os
import shutil
from pathlib import Path
from typing import Literal, get_args

from sparse_circuits import checkpoint
from sparse_circuits.errors import ConfigError, OutputExistsError, did_you_mean
from sparse_circuits.formats import hf_folder, official
from sparse_circuits.loading import load
from sparse_circuits.model import Transformer

OutLayout = Literal["packed", "plain", "release", "huggingface"]


def convert(model: Transformer | Path | str, out: Path | str, layout: OutLayout = "packed") -> Path:
    """Write a model as a folder of another layout; every layout gives the same model hash when it is opened.

    Args:
        model: The model, or where it lies.
        out: The folder; it is there only when it is whole. An empty one is filled, what it is told by last.
        layout: `packed` (nonzeros alone) or `plain` safetensors of ours; `release` (`beeg_config.json` and
            `final_model.pt`); `huggingface` (`config.json` and `model.safetensors`, with a model card).

    Returns:
        The folder.

    Raises:
        OutputExistsError: Something stands there.
        ConfigError: The release has no such model, or the layout is unknown.
        FormatError: The model can't be opened.
        TapError: The model is packed: its weights are not whole.
    """
    out, place = Path(out), Path(out).resolve()
    if layout not in get_args(OutLayout):
        raise ConfigError(f"no layout is called {layout!r}{did_you_mean(layout, get_args(OutLayout))}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputExistsError(f"{out} is not empty; name another folder or remove it")
    opened = model if isinstance(model, Transformer) else load(model)
    opened.require_whole()
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(opened, temporary, layout)
        if place.exists():  # it stays the same folder, in which somebody may stand
            for file in sorted(temporary.iterdir(), reverse=True):  # what it is told by comes last
                file.replace(place / file.name)
        else:
            temporary.replace(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _write(model: Transformer, folder: Path, layout: OutLayout) -> None:
    if layout == "release":
        official.save(model, folder)
    elif layout == "huggingface":
        hf_folder.save(model, folder)
    else:
        checkpoint.save_model(model, folder / checkpoint.MODEL_NAME, weights=layout)
        if model.tokenizer is not None:
            model.tokenizer.save(folder / "tokenizer.json")
