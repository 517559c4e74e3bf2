"""Commands that carry a sparse model over to a dense one: bridge, hybrids, steer, transfer."""

from pathlib import Path
from typing import Annotated

import tyro

from sparse_circuits.cli.told import Json, MaxToken, Out, task_for, tell, wrote
from sparse_circuits.configs import BridgeConfig, SteerConfig, TrainConfig

BridgeFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="What `bridge` wrote.")]


def bridge(
    dense: Annotated[
        Path, tyro.conf.Positional, tyro.conf.arg(help="The dense model's folder: a run, or one of transformers.")
    ],
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
    from sparse_circuits.errors import ConfigError
    from sparse_circuits.files import refuse_finished
    from sparse_circuits.runlog import read_records, terminal

    if quick:
        if train is not None:
            raise ConfigError("--quick trains nothing: --train has no effect with it")
        refuse_finished(out, "bridge")
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


def hybrids(
    bridge: BridgeFolder,
    n_token: Annotated[int, tyro.conf.arg(help="Held-out tokens.")] = 16_384,
    beside: Annotated[tuple[Path, ...], tyro.conf.arg(help="More models to compare with, such as a dense seed.")] = (),
    out: Annotated[Path | None, tyro.conf.arg(help="Folder to write into; the bridge's own if left out.")] = None,
    json: Json = False,
) -> None:
    """Measure every single transition between the models on held-out text, with anchors beside them."""
    from sparse_circuits.bridges import paths
    from sparse_circuits.bridges.maps import Bridge
    from sparse_circuits.bridges.residual import open_residual
    from sparse_circuits.runlog import terminal

    opened = Bridge.load(bridge)
    folder = out or bridge
    found = paths.evaluate_hybrids(
        opened,
        n_token=n_token,
        others={str(path): open_residual(path) for path in beside},
        out=folder,
        progress=terminal(),
    )
    tell(found, paths.table(found), json=json)
    wrote(folder / "hybrids.json")


def steer(
    bridge: BridgeFolder,
    config: Annotated[SteerConfig, tyro.conf.arg(name="")],
    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="Name of the task, or a file of pairs.")],
    out: Out,
    node: Annotated[
        str | None, tyro.conf.arg(help="A node at a read location, such as 2.mlp.act_in:17; needed without --find.")
    ] = None,
    find: Annotated[bool, tyro.conf.arg(help="Choose the node, and with it the layer, on `select`.")] = False,
    max_token: MaxToken = None,
    json: Json = False,
) -> None:
    """Steer the dense model with one node of the sparse one, beside every control; results are on `test`."""
    from sparse_circuits.bridges import steering
    from sparse_circuits.bridges.directions import read_node
    from sparse_circuits.bridges.maps import Bridge
    from sparse_circuits.errors import ConfigError
    from sparse_circuits.runlog import terminal

    if find == (node is not None):
        raise ConfigError(
            "name a node with --node, or say --find" if node is None else "say --node or --find, not both"
        )
    opened = Bridge.load(bridge)
    if node is not None:
        read_node(opened, node)  # refused before the task is drawn
    found = steering.steer(
        opened,
        task_for(opened.sparse, task, 0, max_token),
        node,
        config,
        out=out,
        progress=terminal(),
    )
    tell(found, steering.table(found), json=json)
    wrote(out / "steer.json")
    wrote(out / "steer.svg")


def transfer(
    bridge: BridgeFolder,
    circuit: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="A circuit of the bridge's sparse model.")],
    n_pair: Annotated[int, tyro.conf.arg(help="Pairs of `test`.")] = 256,
    n_set: Annotated[int, tyro.conf.arg(help="Random sets of nodes beside the circuit's.")] = 20,
    out: Annotated[Path | None, tyro.conf.arg(help="Folder to write into; the circuit's own if left out.")] = None,
    json: Json = False,
) -> None:
    """Measure how much of the dense model's answer survives in the nodes of a sparse circuit."""
    from sparse_circuits.bridges import transfer as carried
    from sparse_circuits.bridges.maps import Bridge
    from sparse_circuits.circuit import Circuit
    from sparse_circuits.errors import ConfigError

    for name, value in (("n_pair", n_pair), ("n_set", n_set)):
        if value < 1:
            raise ConfigError(f"{name} is {value}, expected 1 or more")
    opened = Bridge.load(bridge)
    cut_out = Circuit.load(circuit, opened.sparse)
    name = cut_out.task.get("path") or cut_out.task["name"]
    task = task_for(opened.sparse, name, cut_out.task["seed"], cut_out.task.get("max_token"))
    folder = out or circuit
    cut_out.log_test_reading(circuit, "transfer")
    found = carried.transfer_circuit(opened, cut_out, task, n_pair=n_pair, n_set=n_set, out=folder)
    tell(found, carried.table(found), json=json)
    wrote(folder / "transfer.json")
