"""What the benchmarks share: timing in turn, what a machine is, the table, and the file of results."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sparse_circuits.tables import aligned

RESULTS = Path(__file__).parent / "results"
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""Wall time is what a user waits; the processor time of all threads stays comparable beside other work."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every benchmark takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=5, help="times that each thing is measured, in turn")
    made.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: comparable beside other work")
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder that the file of results goes to")
    return made


def in_turn(
    actions: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    clock: str,
    device: str = "cpu",
    warm: bool = True,
    times: int = 1,
    prepare: Callable[[], Any] = lambda: None,
) -> dict[str, float]:
    """Time each action once a round, in turn, and return its median seconds; what prepares it is not counted.

    An action that is over before a GPU is reached is called `times` times in a row, and each counts a share.
    """
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + warm):
        for name, act in actions.items():
            prepare()
            start = _now(clock, device)
            for _ in range(times):
                act()
            if turn >= warm:
                taken[name].append((_now(clock, device) - start) / times)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _now(clock: str, device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return CLOCKS[clock]()


def told(seconds: float) -> str:
    """Write a duration with three digits."""
    return (
        f"{1e6 * seconds:.3g} µs"
        if seconds < 1e-3
        else f"{1e3 * seconds:.3g} ms"
        if seconds < 1
        else f"{seconds:.3g} s"
    )


def report(name: str, arguments: argparse.Namespace, rows: list[list[str]], results: Any, notes: list[str]) -> Path:
    """Print the table, and write results, versions and hardware to `NAME-DATE-MACHINE.json` in the results' folder."""
    print("\n".join(aligned(rows)))
    for note in notes:
        print(note)
    machine = f"{platform.machine()}-{os.cpu_count()}"
    gpu = torch.cuda.get_device_name() if arguments.device != "cpu" else None
    if gpu:
        machine = gpu.replace(" ", "-")
    described = {
        "arguments": {k: v.name if isinstance(v, Path) else v for k, v in vars(arguments).items()},
        "results": results,
        "notes": notes,
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in ("torch", "numba", "triton")},
        "hardware": {
            "processor": _processor(),
            "vectors": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
        },
    }
    arguments.results.mkdir(exist_ok=True)
    path = arguments.results / f"{name}-{datetime.date.today()}-{machine}.json"
    path.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return path


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
