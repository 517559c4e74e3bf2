"""Commands that carry a sparse model over to a dense one: bridge, steer."""

from pathlib import Path
from typing import Annotated

import tyro

from sparse_circuits.cli.told import Json, Out, tell, wrote
from sparse_circuits.configs import BridgeConfig, TrainConfig


def bridge(
    dense: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="The dense model's folder.")],
    out: Out,
    config: Annotated[BridgeConfig, tyro.conf.arg(name="")],
    sparse: Annotated[
        Path | None, tyro.conf.arg(help="A finished sparse run to start from; a new model is trained if left out.")
    ] = None,
    train: Annotated[
        Path | None, tyro.conf.arg(help="Settings of a new sparse model as JSON; preset `small` if left out.")
    ] = None,
    corpus: Annotated[Path | None, tyro.conf.arg(help="A finished corpus; the dense run's if left out.")] = None,
    quick: Annotated[
        bool, tyro.conf.arg(help="Fit bridges between two finished models by ridge regression; train nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a sparse model and bridges on a dense model, or go on with the training that OUT holds."""
    from sparse_circuits.bridges.learning import start_of, train_bridges
    from sparse_circuits.bridges.ridge import quick_bridge
    from sparse_circuits.runlog import read_records, terminal

    if quick:
        found = quick_bridge(config, dense=dense, sparse=sparse, corpus=corpus)
        found.save(out)
        tell({"kind": found.kind, "n_site": len(found.bridges.sites)}, found.shown(), json=json)
        wrote(out)
        return
    settings = None if train is None else TrainConfig.load(train)
    found = train_bridges(
        config,
        dense=dense,
        out=out,
        sparse=sparse,
        train=start_of(dense, sparse, settings),
        corpus=corpus,
        progress=terminal(),
    )
    last = read_records(out / "metrics.jsonl")[-1]
    tell(last, found.shown(), json=json)
    wrote(out)
