"""Open a model by path or name, whatever its format."""

import warnings
from pathlib import Path
from typing import Literal

from sparse_circuits import checkpoint, packed_copies, released
from sparse_circuits.devices import usable_device
from sparse_circuits.errors import FormatError
from sparse_circuits.formats import hf_folder, official, release_tokenizer
from sparse_circuits.model import Transformer
from sparse_circuits.packed_model import load_packed, pack_model
from sparse_circuits.tokenizer import Tokenizer

Layout = Literal["run", "release", "huggingface"]
"""Our own folders; those of the paper's release; those of its models on the Hub."""


def load(path: Path | str, *, device: str = "cpu", packed: bool = False) -> Transformer:
    """Open a model.

    A large file of the release or of Hugging Face is mapped: its weights are read where they are touched. The first
    time it is read through, and a packed copy is kept in the cache, which `packed` opens from then on. Weights that are
    not finite are loaded, and named in a warning.

    Args:
        path: A run folder or one of its checkpoints, a folder of the release or of Hugging Face, or the name of a
            released model that was downloaded.
        device: Where its weights shall be.
        packed: Keep sparse matrices packed in memory: for large sparse models, to run, read, edit and generate with.
            Such a model can't be trained, and its edges can't be cut.

    Returns:
        The model in evaluation mode; `model.tokenizer` is set if the folder has one, `model.folder` is the folder.

    Raises:
        FormatError: Nothing there is a model; or a file is truncated, of another version or of another shape; or the
            tokenizer is of another vocabulary.
        ConfigError: The model's configuration asks for what this program does not have.
        DeviceError: The device is not there.
    """
    place = usable_device(device)
    folder = released.locate(path)
    layout = layout_of(folder)
    model = _open_run(folder, packed) if layout == "run" else _open_foreign(folder, layout, packed)
    _check_tokenizer(model, folder)
    return model.to(place)


def layout_of(folder: Path) -> Layout:
    """Return what kind of folder this is; what is neither of the other two counts as ours."""
    if official.is_official(folder):
        return "release"
    return "huggingface" if hf_folder.is_hf_folder(folder) else "run"


def _open_run(folder: Path, packed: bool) -> Transformer:
    found = folder if (folder / checkpoint.MODEL_NAME).exists() else checkpoint.latest_checkpoint(folder)
    if found is None:
        raise FormatError(
            f"{folder}: no model here; expected a run folder with a checkpoint, {checkpoint.MODEL_NAME}, the release's "
            f"{official.CONFIG_NAME}, or a {hf_folder.CONFIG_NAME} of type {hf_folder.MODEL_TYPE}"
        )
    run = found.parent.parent if found.parent.name == "checkpoints" else folder
    places = (folder / "tokenizer.json", run / "tokenizer.json")
    tokenizer = next((Tokenizer.load(place) for place in places if place.exists()), None)
    file = found / checkpoint.MODEL_NAME
    model = load_packed(file, tokenizer) if packed else checkpoint.load_model(file, tokenizer)
    _warn_of_not_finite(packed_copies.count_not_finite(model), file)
    model.folder = run if (run / "config.json").exists() else folder
    return model


def _open_foreign(folder: Path, layout: Layout, packed: bool) -> Transformer:
    """Open a folder of the release or of Hugging Face: its files, or for packed weights the packed copy."""
    files = _files_of(folder, layout)
    copy = packed_copies.place_of(files)
    not_finite = None if copy is None else packed_copies.noted(copy)
    model = packed_copies.open_copy(copy) if packed and copy is not None and not_finite is not None else None
    if model is None:
        model = official.load(folder) if layout == "release" else hf_folder.load(folder)
        if not_finite is None or (packed and copy is not None and copy.weights.exists()):
            not_finite = packed_copies.count_not_finite(model)
            if copy is not None:
                packed_copies.keep(model, copy, files, not_finite)
        model = pack_model(model) if packed else model
    assert not_finite is not None
    _warn_of_not_finite(not_finite, folder)
    model.folder = folder
    model.tokenizer = _foreign_tokenizer(folder)
    return model


def _files_of(folder: Path, layout: Layout) -> list[Path]:
    """Return the files that the model depends on."""
    if layout == "release":
        files = [folder / name for name in (official.CONFIG_NAME, official.WEIGHTS_NAME, official.NOTE_NAME)]
    else:
        index = hf_folder.weights_path(folder)
        files = [folder / hf_folder.CONFIG_NAME, index]
        if index.suffix == ".json":
            files += sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    return [file for file in files if file.exists()]


def _foreign_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer of the folder, or of the release where the folder is one of its blob's."""
    if (folder / "tokenizer.json").exists():
        return Tokenizer.load(folder / "tokenizer.json")
    for place in (folder, folder.resolve().parent.parent / "tinypython"):
        if release_tokenizer.is_there(place):
            return release_tokenizer.load(place)
    return None


def _check_tokenizer(model: Transformer, folder: Path) -> None:
    if model.tokenizer is not None and model.tokenizer.n_vocab != model.config.n_vocab:
        raise FormatError(
            f"{folder}: the tokenizer has {model.tokenizer.n_vocab:,} tokens, the model's vocabulary "
            f"{model.config.n_vocab:,}; one of them is another model's"
        )


def _warn_of_not_finite(counts: dict[str, int], where: Path) -> None:
    if counts:
        named = ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:4])
        rest = f" and {len(counts) - 4} more" if len(counts) > 4 else ""
        warnings.warn(f"{where}: weights that are NaN or infinite, in {named}{rest}", stacklevel=4)
