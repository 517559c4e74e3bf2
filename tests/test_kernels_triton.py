"""The Triton kernels agree with the reference, by Triton's interpreter; nothing else imports Triton without a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "triton_cases.py"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed: extra `gpu`")
def test_the_interpreted_kernels_are_the_references():
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout[-3000:]


def test_nothing_imports_triton_without_a_gpu():
    code = (
        "import sys, torch; before = 'triton' in sys.modules; from sparse_circuits import kernels;"
        "kernels.abs_topk(torch.ones(4, 4), 2); print(before or 'triton' not in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True"]
