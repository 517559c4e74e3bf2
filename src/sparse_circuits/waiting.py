"""How threads wait for their next loop."""

import os
import sys

SPINS = "10000"
"""Turns of looking for work before a thread sleeps; GNU's OpenMP makes 300,000 where nobody says how many."""


def wait_briefly() -> None:
    """Let a thread that waits for others sleep soon, and leave its core to whoever needs it.

    A training step is a thousand short loops, and the thread that another process keeps from its core holds all others
    up in each. Where these go on looking for work, it can't move to one of theirs: beside one busy process a step on
    two cores took 13 times as long as alone, now 2.6 times; alone it takes as long as before (docs/log.md). It is read
    when torch is loaded, so this comes first. What the user has set stays. For programs, not for libraries.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
