"""Circuits that are known by construction, over twenty seeds: do true ones pass every check, do fakes fail theirs?

    python benchmarks/known_circuits.py fakes [--seeds 20] [--full 3]
    python benchmarks/known_circuits.py true

Prints for each circuit how often each check failed or was weak; writes
benchmarks/results/known_circuits-PART-DATE-MACHINE.json.
"""

import argparse
import datetime
import json
import os
import platform
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from known_circuits import FAKES, TRUE, circuit_of

from sparse_circuits.configs import VerifyConfig
from sparse_circuits.faithfulness import verify

SETTINGS = VerifyConfig(n_pair=24, n_set=10, n_subset=8, shares=(0.1, 0.5), n_adversary_step=8, n_step=60)


def main() -> None:
    """Verify every circuit with every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("fakes", "true"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--full", type=int, default=3, help="seeds with every check; the others with those meant for fakes"
    )
    given = parser.parse_args()
    n_seed, found = given.seeds, {}
    builds = TRUE if given.part == "true" else {name: build for name, (build, _) in FAKES.items()}
    for name, build in builds.items():
        counts: Counter[str] = Counter()
        for seed in range(n_seed):
            circuit, task = circuit_of(build, seed)
            some = {"checks": ("subsets", "attention", "interchange"), "n_set": 1, "n_adversary_step": 0}
            report = verify(circuit, task, SETTINGS, **({} if seed < given.full else some))
            counts.update(f"{one.check}: {one.status}" for one in report.verdict if one.status != "passed")
        meant = FAKES[name][1] if name in FAKES else None
        found[name] = {"meant": meant, "n_seed": n_seed, "n_full": given.full, "not_passed": dict(counts)}
        print(f"{name}, {n_seed} seeds (meant: {meant}): {dict(counts)}")
    machine = f"{platform.machine()}-{os.cpu_count()}"
    path = Path(__file__).parent / "results" / f"known_circuits-{given.part}-{datetime.date.today()}-{machine}.json"
    path.write_text(json.dumps({"settings": SETTINGS.to_json(), "circuits": found}, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
