"""Commands that bring models and circuits in and out: download, convert, export."""

from pathlib import Path
from typing import Annotated

import tyro

from sparse_circuits.cli.told import ModelFolder, say, wrote


def download(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="A released model, such as csp_yolo2.")],
    out: Annotated[Path | None, tyro.conf.arg(help="Its folder; its place in the cache if left out.")] = None,
    mirror: Annotated[
        str | None, tyro.conf.arg(help="Address or folder of a copy of the release; the release itself if left out.")
    ] = None,
) -> None:
    """Fetch a released model and its tokenizer, or go on where a download broke off."""
    from sparse_circuits import downloads
    from sparse_circuits.runlog import terminal

    wrote(downloads.download(name, out=out, mirror=mirror, progress=terminal()))


def convert(
    model: ModelFolder,
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="Folder to write.")],
    to: Annotated[
        str,
        tyro.conf.arg(
            help="packed, plain: safetensors of ours, nonzeros alone or all weights. release: beeg_config.json and "
            "final_model.pt. huggingface: config.json and model.safetensors."
        ),
    ] = "packed",
) -> None:
    """Write a model in another layout."""
    from sparse_circuits import converting

    folder = converting.convert(model, out, to)  # pyright: ignore[reportArgumentType]
    for file in sorted(folder.iterdir()):
        say(f"{file.stat().st_size:>15,} bytes  {file.name}")
    wrote(folder)
