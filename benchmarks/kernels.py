"""Each kernel against what it stands in for: torch.topk with a scatter, the release's projection, dense products.

    python benchmarks/kernels.py [--peer CHECKOUT] [--device cuda] [--rounds 7] [--clock processor]

CHECKOUT is openai/circuit_sparsity with its training script, whose own projection is then timed on a layer's largest
matrix. On a GPU each row also has the time that moving its bytes once takes, from a copy measured in the same run.
"""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from measuring import in_turn, parser, report, told
from peers import TRAINING, release

from sparse_circuits import kernels
from sparse_circuits.kernels import cpu_products
from sparse_circuits.memory import keep_freed_memory


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed."""

    actions: dict[str, Callable[[], Any]]
    """Ours first, then the other."""

    n_byte: int = 0
    """What ours has to move once."""

    prepare: Callable[[], Any] = lambda: None
    """Comes before each, not timed."""

    times: int = 1
    """Calls in a row."""


def scattered(x: torch.Tensor, n_keep: int) -> torch.Tensor:
    """Keep the largest magnitudes as is usual: topk, gather, scatter."""
    places = torch.topk(x.abs(), n_keep, dim=-1, sorted=False).indices
    return torch.zeros_like(x).scatter_(-1, places, x.gather(-1, places))


def one_matrix(weight: torch.Tensor) -> SimpleNamespace:
    """Return the least that the release's projection takes for a model: one matrix by the name of an MLP's."""
    nothing = SimpleNamespace(weight=None)
    return SimpleNamespace(
        named_parameters=lambda: [("mlp.c_fc.weight", weight)],
        config=SimpleNamespace(cat_pos_emb=False),
        transformer=SimpleNamespace(wpe=nothing, wte=nothing),
        lm_head=nothing,
    )


def both_ways(x: torch.Tensor, n_target: int, share: float) -> dict[str, Callable[[], object]]:
    """Return three products by lists of nonzeros, whatever their share, and the three dense ones."""
    x = (x * (torch.rand_like(x) < share)).requires_grad_()
    grad = torch.randn(len(x), n_target) * (torch.rand(len(x), n_target) < share)
    weight = torch.randn(n_target, x.shape[1], requires_grad=True)

    def go(max_share: float) -> None:
        before, cpu_products.MAX_SHARE = cpu_products.MAX_SHARE, max_share
        torch.autograd.grad(kernels.linear(x, weight, None), (x, weight), grad)
        cpu_products.MAX_SHARE = before

    return {"ours": lambda: go(1.0), "dense": lambda: go(-1.0)}


def cases(arguments) -> dict[str, Case]:
    """Return the cases by name."""
    device, found = arguments.device, {}
    for n_row, width in (
        ((4096, 256), (4096, 1024), (512, 4096)) if device == "cpu" else ((16_384, 1024), (16_384, 4096))
    ):
        x = torch.randn(n_row, width, device=device)
        act = {"ours": lambda x=x: kernels.abs_topk(x, x.shape[-1] // 4)}
        act["torch.topk and scatter"] = lambda x=x: scattered(x, x.shape[-1] // 4)
        found[f"AbsTopK forward, {n_row} × {width}"] = Case(act, 9 * x.numel(), times=1 if device == "cpu" else 100)
    train = release(arguments.peer, "train") if arguments.peer else None
    weight = torch.randn(4096, 1024, device=device) * 0.02
    projected = torch.empty_like(weight)
    for density in (0.9, 0.25, 1 / 64):
        n_keep = int(density * projected.numel())
        act = {"ours": lambda n=n_keep: kernels.keep_largest_(projected, n, n_alive=4)}
        if train:
            how = {"expansion_factor": 4, "expansion_factor_mlp": 4, "achyuta_mixed_neuronwise_v2": True}
            how |= {"minimum_alive_per_neuron": 4, "pfrac": 16 * density, "final_pfrac": 16 * density}
            act["the release's"] = lambda h=how: train.apply_topk_(one_matrix(projected), **h)
        name = f"projection of 4.2 million weights to {density:.3g}, 4 a neuron"
        found[name] = Case(act, 8 * projected.numel(), lambda: projected.copy_(weight))
    if device != "cpu":
        many = [torch.empty_like(weight) for _ in range(24)]
        jobs = [(w, w.numel() // 64, 4, 0) for w in many]
        act = {"ours": lambda: kernels.keep_largest_many_(jobs)}
        found["projection of 100 million weights together"] = Case(
            act, 8 * 24 * weight.numel(), lambda: torch._foreach_copy_(many, [weight] * len(many))
        )
        return found
    for n_row, n_source, n_target in ((2048, 256, 1024), (512, 1024, 4096)):
        x = torch.randn(n_row, n_source)
        for density in (0.001, 1 / 64, 0.05, 0.1, 0.2):
            w = torch.randn(n_target, n_source) * (torch.rand(n_target, n_source) < density)
            packed = kernels.pack(w)
            act = {"ours": lambda x=x, p=packed: kernels.packed_linear(x, p), "dense": lambda x=x, w=w: x @ w.T}
            found[f"product of {n_row} vectors, {n_target} × {n_source}, density {density:.3g}"] = Case(act)
            act = {"ours": lambda w=w: kernels.pack(w)}
            found[f"packing {n_target} × {n_source}, density {density:.3g}"] = Case(act)
        for share in (0.25, 0.35, 0.5):
            name = f"{n_row} vectors, whole {n_target} × {n_source}, forward and back, {share} of entries nonzero"
            found[name] = Case(both_ways(x, n_target, share))
    return found


def main() -> None:
    """Time each case."""
    parse = parser(__doc__)
    parse.add_argument("--peer", type=TRAINING)
    arguments = parse.parse_args()
    keep_freed_memory()
    copied = torch.randn(1 << 26, device=arguments.device)
    rows, results = (
        [["what", "ours", "other", "ratio", *(["its bytes once", "ratio"] * (arguments.device != "cpu"))]],
        {},
    )
    for name, case in cases(arguments).items():
        timed = dict(case.actions)
        if arguments.device != "cpu":
            timed["copy"] = copied.clone
        how = {"rounds": arguments.rounds, "clock": arguments.clock, "device": arguments.device}
        found = results[name] = in_turn(timed, **how, prepare=case.prepare, times=case.times)
        other = next((seconds for key, seconds in found.items() if key not in ("ours", "copy")), None)
        row = [
            name,
            told(found["ours"]),
            told(other) if other else "–",
            f"{other / found['ours']:.1f}" if other else "–",
        ]
        if "copy" in found:
            floor = found["copy"] * case.n_byte / (8 * copied.numel())
            row += [told(floor), f"{found['ours'] / floor:.1f}"]
        rows.append(row)
    notes = [f"medians of {arguments.rounds}, {arguments.clock} time, {torch.get_num_threads()} threads"]
    if not arguments.peer:
        notes.append(
            "the release's projection was not timed: --peer names a checkout of openai/circuit_sparsity with train.py"
        )
    report("kernels", arguments, rows, results, notes)


if __name__ == "__main__":
    main()
