"""Open a model by path, whatever its format."""

from pathlib import Path

from sparse_circuits import checkpoint
from sparse_circuits.errors import FormatError
from sparse_circuits.formats import official
from sparse_circuits.model import Transformer
from sparse_circuits.packed_model import load_packed, pack_model
from sparse_circuits.tokenizer import Tokenizer


def load(path: Path | str, *, device: str = "cpu", packed: bool = False) -> Transformer:
    """Open a run folder, one of its checkpoints, or a folder of the release.

    Args:
        path: The folder.
        device: Where its weights shall be.
        packed: Keep sparse matrices packed in memory: for large sparse models, to run, read, edit and generate with.
            Such a model can't be trained, and its edges can't be cut. On the CPU.

    Returns:
        The model in evaluation mode; `model.tokenizer` is set if the folder has a `tokenizer.json`.

    Raises:
        FormatError: Nothing there is a model, or a file is truncated, of another version or of another shape.
    """
    folder = Path(path)
    if packed and device != "cpu":
        raise ValueError(f"packed models run on the CPU, device is {device!r}")
    if official.is_official(folder):
        return pack_model(official.load(folder)) if packed else official.load(folder).to(device)
    found = folder if (folder / checkpoint.MODEL_NAME).exists() else checkpoint.latest_checkpoint(folder)
    if found is None:
        raise FormatError(
            f"{folder}: no model here; expected a run folder with a checkpoint, "
            f"{checkpoint.MODEL_NAME}, or the release's {official.CONFIG_NAME}"
        )
    places = (folder / "tokenizer.json", found.parent.parent / "tokenizer.json")
    tokenizer = next((Tokenizer.load(place) for place in places if place.exists()), None)
    file = found / checkpoint.MODEL_NAME
    model = load_packed(file, tokenizer) if packed else checkpoint.load_model(file, tokenizer).to(device)
    run = found.parent.parent
    model.folder = run if (run / "config.json").exists() else folder
    return model
