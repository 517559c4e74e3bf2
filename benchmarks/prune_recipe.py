"""Sizes of circuits: the published recipe's best of many settings against our pruner, same model, tasks and target.

    python benchmarks/prune_recipe.py RUN [--tasks NAME …] [--settings 32] [--steps 300]

The published recipe (paper section 2.2, appendix A.2) minimises task loss + price · nodes at a fixed price, ranks nodes
by their parameters, and bisects the number of nodes for the target; settings are drawn log-uniformly around its
centres. Scale and shift are fitted at every size that the bisection tries, which its words allow and which helps
it. Ours is `sc.prune` with its defaults, and once more for sufficiency alone, as the paper prunes. Neither cuts edges
here, and all decide at the same loss on the same pairs (no margin); the losses on `test` stand beside. Writes
benchmarks/results/prune_recipe-DATE-MACHINE.json after every task.
"""

import argparse
import dataclasses
import datetime
import json
import math
import os
import platform
import time
from pathlib import Path

import torch

import sparse_circuits as sc
from sparse_circuits.checkpoint import model_hash
from sparse_circuits.configs import PruneConfig
from sparse_circuits.errors import PruneError
from sparse_circuits.mask_runs import MaskRun
from sparse_circuits.masks import learn_masks
from sparse_circuits.pruning import Pruning
from sparse_circuits.refinement import keep_top
from sparse_circuits.scoring import calibrated, fit_calibrations, task_loss
from sparse_circuits.search import COUNT_RANGE, RANGES
from sparse_circuits.survey import geometric_mean
from sparse_circuits.tables import aligned

TASKS = ("single_double_quote", "bracket_counting", "with_as", "for_while", "if_equals")
PUBLISHED = PruneConfig(
    count_coefficient=1e-4, calibrates=False, init_noise=0.01, necessity_coefficient=0, max_auroc=1, cuts_edges=False
)
OURS = {
    "ours": PruneConfig(cuts_edges=False, margin=0),
    "ours, sufficiency alone": PruneConfig(cuts_edges=False, margin=0, necessity_coefficient=0, max_auroc=1),
}


def drawn(n_setting: int, n_step: int) -> list[PruneConfig]:
    """Draw settings of the published recipe; the first is the paper's centre."""
    generator = torch.Generator().manual_seed(0)
    ranges = {name: ends for name, ends in RANGES.items() if name != "necessity_coefficient"}
    ranges["count_coefficient"] = COUNT_RANGE
    found = [dataclasses.replace(PUBLISHED, lr=3e-3, n_step=n_step)]
    for seed in range(1, n_setting):
        values = {}
        for name, (low, high) in ranges.items():
            values[name] = math.exp(math.log(low) + float(torch.rand(1, generator=generator)) * math.log(high / low))
        found.append(dataclasses.replace(PUBLISHED, seed=seed, n_step=n_step, **values))
    return found


def bisected(pruning: Pruning, tau: torch.Tensor, target: float) -> torch.Tensor | None:
    """Return the mask whose size bisection ends at, as the paper finds it; None if all nodes miss the target."""
    low, high = 0, len(tau)
    while high - low > 1:
        middle = (low + high) // 2
        reached = float(pruning.evaluator.losses(keep_top(tau, torch.tensor([middle])))) <= target
        low, high = (low, middle) if reached else (middle, high)
    keep = keep_top(tau, torch.tensor([high]))
    return keep[0] if float(pruning.evaluator.losses(keep)) <= target else None


def test_loss(pruning: Pruning, keep: torch.Tensor) -> float:
    """Return a circuit's loss on `test`, calibrated on the pairs that decide."""
    fitted = fit_calibrations(pruning.evaluator.differences(keep[None]), may_shift=pruning.evaluator.may_shift)
    on_test = dataclasses.replace(pruning.evaluator, pairs=pruning.task.split("test"))
    return float(task_loss(calibrated(on_test.differences(keep[None]), fitted)))


def measure(model: sc.Transformer, name: str, n_setting: int, n_step: int) -> dict:
    """Prune one task both ways."""
    task = sc.task(name, model.tokenizer)
    pruning = Pruning(model, task, PUBLISHED)
    fit, may_shift = task.split("fit"), not task.answers_vary
    start = time.monotonic()
    settings = drawn(n_setting, n_step)
    learned = learn_masks(
        model, [MaskRun(fit=fit, values=pruning.values, config=c, may_shift=may_shift) for c in settings]
    )
    sizes, best = [], None
    for tau in learned.tau:
        keep = bisected(pruning, tau, PUBLISHED.target_loss)
        sizes.append(None if keep is None else int(keep.sum()))
        if keep is not None and (best is None or keep.sum() < best.sum()):
            best = keep
    assert best is not None, f"no setting reaches the target on {name}"
    row: dict = {
        "published": {
            "n_node": int(best.sum()),
            "sizes": sizes,
            "test_loss": test_loss(pruning, best),
            "seconds": round(time.monotonic() - start, 1),
        }
    }
    for label, config in OURS.items():
        start = time.monotonic()
        circuit = sc.prune(model, task, dataclasses.replace(config, n_step=n_step))
        row[label] = {
            "n_node": circuit.n_node,
            "test_loss": test_loss(pruning, circuit.keep),
            "seconds": round(time.monotonic() - start, 1),
        }
    return row


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--settings", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    model, results, failed = sc.load(arguments.run), {}, {}
    path = Path(__file__).parent / "results"
    path.mkdir(exist_ok=True)
    path /= f"prune_recipe-{datetime.date.today()}-{platform.machine()}-{os.cpu_count()}.json"
    for name in arguments.tasks:
        try:
            results[name] = measure(model, name, arguments.settings, arguments.steps)
        except PruneError as error:
            failed[name] = str(error)
            continue
        ratios = {
            label: geometric_mean([row["published"]["n_node"] / row[label]["n_node"] for row in results.values()])
            for label in OURS
        }
        described = {
            "arguments": {**vars(arguments), "run": arguments.run.name},
            "model_hash": model_hash(model),
            "results": results,
            "failed": failed,
            "published_over": ratios,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        path.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        print(name, {label: row["n_node"] for label, row in results[name].items()}, flush=True)
    rows = [["nodes (loss on test)", "published, best", *OURS]]
    for name, row in results.items():
        rows.append([name, *(f"{row[k]['n_node']} ({row[k]['test_loss']:.3f})" for k in ("published", *OURS))])
    rows.append(["published over ours, geometric mean", "", *(f"{ratios[label]:.2f}" for label in OURS)])
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
