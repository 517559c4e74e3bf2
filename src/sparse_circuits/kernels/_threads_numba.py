"""How many threads the compiled loops use."""

import numba


def set_threads(n_thread: int) -> None:
    """Let the parallel loops use as many threads as torch does."""
    numba.set_num_threads(max(1, min(n_thread, numba.config.NUMBA_NUM_THREADS)))  # pyright: ignore
