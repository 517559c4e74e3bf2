"""Modules of compiled loops: imported at their first use, and done without where that fails."""

import functools
import importlib
import warnings
from types import ModuleType

import torch

MIN_PARALLEL = 1 << 15
"""Below this many entries the threads' start costs more than they save."""

_causes: set[str] = set()
"""What has been warned of."""


@functools.cache
def loops(name: str) -> ModuleType | None:
    """Import a module of this package that compiles when it is imported; warn once and return None if it fails.

    Numba's threads are those of torch's OpenMP, and starting them sets their number to all cores; torch gets its own
    number back.

    Args:
        name: Such as `_topk_numba`.
    """
    n_thread = torch.get_num_threads()
    try:
        return importlib.import_module(f"sparse_circuits.kernels.{name}")
    except Exception as error:  # whatever a compiler or a broken installation raises: the reference does the same
        give_up(name, error)
        return None
    finally:
        torch.set_num_threads(n_thread)


def give_up(name: str, error: Exception) -> None:
    """Say why plain PyTorch is used in place of compiled kernels: once for a cause, whichever kernels it befalls."""
    cause = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if cause not in _causes:
        _causes.add(cause)
        warnings.warn(
            f"the compiled kernels ({name}) can't be used, plain PyTorch is, and slower: {cause}",
            RuntimeWarning,
            stacklevel=3,
        )
