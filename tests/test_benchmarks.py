"""A benchmark that is given the wrong folder to compare with says so before it measures anything."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NEEDED = {
    "generate": ("openai/circuit_sparsity", "circuit_sparsity/inference/gpt.py"),
    "kernels": ("openai/circuit_sparsity with its training script", "circuit_sparsity/train.py"),
    "load": ("openai/circuit_sparsity", "circuit_sparsity/inference/gpt.py"),
    "prune": ("jacobcd52/sparse_pretrain_public", "src/pruning/trainer.py"),
    "train_step": ("openai/circuit_sparsity with its training script", "circuit_sparsity/train.py"),
}


@pytest.mark.parametrize("script", NEEDED)
def test_a_peer_that_is_none_is_refused_by_what_it_lacks(script, tmp_path):
    what, missing = NEEDED[script]
    (tmp_path / "circuit_sparsity/inference").mkdir(parents=True)
    if missing.endswith("train.py"):  # the release without the script that trains
        (tmp_path / "circuit_sparsity/inference/gpt.py").write_text("")
    told = subprocess.run(
        [sys.executable, BENCHMARKS / f"{script}.py", "--peer", tmp_path, "--results", tmp_path / "results"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 2
    assert told.stdout == ""
    assert told.stderr.splitlines()[-1].endswith(
        f"argument --peer: {tmp_path}: no checkout of {what}; it has no {missing}"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["circuit_sparsity"]
