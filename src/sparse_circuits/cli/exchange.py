"""Commands that bring models and circuits in and out: download, convert, export."""

from pathlib import Path
from typing import Annotated

import tyro

from sparse_circuits.cli.told import CircuitFolder, ModelFolder, say, wrote


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


def export(
    circuit: CircuitFolder,
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="File to write; a folder of csv and parquet.")],
    to: Annotated[
        str, tyro.conf.arg(help="neuronpedia, mib, viz_data, graphml, csv, parquet, or networkx (node-link JSON).")
    ],
    prompt: Annotated[str | None, tyro.conf.arg(help="Of neuronpedia: text; \\n is a newline.")] = None,
) -> None:
    """Write a circuit in the format of another tool."""
    from sparse_circuits.interop import exporting

    settings = {} if prompt is None else {"prompt": prompt.replace("\\n", "\n")}
    wrote(exporting.export(circuit, out, to, **settings))


def import_(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="A viz_data.pt of the release.")],
    model: Annotated[Path, tyro.conf.arg(help="Its model: a folder or a released name.")],
    out: Annotated[Path, tyro.conf.arg(help="Circuit folder to write.")],
    corpus: Annotated[
        Path | None,
        tyro.conf.arg(help="A corpus to compute means over, which the file lacks; its sample prompts if left out."),
    ] = None,
    task: Annotated[str, tyro.conf.arg(help="Name of its task.")] = "imported",
) -> None:
    """Make a published circuit one that can be run."""
    from sparse_circuits.files import refuse_finished
    from sparse_circuits.interop.viz_data import corpus_rows, read_viz_data
    from sparse_circuits.loading import load

    refuse_finished(out, "circuit")
    found = read_viz_data(file)
    opened = load(model)
    tokens = None if corpus is None else corpus_rows(corpus, opened)
    made = found.circuit(opened, task=task, tokens=tokens)
    for what in found.lacks:
        say(f"{file} lacks {what}")
    say(f"means: over {'the corpus' if corpus else 'the sample prompts'}")
    made.save(out)
    say(
        f"{made.n_node} nodes of {made.n_node_total:,}, {made.n_edge} edges; published loss {found.circuit_loss:.2f} "
        f"(model {found.loss:.2f}), not measured here"
    )
    wrote(out)
