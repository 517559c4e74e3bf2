"""R runs of mask learning in one call against R calls of one run each, in turn, same code, same model.

    python benchmarks/prune_runs.py [--runs 8] [--steps 10] [--rounds 5] [--clock wall|cpu] [--before CHECKOUT]

The model has the demo's shape and random weights of its density; prompts are random tokens. Prints the medians and
their ratio for 16 pairs of 64 tokens and for 8 pairs of 16, and writes a file
benchmarks/results/prune_runs[-cpu]-DATE-MACHINE.json.
With `--before`, a checkout of commit 6d8a58d, the first pruner makes the same runs, one by one, in a process of its own
that takes its turn in every round. It learned sufficiency alone, so it is compared with runs that do the same
(`necessity_coefficient` 0), and with the default ones, which learn what the model can do without the circuit along.
On a machine that others use too, `--clock cpu` counts the process's own seconds.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from sparse_circuits.configs import PruneConfig
from sparse_circuits.mask_runs import MaskRun
from sparse_circuits.masks import learn_masks
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.presets import SMALL
from sparse_circuits.sparsity import project_
from sparse_circuits.tables import aligned
from sparse_circuits.tasks.pairs import Pairs

BEFORE = """
import json, sys, time, torch
from sparse_circuits.configs import ModelConfig, PruneConfig
from sparse_circuits.masks import learn_masks
from sparse_circuits.model import Transformer
from sparse_circuits.nodes import NodeSpace
from sparse_circuits.tasks.pairs import Pairs

given = json.loads(sys.argv[1])
n_pair, n_token, n_run, n_step = (given[k] for k in ("n_pair", "n_token", "n_run", "n_step"))
model = Transformer(ModelConfig(**given["model"])).eval()
model.load_state_dict(torch.load(given["weights"], weights_only=True))
tokens = torch.randint(model.config.n_vocab, (4 * n_pair, 2, n_token), generator=torch.Generator().manual_seed(0))
fit = Pairs(
    tokens=tokens, length=torch.full((4 * n_pair,), n_token), answers=tokens[:, :, 0],
    templates=("random",) * (4 * n_pair), levels=("i",) * (4 * n_pair),
)
values = torch.zeros(NodeSpace.of(model.config).n_node)
config = PruneConfig(n_step=n_step, n_pair=n_pair, count_coefficient=1e-9)
learn_masks(model, fit, values, config)
clock = {"wall": time.perf_counter, "cpu": time.process_time}[given["clock"]]
start = clock()
for _ in range(n_run):
    learn_masks(model, fit, values, config)
print(clock() - start)
"""
"""What the first pruner runs; its interface was another one."""

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LABELS = ("one by one, ratio", "first pruner, ratio", "the same to runs of sufficiency alone")
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


def seconds_before(checkout: Path, made: Transformer, clock: str, **shape: int) -> float:
    """Time the first pruner on as many runs, one by one."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        torch.save(made.state_dict(), weights)
        given = json.dumps({"model": dataclasses.asdict(made.config), "weights": str(weights), "clock": clock, **shape})
        environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
        told = subprocess.run(
            [sys.executable, "-c", BEFORE, given], env=environment, capture_output=True, text=True, check=True
        )
    return float(told.stdout)


def main() -> None:
    """Time both ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--before", type=Path)
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]
    made = model()
    values = torch.zeros(NodeSpace.of(made.config).n_node)
    rows, results = [["", "together", *LABELS[: None if arguments.before else 1]]], {}
    for name, (n_pair, n_token) in SHAPES.items():
        config = PruneConfig(n_step=arguments.steps, n_pair=n_pair, count_coefficient=1e-9)
        fit = pairs(n_pair, n_token)
        runs, plain = (
            [
                MaskRun(fit=fit, values=values, config=dataclasses.replace(config, seed=seed, **changes))
                for seed in range(arguments.runs)
            ]
            for changes in ({}, {"necessity_coefficient": 0.0})
        )
        shape = {"n_pair": n_pair, "n_token": n_token, "n_run": len(runs), "n_step": arguments.steps}
        ways = {
            "together": lambda runs=runs: learn_masks(made, runs),
            "one by one": lambda runs=runs: [learn_masks(made, [run]) for run in runs],
        }
        if arguments.before:
            ways["sufficiency alone"] = lambda plain=plain: learn_masks(made, plain)
        seconds: dict[str, list[float]] = {way: [] for way in (*ways, *(["before"] if arguments.before else []))}
        learn_masks(made, runs[:1])
        for _ in range(arguments.rounds):
            for way, go in ways.items():
                start = clock()
                go()
                seconds[way].append(clock() - start)
            if arguments.before:
                seconds["before"].append(seconds_before(arguments.before, made, arguments.clock, **shape))
        median = {way: statistics.median(taken) for way, taken in seconds.items()}
        pairs_of_ways = [("together", "one by one"), ("together", "before"), ("sufficiency alone", "before")]
        ratios = {f"{b} / {a}": median[b] / median[a] for a, b in pairs_of_ways if {a, b} <= set(median)}
        results[name] = {"seconds": seconds, "ratios": ratios}
        others = [f"{median[b]:.2f} s, {median[b] / median[a]:.2f}" for a, b in pairs_of_ways if {a, b} <= set(median)]
        rows.append([name, f"{median['together']:.2f} s", *others])
    print(f"{arguments.runs} runs of {arguments.steps} steps, medians of {arguments.rounds}")
    print("\n".join(aligned(rows)))
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    described = {
        "arguments": vars(arguments) | {"before": arguments.before and "6d8a58d"},
        "results": results,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    kind = "-cpu" if arguments.clock == "cpu" else ""
    path = folder / f"prune_runs{kind}-{datetime.date.today()}-{platform.machine()}-{os.cpu_count()}.json"
    path.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
