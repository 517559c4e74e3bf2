"""Opens a model of 0.4 billion weights, 1 in 1,000 nonzero, each time in a process of its own: file, time, memory.

    python benchmarks/load.py [--peer CHECKOUT] [--folder runs/large] [--rounds 3]

Time is without imports; memory is the peak above what the process had after `import torch`. CHECKOUT is
openai/circuit_sparsity, whose loader opens its own files of the same model.
"""

import json
import subprocess
import sys
from pathlib import Path

from large_model import made, made_for_release
from measuring import parser, report, told
from peers import RELEASE

OURS = """
import sparse_circuits.loading, sparse_circuits.kernels.compiled as compiled
compiled.loops("_topk_numba"), compiled.loops("_packed_numba")
start = clock()
model = sparse_circuits.loading.load(folder, packed=True)
"""
RELEASED = """
sys.path.insert(0, benchmarks)
from pathlib import Path
from peers import release
gpt = release(Path(checkout), "inference.gpt")
gpt.read_file_cached = lambda path: open(path, "rb").read()
gpt.bf.join = lambda *parts: "/".join(parts)
start = clock()
model = gpt.load_model(folder, flash=True, cuda=False)
"""
AROUND = """
import json, resource, sys, time, torch
clock, folder, benchmarks, checkout = getattr(time, sys.argv[1]), *sys.argv[2:]
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
{opens}
print(json.dumps({{"seconds": clock() - start, "peak_bytes": peak() - before}}))
"""


def opened(code: str, folder: Path, clock: str, checkout: Path | None) -> dict[str, float]:
    """Open the model once in a new process."""
    call = {"wall": "perf_counter", "processor": "process_time"}[clock]
    arguments = [call, str(folder), str(Path(__file__).parent), str(checkout)]
    told = subprocess.run(
        [sys.executable, "-c", AROUND.format(opens=code), *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(told.stdout.splitlines()[-1])


def main() -> None:
    """Measure ours and, with a checkout, the release's."""
    parse = parser(__doc__)
    parse.add_argument("--peer", type=RELEASE)
    parse.add_argument("--folder", type=Path, default=Path("runs/large"))
    arguments = parse.parse_args()
    folder = made(arguments.folder)
    ways = {"ours": (OURS, folder / "model.safetensors")}
    if arguments.peer:
        ways["release"] = (RELEASED, made_for_release(folder) / "final_model.pt")
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, (code, _) in ways.items():
            measured[name].append(opened(code, folder, arguments.clock, arguments.peer))
    rows, results = [["", "file", "load", "memory above import torch"]], {}
    for name, (_, file) in ways.items():
        ordered = [
            sorted(found[k] for found in measured[name])[arguments.rounds // 2] for k in ("seconds", "peak_bytes")
        ]
        results[name] = {"file_bytes": file.stat().st_size, "seconds": ordered[0], "peak_bytes": ordered[1]}
        rows.append([name, f"{file.stat().st_size / 1e6:,.1f} MB", told(ordered[0]), f"{ordered[1] / 1e6:,.0f} MB"])
    notes = [f"medians of {arguments.rounds}, {arguments.clock} time; 16.8 MB of our file are the dense bigram table"]
    if not arguments.peer:
        notes.append("not compared with the release: --peer names a checkout of openai/circuit_sparsity")
    report("load", arguments, rows, results, notes)


if __name__ == "__main__":
    main()
