"""The tiny trained model and its circuit that ship with the package."""

from pathlib import Path


def example(name: str = "") -> Path:
    """Return where the shipped run folder lies, or something in it.

    It is a model of two layers, trained on idioms alone by `scripts/make_example`, with no bigram table.

    Args:
        name: Such as `"circuits/single_double_quote"`; the run folder itself if left out.

    Raises:
        FileNotFoundError: Nothing is there under this name.
    """
    path = Path(__file__).parent / "example_run" / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: the shipped example has no {name!r}")
    return path
