"""Open a model by path, whatever its format."""

from pathlib import Path

from sparse_circuits import checkpoint
from sparse_circuits.errors import FormatError
from sparse_circuits.formats import official
from sparse_circuits.model import Transformer
from sparse_circuits.tokenizer import Tokenizer


def load(path: Path | str, *, device: str = "cpu") -> Transformer:
    """Open a run folder, one of its checkpoints, or a folder of the release.

    Args:
        path: The folder.
        device: Where its weights shall be.

    Returns:
        The model in evaluation mode; `model.tokenizer` is set if the folder has a `tokenizer.json`.

    Raises:
        FormatError: Nothing there is a model, or a file is truncated, of another version or of another shape.
    """
    folder = Path(path)
    if official.is_official(folder):
        return official.load(folder).to(device)
    found = folder if (folder / checkpoint.MODEL_NAME).exists() else checkpoint.latest_checkpoint(folder)
    if found is None:
        raise FormatError(
            f"{folder}: no model here; expected a run folder with a checkpoint, "
            f"{checkpoint.MODEL_NAME}, or the release's {official.CONFIG_NAME}"
        )
    places = (folder / "tokenizer.json", found.parent.parent / "tokenizer.json")
    tokenizer = next((Tokenizer.load(place) for place in places if place.exists()), None)
    model = checkpoint.load_model(found / checkpoint.MODEL_NAME, tokenizer).to(device)
    run = found.parent.parent
    model.folder = run if (run / "config.json").exists() else folder
    return model
