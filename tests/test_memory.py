"""Freed memory stays with the process: a large block that is taken again costs no new pages."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
from sparse_circuits.memory import keep_freed_memory
took = keep_freed_memory() if sys.argv[1] == "keep" else True
import numpy as np
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(4):
    before = pages()
    np.ones(20_000_000)
print(took, pages() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has the option")
def test_a_block_that_was_freed_is_taken_again_without_new_pages():
    faults = {}
    for how in ("keep", "give back"):
        told = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
        took, faults[how] = told.stdout.split()
        assert took == "True"
    assert int(faults["keep"]) * 10 < int(faults["give back"])
