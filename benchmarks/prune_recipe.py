"""Sizes of circuits: the published recipe's best of many settings against our pruner, same model, tasks and target.

    python benchmarks/prune_recipe.py RUN [--tasks NAME …] [--settings 32] [--steps 300]

The published recipe (paper section 2.2, appendix A.2) minimises task loss + price · nodes at a fixed price, ranks nodes
by their parameters, and bisects the number of nodes for the target; settings are drawn log-uniformly around its
centres, and one that misses the target at a node less than the best so far is not bisected. Its words leave open
whether scale and shift are fitted at every size that the bisection tries, which helps it, or once, after it; both are
measured. Ours is `sc.prune` with its defaults, and once more for sufficiency alone, as the paper prunes; a third time
it takes the best of four masks, refined from three starts, as theirs takes the best of many settings. Neither cuts
edges here, and all decide at the same loss on the same pairs (no margin); the losses on `test` stand beside.
Writes benchmarks/results/prune_recipe-DATE-MACHINE.json after every task. What that file holds already is
not measured again.
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
from sparse_circuits.search import COUNT_RANGE
from sparse_circuits.survey import geometric_mean
from sparse_circuits.tables import aligned
from sparse_circuits.tasks.pairs import Task

TASKS = ("single_double_quote", "bracket_counting", "with_as", "for_while", "if_equals")
PUBLISHED = PruneConfig(
    count_coefficient=1e-4,
    calibrates=False,
    init_bias=0.1,
    init_noise=0.01,
    eps=1e-8,
    necessity_coefficient=0,
    max_auroc=1,
    cuts_edges=False,
)
PUBLISHED_RANGES = {
    "lr": (2e-3, 5e-2),
    "weight_decay": (1e-4, 1e-2),
    "temperature": (0.1, 10.0),
    "init_bias": (0.03, 0.3),
    "init_noise": (1e-3, 0.3),
    "count_coefficient": COUNT_RANGE,
}
"""What its settings are drawn from, around the paper's centres."""

READINGS = {"published": True, "published, calibrated last": False}
"""Whether scale and shift are fitted at every size."""

ALONE = PruneConfig(cuts_edges=False, margin=0, necessity_coefficient=0, max_auroc=1)
OURS = {
    "ours": PruneConfig(cuts_edges=False, margin=0),
    "ours, sufficiency alone": ALONE,
    "the same, best of 4 masks from 3 starts": dataclasses.replace(ALONE, n_run=4, n_start=3),
}


def drawn(n_setting: int, n_step: int) -> list[PruneConfig]:
    """Draw settings of the published recipe; the first is the paper's centre."""
    generator = torch.Generator().manual_seed(0)
    found = [dataclasses.replace(PUBLISHED, lr=3e-3, n_step=n_step)]
    for seed in range(1, n_setting):
        values = {}
        for name, (low, high) in PUBLISHED_RANGES.items():
            values[name] = math.exp(math.log(low) + float(torch.rand(1, generator=generator)) * math.log(high / low))
        found.append(dataclasses.replace(PUBLISHED, seed=seed, n_step=n_step, **values))
    return found


def bisected(pruning: Pruning, tau: torch.Tensor, n_best: int, *, calibrates: bool) -> torch.Tensor | None:
    """Return the mask whose size bisection ends at, as the paper finds it; None if that is not below `n_best`."""

    def is_reached(size: int) -> bool:
        keep = keep_top(tau, torch.tensor([size]))
        loss = pruning.evaluator.losses(keep) if calibrates else task_loss(pruning.evaluator.differences(keep))
        return float(loss) <= PUBLISHED.target_loss

    low, high = 0, n_best - 1
    if high == 0 or not is_reached(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_reached(middle) else (middle, high)
    return keep_top(tau, torch.tensor([high]))[0]


def test_loss(pruning: Pruning, keep: torch.Tensor) -> float:
    """Return a circuit's loss on `test`, calibrated on the pairs that decide."""
    fitted = fit_calibrations(pruning.evaluator.differences(keep[None]), may_shift=pruning.evaluator.may_shift)
    on_test = dataclasses.replace(pruning.evaluator, pairs=pruning.task.split("test"))
    return float(task_loss(calibrated(on_test.differences(keep[None]), fitted)))


def measure(model: sc.Transformer, name: str, n_setting: int, n_step: int, held: dict) -> dict:
    """Prune one task both ways, but for what is held."""
    task = sc.task(name, model.tokenizer)
    row = dict(held)
    if not READINGS.keys() <= row.keys():
        row |= measure_published(model, task, n_setting, n_step)
    for label, config in OURS.items():
        if label in row:
            continue
        start = time.monotonic()
        circuit = sc.prune(model, task, dataclasses.replace(config, n_step=n_step))
        row[label] = {
            "n_node": circuit.n_node,
            "test_loss": test_loss(Pruning(model, task, PUBLISHED), circuit.keep),
            "seconds": round(time.monotonic() - start, 1),
        }
    return row


def measure_published(model: sc.Transformer, task: Task, n_setting: int, n_step: int) -> dict:
    """Prune by the published recipe."""
    pruning = Pruning(model, task, PUBLISHED)
    fit, may_shift = task.split("fit"), not task.answers_vary
    start = time.monotonic()
    settings = drawn(n_setting, n_step)
    learned = learn_masks(
        model, [MaskRun(fit=fit, values=pruning.values, config=c, may_shift=may_shift) for c in settings]
    )
    learning = time.monotonic() - start
    row: dict = {}
    for label, calibrates in READINGS.items():
        start = time.monotonic()
        best, n_best, sizes = None, len(learned.tau[0]) + 1, []
        for tau in learned.tau:
            keep = bisected(pruning, tau, n_best, calibrates=calibrates)
            best, n_best = (best, n_best) if keep is None else (keep, int(keep.sum()))
            sizes.append(None if keep is None else n_best)
        assert best is not None, f"no setting reaches the target on {task.name}"
        row[label] = {
            "n_node": n_best,
            "sizes": sizes,
            "test_loss": test_loss(pruning, best),
            "seconds": round(learning + time.monotonic() - start, 1),
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
    told = {"settings": arguments.settings, "steps": arguments.steps, "model_hash": model_hash(model)}
    if path.exists():
        held = json.loads(path.read_text(encoding="utf-8"))
        results = held["results"] if all(held.get(key) == value for key, value in told.items()) else {}
    for name in arguments.tasks:
        try:
            held = results.get(name, {})
            results[name] = measure(model, name, arguments.settings, arguments.steps, held)
        except PruneError as error:
            failed[name] = str(error)
            continue
        whole = {name: row for name, row in results.items() if OURS.keys() <= row.keys()}
        ratios = {
            reading: {
                label: geometric_mean([row[reading]["n_node"] / row[label]["n_node"] for row in whole.values()])
                for label in OURS
            }
            for reading in READINGS
        }
        described = {
            **told,
            "results": results,
            "failed": failed,
            "published_over": ratios,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        path.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        print(name, {label: row["n_node"] for label, row in results[name].items()}, flush=True)
    rows = [["nodes (loss on test)", *READINGS, *OURS]]
    for name, row in whole.items():
        rows.append([name, *(f"{row[k]['n_node']} ({row[k]['test_loss']:.3f})" for k in (*READINGS, *OURS))])
    for reading in READINGS:
        numbers = (f"{ratios[reading][label]:.2f}" for label in OURS)
        rows.append([f"{reading}, over ours, geometric mean", *("" for _ in READINGS), *numbers])
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
