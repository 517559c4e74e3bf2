"""R runs of mask learning in one call against R calls of one run each, in turn, same code, same model.

    python benchmarks/prune_runs.py [--runs 8] [--steps 10] [--rounds 5]

The model has the demo's shape and random weights of its density; prompts are random tokens. Prints the medians and
their ratio for 16 pairs of 64 tokens and for 8 pairs of 16, and writes benchmarks/results/prune_runs-DATE-MACHINE.json.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch

from sparse_circuits.configs import PruneConfig
from sparse_circuits.masks import MaskRun, learn_masks
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.presets import SMALL
from sparse_circuits.sparsity import project_
from sparse_circuits.tables import aligned
from sparse_circuits.tasks.pairs import Pairs

SHAPES = {"16 pairs of 64 tokens": (16, 64), "8 pairs of 16 tokens": (8, 16)}


def model() -> Transformer:
    """Build a model of the demo's shape with random sparse weights."""
    made = Transformer(SMALL.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim == 2 and name != "bigram":
                parameter.normal_(0, 0.1, generator=generator)
    project_(made, SMALL.sparsity.matrix_density, config=SMALL.sparsity)
    return made.eval()


def pairs(n_pair: int, n_token: int) -> Pairs:
    """Draw random prompts."""
    generator = torch.Generator().manual_seed(0)
    return Pairs(
        tokens=torch.randint(SMALL.model.n_vocab, (4 * n_pair, 2, n_token), generator=generator),
        length=torch.full((4 * n_pair,), n_token),
        answers=torch.randint(SMALL.model.n_vocab, (4 * n_pair, 2), generator=generator),
        templates=("random",) * (4 * n_pair),
        levels=("i",) * (4 * n_pair),
    )


def main() -> None:
    """Time both ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    made = model()
    values = torch.zeros(NodeSpace.of(made.config).n_node)
    rows, results = [["", "together", "one by one", "ratio"]], {}
    for name, (n_pair, n_token) in SHAPES.items():
        config = PruneConfig(n_step=arguments.steps, n_pair=n_pair, count_coefficient=1e-9)
        fit = pairs(n_pair, n_token)
        runs = [
            MaskRun(fit=fit, values=values, config=dataclasses.replace(config, seed=seed))
            for seed in range(arguments.runs)
        ]
        seconds: dict[str, list[float]] = {"together": [], "one by one": []}
        learn_masks(made, runs[:1])
        for _ in range(arguments.rounds):
            start = time.perf_counter()
            learn_masks(made, runs)
            middle = time.perf_counter()
            for run in runs:
                learn_masks(made, [run])
            seconds["together"].append(middle - start)
            seconds["one by one"].append(time.perf_counter() - middle)
        together, alone = (statistics.median(seconds[how]) for how in ("together", "one by one"))
        results[name] = {"seconds": seconds, "ratio": alone / together}
        rows.append([name, f"{together:.2f} s", f"{alone:.2f} s", f"{alone / together:.2f}"])
    print(f"{arguments.runs} runs of {arguments.steps} steps, medians of {arguments.rounds}")
    print("\n".join(aligned(rows)))
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    described = {
        "arguments": vars(arguments),
        "results": results,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    path = folder / f"prune_runs-{datetime.date.today()}-{platform.machine()}-{os.cpu_count()}.json"
    path.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
