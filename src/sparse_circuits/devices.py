"""Where a model runs: on the CPU, or on a GPU that is there."""

import torch

from sparse_circuits.errors import DeviceError


def usable_device(name: str) -> torch.device:
    """Return a device that is there.

    Raises:
        DeviceError: torch doesn't know it, or the machine has none.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"there is no device {name!r}; expected cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device is {name}; expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device is {name}, but torch sees {torch.cuda.device_count()} GPUs here; take cpu")
    return device
