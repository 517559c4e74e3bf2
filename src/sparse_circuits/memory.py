"""How the C library handles memory that tensors give back."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Numbers of glibc's options (malloc.h)."""


def keep_freed_memory() -> bool:
    """Let the process keep the memory of freed tensors for the next ones, in place of handing it back to the system.

    Otherwise every step's large activations are pages that the kernel must clear anew: about a tenth of a training step
    on one thread (docs/log.md). The process then stays as large as it was at its largest. For programs, not for
    libraries: the setting is the whole process's.

    Returns:
        Whether the C library took it; only glibc does.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = {_MMAP_THRESHOLD: 2**31 - 1, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
    return bool(min([mallopt(option, value) for option, value in wanted.items()]))
