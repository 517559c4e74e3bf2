"""Causal attention over narrow heads, forward and backward: our loops against the identity over torch's fused one.

    python benchmarks/attention.py [--rounds 9] [--clock processor]

Each shape is (batch, heads, positions, width of a head), with sinks. Two more rows are the training step of
`train_step`'s small shape without its optimizer, with either attention inside.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from measuring import in_turn, parser, report, told
from train_step import SHAPES, model_of

from sparse_circuits.configs import SparsityConfig
from sparse_circuits.kernels import cpu_attention, cpu_fused
from sparse_circuits.memory import keep_freed_memory
from sparse_circuits.sparsity import project_
from sparse_circuits.training import loss_and_gradients

HEADS = (
    *((128, 8, 16, 16), (32, 8, 32, 16), (64, 8, 48, 8), (64, 8, 64, 16), (16, 8, 128, 16), (16, 16, 128, 16)),
    *((8, 16, 256, 16), (2, 16, 512, 16), (1, 4, 2048, 16), (8, 8, 128, 32), (2, 8, 512, 64)),
)


def both_ways(version: ModuleType, size: tuple[int, int, int, int]) -> Callable[[], object]:
    """Return an action that attends and sends a gradient back, laid out as in the model."""
    batch, head, pos, d = size
    leaves = [torch.randn(batch, pos, head * d, requires_grad=True) for _ in range(3)]
    sink, grad = torch.randn(head, requires_grad=True), torch.randn(batch, pos, head * d)

    def act() -> object:
        q, k, v = (x.unflatten(-1, (head, d)).transpose(1, 2) for x in leaves)
        if version is cpu_fused:
            assert cpu_fused.can_sink_attention(q, k, v)  # its look for what is not finite is part of what it takes
        out = version.sink_attention(q, k, v, sink).transpose(1, 2).flatten(2)
        return torch.autograd.grad(out, [*leaves, sink], grad)

    return act


def step_with(is_ours: bool, density: float) -> Callable[[], object]:
    """Return an action that computes the training step's gradients with our attention, or with the fused one."""
    factor, n_layer, size, _ = SHAPES["small"]
    model = model_of(factor, n_layer)
    project_(model, density, config=SparsityConfig(matrix_density=density, embedding_density=density))
    tokens = torch.randint(2048, size, generator=torch.Generator().manual_seed(1))
    longest = cpu_attention.MAX_POS

    def act() -> object:
        cpu_attention.MAX_POS = longest if is_ours else 0
        try:
            return loss_and_gradients(model, tokens)
        finally:
            cpu_attention.MAX_POS = longest

    return act


def main() -> None:
    """Time each shape both ways."""
    arguments = parser(__doc__).parse_args()
    keep_freed_memory()
    cases = {str(size): (both_ways(cpu_attention, size), both_ways(cpu_fused, size)) for size in HEADS}
    for density in (0.9, 0.05):
        cases[f"forward and backward at {density}"] = (step_with(True, density), step_with(False, density))
    rows, results = [["what", "ours", "fused", "ratio"]], {}
    for name, (ours, fused) in cases.items():
        found = results[name] = in_turn({"ours": ours, "fused": fused}, rounds=arguments.rounds, clock=arguments.clock)
        rows.append([name, told(found["ours"]), told(found["fused"]), f"{found['fused'] / found['ours']:.2f}"])
    notes = [f"medians of {arguments.rounds}, {arguments.clock} time, {torch.get_num_threads()} threads"]
    report("attention", arguments, rows, results, notes)


if __name__ == "__main__":
    main()
