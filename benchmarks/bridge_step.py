"""A whole step of bridge training against the sum of its passes, each timed alone at the batch that it has there.

    python benchmarks/bridge_step.py [--rounds 5] [--rows 8]

Two models of the demo's shape with random weights. The passes are the dense model's forward, the sparse model's forward
and backward, every sublayer of both kinds of tails at the batch of all hybrids that have started by then, the
unembeddings with their losses, and the maps. Times are of the process, not of the wall clock, so that a busy machine
matters little; whole and parts are timed in turn. Also prints the most memory that autograd keeps, by hybrids at once.
Writes benchmarks/results/bridge_step-DATE-MACHINE.json.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from sparse_circuits.bridges.maps import Bridges
from sparse_circuits.bridges.objective import Wanted, backward, nmse
from sparse_circuits.bridges.residual import OwnModel, frozen
from sparse_circuits.bridges.ridge import new_bridges
from sparse_circuits.configs import BridgeConfig
from sparse_circuits.model import Transformer
from sparse_circuits.presets import DENSE, SMALL
from sparse_circuits.sparsity import project_


class Held:
    """A tensor that autograd keeps; counts the bytes kept at once."""

    live = peak = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
        Held.live += self.size
        Held.peak = max(Held.peak, Held.live)

    def __del__(self) -> None:
        Held.live -= self.size


def models(n_layer: int) -> tuple[OwnModel, OwnModel]:
    """Build a sparse and a frozen dense model with random weights."""
    sparse = Transformer(dataclasses.replace(SMALL.model, n_layer=n_layer))
    dense = Transformer(dataclasses.replace(DENSE.model, n_layer=n_layer))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for model in (sparse, dense):
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.05, generator=generator)
    project_(sparse, SMALL.sparsity.matrix_density, config=SMALL.sparsity)
    return OwnModel(sparse), OwnModel(frozen(OwnModel(dense)).model)  # pyright: ignore


def seconds(function: Callable[[], object]) -> float:
    """Time a call by the process's own clock."""
    start = time.process_time()
    function()
    return time.process_time() - start


def parts(
    sparse: OwnModel, dense: OwnModel, bridges: Bridges, tokens: torch.Tensor
) -> dict[str, list[Callable[[], object]]]:
    """Return the passes of a step by kind, each to be called alone."""
    inputs, following = tokens[:, :-1], tokens[:, 1:]
    rows, n_pos = inputs.shape
    n = sparse.n_sublayer
    stream = torch.randn(rows * (n + 1), n_pos, sparse.d_model, generator=torch.Generator().manual_seed(0))

    def sublayer(model: OwnModel, site: int, n_row: int) -> Callable[[], object]:
        def call() -> None:
            x = stream[:n_row].detach().requires_grad_()
            model.run(x, site, site + 1).sum().backward()

        return call

    def unembedding(model: OwnModel, n_hybrid: int) -> Callable[[], object]:
        def call() -> None:
            x = stream[: n_hybrid * rows].detach().requires_grad_()
            logits = model.unembed(x, inputs.repeat(n_hybrid, 1)).unflatten(0, (n_hybrid, -1))
            wanted.kl(logits).sum().backward()

        return call

    def own_loss() -> None:
        x = stream[:rows].detach().requires_grad_()
        F.cross_entropy(sparse.unembed(x, inputs).flatten(0, 1), following.flatten()).backward()

    def maps() -> None:
        for i in range(n + 1):
            for move in (bridges.encode, bridges.decode):
                nmse(move(i, stream[:rows]), stream[:rows]).backward()

    def embedding() -> None:
        sparse.embed(inputs).sum().backward()

    def forward() -> Wanted:
        with torch.no_grad():
            return Wanted.of(dense.unembed(dense.run(dense.embed(inputs)), inputs))

    wanted = forward()
    return {
        "dense model, forward": [forward],
        "sparse model": [*(sublayer(sparse, s, rows) for s in range(n)), own_loss, embedding],
        "sparse tails": [sublayer(sparse, s, rows * (s + 1)) for s in range(n)],
        "dense tails": [sublayer(dense, s, rows * (s + 1)) for s in range(n)],
        "unembeddings": [unembedding(sparse, n + 1), unembedding(dense, n + 1)],
        "maps": [maps],
    }


def memory(n_layer: int, at_once: int | None, rows: int) -> float:
    """Return the most megabytes that autograd keeps in a step."""
    sparse, dense = models(n_layer)
    bridges = new_bridges(sparse, dense, BridgeConfig())
    tokens = torch.randint(SMALL.model.n_vocab, (rows, 128), generator=torch.Generator().manual_seed(0))
    Held.live = Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        backward(bridges, sparse=sparse, dense=dense, tokens=tokens, config=BridgeConfig(hybrids_at_once=at_once))
    return Held.peak / 1e6


def main() -> None:
    """Time whole and parts in turn, and count memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=8)
    arguments = parser.parse_args()
    sparse, dense = models(SMALL.model.n_layer)
    bridges = new_bridges(sparse, dense, BridgeConfig())
    tokens = torch.randint(
        SMALL.model.n_vocab, (arguments.rows, SMALL.context), generator=torch.Generator().manual_seed(0)
    )
    taken: dict[str, list[float]] = {}
    passes = parts(sparse, dense, bridges, tokens)
    wholes = {"whole step": None, "whole step, 2 hybrids at once": 2}
    for _ in range(arguments.rounds + 1):
        for name, at_once in wholes.items():
            config = BridgeConfig(hybrids_at_once=at_once)
            step = lambda config=config: backward(bridges, sparse=sparse, dense=dense, tokens=tokens, config=config)  # noqa: E731
            taken.setdefault(name, []).append(seconds(step))
        for name, calls in passes.items():
            taken.setdefault(name, []).append(sum(seconds(call) for call in calls))
    medians = {name: statistics.median(times[1:]) for name, times in taken.items()}  # the first round warms up
    total = sum(medians[name] for name in passes)
    ratios = {name: medians[name] / total for name in wholes}
    kept = {
        f"{n_layer} layers, {at_once or 'all'} at once": memory(n_layer, at_once, 2)
        for n_layer in (1, 3, 6)
        for at_once in (2, None)
    }
    for name, value in medians.items():
        print(f"{name:32} {value:.3f} s")
    print(f"sum of the passes alone          {total:.3f} s")
    print("\n".join(f"{name}: {ratio:.2f} times the sum" for name, ratio in ratios.items()))
    print("\n".join(f"{name}: {value:.0f} MB" for name, value in kept.items()))
    described = {
        "arguments": vars(arguments),
        "seconds": medians,
        "sum_of_passes": total,
        "ratios": ratios,
        "megabytes_kept": kept,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    folder = Path(__file__).parent / "results"
    path = folder / f"bridge_step-{datetime.date.today()}-{platform.machine()}-{os.cpu_count()}.json"
    path.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
