"""Modules of compiled loops: imported at their first use, done without where that fails, and joined to autograd."""

import functools
import importlib
import warnings
from types import ModuleType
from typing import Any

import torch

MIN_PARALLEL = 1 << 15
"""Below this many entries the threads' start costs more than they save."""

_causes: set[str] = set()
"""What has been warned of."""


class OnceDifferentiable(torch.autograd.Function):
    """A function whose backward pass leaves autograd, so that it has no second derivative.

    torch's own `once_differentiable` is not enough: a second pass that asks for some inputs alone goes round what
    would raise, and is wrong without a word. This one raises a RuntimeError when a graph of gradients is asked for.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        backward = cls.backward

        @functools.wraps(backward)
        def once(ctx: Any, *grads: torch.Tensor) -> Any:
            if torch.is_grad_enabled():
                raise RuntimeError(
                    "the compiled kernels have no second derivatives, and create_graph=True asks for them; run forward "
                    'and backward inside sparse_circuits.kernels.use("reference")'
                )
            return backward(ctx, *grads)

        cls.backward = staticmethod(once)  # pyright: ignore[reportAttributeAccessIssue]


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


def can_loop(name: str, *tensors: torch.Tensor) -> bool:
    """Say whether a module's loops may take these tensors: float32 on a CPU, not while torch compiles.

    Args:
        name: Such as `_topk_numba`.
        tensors: What they would read.
    """
    return (
        all(one.device.type == "cpu" and one.dtype is torch.float32 for one in tensors)
        and not torch.compiler.is_compiling()
        and loops(name) is not None
    )


def threaded(name: str, n_entry: int = MIN_PARALLEL) -> Any:
    """Return a module that `loops` has imported, its loops set to torch's number of threads.

    Args:
        name: Such as `_topk_numba`.
        n_entry: Entries that there are to go through; for a few one thread is faster.
    """
    module: Any = loops(name)
    module.set_threads(torch.get_num_threads() if n_entry >= MIN_PARALLEL else 1)
    return module


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
