"""How long a released 0.4-billion model takes to open, and how much memory of its own.

It makes a folder with the shape and the sparsity of csp_yolo2 (419 million weights, 1.68 GB) and random nonzeros, and
opens it in fresh processes: first, later, and later with packed weights. Anonymous memory (RssAnon, Linux) is what the
process would have to swap; pages of a mapped file are not. Before each opening the files are dropped from the page
cache. `forward` is one pass over 64 tokens right after the opening.

    python benchmarks/load_release.py --folder FOLDER
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import torch

SHAPE = {
    "block_size": 1024, "vocab_size": 2048, "n_layer": 8, "n_head": 128, "d_head": 16, "d_model": 2048,
    "bias": True, "ln_bias": True, "rms_norm": True, "activation_type": "gelu", "afrac": 0.25,
    "afrac_loctypes": "attn_in,attn_out,mlp_in,mlp_out,mlp_neuron,attn_v,attn_k,attn_q", "tied_unembed": False,
    "d_mlp": 8192, "enable_bigram_table": True, "learnable_bigram_table": True, "d_pos_emb": 32, "sink": True,
    "pfrac": 0.0625, "expansion_factor": 8,
}  # fmt: skip
DENSITY = 0.001


def anonymous_megabytes() -> float:
    """Return this process's anonymous memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/self/status has no RssAnon; this benchmark needs Linux")


def make(folder: Path) -> None:
    """Write the folder, tensor by tensor as the release would."""
    from sparse_circuits.checkpoint import empty_model
    from sparse_circuits.formats.official_config import from_release, parameter_names

    config = from_release(SHAPE, where="shape")
    generator = torch.Generator().manual_seed(0)
    state = {}
    names = parameter_names(config)
    for name, empty in empty_model(config, where="shape").state_dict().items():
        tensor = torch.zeros(empty.shape)
        if tensor.ndim == 2 and name != "bigram":
            places = torch.randint(tensor.numel(), (max(1, int(DENSITY * tensor.numel())),), generator=generator)
            tensor.view(-1)[places] = torch.randn(len(places), generator=generator)
        else:
            tensor.normal_(generator=generator)
        state[names[name]] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "beeg_config.json").write_text(json.dumps(SHAPE))
    torch.save(state, folder / "final_model.pt")


def drop_from_page_cache(folder: Path) -> None:
    """Ask the system to forget the files of a folder, so that they are read from disk again."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def open_once(folder: str) -> None:
    """Open the folder in this process and print what it took."""
    from sparse_circuits.loading import load

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    before = peak = anonymous_megabytes()
    stopped = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stopped.wait(0.005):
            peak = max(peak, anonymous_megabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, own = time.perf_counter(), time.process_time()
    model = load(folder, packed=bool(os.environ.get("LOAD_PACKED")))
    wall, own = time.perf_counter() - wall, time.process_time() - own
    stopped.set()
    watcher.join()
    forward = time.perf_counter()
    with torch.no_grad():
        checksum = float(model(torch.arange(64)[None])[0, -1].double().sum())
    forward = time.perf_counter() - forward
    after = {"mb_before": before, "mb_peak": peak, "mb_peak_above": peak - before, "logit_sum": checksum}
    sys.stdout.write(json.dumps({"seconds": wall, "cpu_seconds": own, "forward_seconds": forward, **after}) + "\n")


def measured(folder: Path, cache: Path, *, packed: bool) -> dict[str, float]:
    """Open the folder in a fresh process."""
    drop_from_page_cache(folder)
    drop_from_page_cache(cache)
    environment = {**os.environ, "SPARSE_CIRCUITS_CACHE": str(cache), "LOAD_PACKED": "1" if packed else ""}
    done = subprocess.run(
        [sys.executable, __file__, "--open", str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """Measure both openings and write benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the model is made; a temporary folder if left out")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--open", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open:
        open_once(arguments.open)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = arguments.folder or Path(temporary) / "model", Path(temporary) / "cache"
        if not (folder / "final_model.pt").exists():
            make(folder)
        cache.mkdir()
        runs: dict[str, list[dict[str, float]]] = {"first": [], "later": [], "packed": []}
        for _ in range(arguments.repeat):
            shutil.rmtree(cache)
            cache.mkdir()
            for which, many in runs.items():
                many.append(measured(folder, cache, packed=which == "packed"))
        copies = [path.stat().st_size for path in cache.rglob("*.safetensors")]
        size = (folder / "final_model.pt").stat().st_size
    found = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "torch": torch.__version__,
        "file_mb": size / 1e6,
        "packed_mb": [copy / 1e6 for copy in copies],
        "median": {which: {key: median(run[key] for run in many) for key in many[0]} for which, many in runs.items()},
        "runs": runs,
    }
    print(f"file {size / 1e6:,.0f} MB, packed copy {copies[0] / 1e6:,.0f} MB")
    for which, values in found["median"].items():
        print(
            f"{which:>6}: {values['seconds']:6.2f} s ({values['cpu_seconds']:.2f} s of processor), anonymous memory "
            f"at most {values['mb_peak']:,.0f} MB ({values['mb_peak_above']:,.0f} above the imports); "
            f"forward {values['forward_seconds']:.2f} s"
        )
    out = Path(__file__).parent / "results" / f"load_release-{found['date']}-{platform.node()}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
