"""How often does a 95 % interval hold the truth? The jackknife over templates against a bootstrap, on simulated pairs.

    python benchmarks/interval_coverage.py [--draws 1000] [--bootstraps 200]

A pair's two logit differences are normal around a mean that varies by template; what is estimated is the mean loss, or
the mean difference. Prints the coverage by number of templates, and writes
benchmarks/results/interval_coverage-DATE-MACHINE.json.
"""

import argparse
import datetime
import json
import os
import platform
from pathlib import Path

import numpy as np
import torch

from sparse_circuits.faithfulness.intervals import A_LOSS, ANYWHERE, estimate
from sparse_circuits.scoring import pair_loss

N_PAIR = 40
MEAN, SPREAD = 2.0, 1.5


def draw(n_template: int, between: float, rng: np.random.Generator) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Draw differences (pair, 2) towards the right answer, and their templates; templates differ in size."""
    sizes = rng.integers(N_PAIR // 2, 2 * N_PAIR, n_template)
    means = MEAN + between * rng.normal(size=n_template)
    parts = [mean + SPREAD * rng.normal(size=(n, 2)) for mean, n in zip(means, sizes, strict=True)]
    return torch.from_numpy(np.concatenate(parts)), tuple(f"{i}" for i, n in enumerate(sizes) for _ in range(n))


def measured(difference: torch.Tensor, what: str) -> torch.Tensor:
    """Return what is averaged: the loss of each pair, or its difference."""
    return pair_loss(difference * torch.tensor([1.0, -1.0])) if what == "loss" else difference.mean(1)


def truth(between: float, what: str) -> float:
    """Return the mean over endlessly many templates, by two million draws."""
    rng = np.random.default_rng(9)
    difference = MEAN + np.sqrt(between**2 + SPREAD**2) * rng.normal(size=(2_000_000, 2))
    return MEAN if what == "difference" else float(measured(torch.from_numpy(difference), what).mean())


def bootstrap(values: np.ndarray, templates: tuple[str, ...]) -> tuple[float, float]:
    """Return the interval that stood here before: resamples of templates, then of pairs within each."""
    index = np.unique(templates, return_inverse=True)[1]
    groups = [np.flatnonzero(index == g) for g in range(index.max() + 1)]
    rng = np.random.default_rng(0)
    means = np.empty(400)
    for i in range(len(means)):
        drawn = [groups[g] for g in rng.integers(len(groups), size=len(groups))]
        means[i] = values[np.concatenate([g[rng.integers(len(g), size=len(g))] for g in drawn])].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    """Simulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--bootstraps", type=int, default=100)
    given = parser.parse_args()
    rows = []
    for what in ("difference", "loss"):
        for between in (0.3, 0.8):
            true = truth(between, what)
            for n_template in (4, 8, 12, 26):
                rng = np.random.default_rng(n_template)
                hits, old = [], []
                for i in range(given.draws):
                    difference, templates = draw(n_template, between, rng)
                    values = measured(difference, what)
                    found = estimate(values, templates, within=A_LOSS if what == "loss" else ANYWHERE)
                    assert found.low is not None
                    assert found.high is not None
                    hits.append(found.low <= true <= found.high)
                    if i < given.bootstraps:
                        low, high = bootstrap(values.numpy(), templates)
                        old.append(low <= true <= high)
                row = {"of": what, "between": between, "n_template": n_template}
                row |= {"present": float(np.mean(hits)), "bootstrap": float(np.mean(old)) if old else None}
                rows.append(row)
                print(row)
    machine = f"{platform.machine()}-{os.cpu_count()}"
    path = Path(__file__).parent / "results" / f"interval_coverage-{datetime.date.today()}-{machine}.json"
    path.write_text(json.dumps({"draws": given.draws, "bootstraps": given.bootstraps, "rows": rows}, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
