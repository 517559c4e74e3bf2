"""Threads that wait are told to sleep soon, before torch is loaded, unless the user says otherwise."""

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
from sparse_circuits import cli
sys.argv = ["sparse-circuits", "tasks", "nowhere"]
try:
    cli.main()
except SystemExit:
    pass
print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_the_command_says_how_threads_wait_before_torch_is_there(given, expected):
    environ = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=environ | given)
    assert done.stdout.split() == [expected, "True"]


def test_where_torch_is_loaded_nothing_is_said():
    code = "import torch, os; from sparse_circuits.waiting import wait_briefly; wait_briefly(); print(dict(os.environ))"
    environ = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert "GOMP_SPINCOUNT" not in done.stdout
