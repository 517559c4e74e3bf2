"""What training takes of a device's memory: said before anything is allocated."""

import os

import torch

from sparse_circuits.configs import TrainConfig
from sparse_circuits.errors import DeviceError
from sparse_circuits.model import Transformer


def training_size_bytes(config: TrainConfig, *, max_token: int | None = None) -> int:
    """Estimate the memory of weights, gradients, Adam's moments, and activations kept for the backward pass.

    Args:
        config: The run's settings.
        max_token: Tokens that go through together; None for a whole batch.
    """
    with torch.device("meta"):
        n_weight = sum(p.numel() for p in Transformer(config.model).parameters() if p.requires_grad)
    shape = config.model
    per_layer = 12 * shape.d_model + 12 * shape.d_attn + 5 * shape.d_mlp
    n_token = config.batch_size * config.context
    n_activation = min(n_token, max_token or n_token) * (shape.n_layer * per_layer + 4 * shape.n_vocab)
    return 4 * (4 * n_weight + n_activation)


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that can still be taken, or None where the system doesn't say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            return None


def check_memory(config: TrainConfig, device: torch.device, *, max_token: int | None = None) -> None:
    """Refuse a run that doesn't fit, before anything is allocated.

    Raises:
        DeviceError: The estimate exceeds what is free.
    """
    needed, free = training_size_bytes(config, max_token=max_token), free_bytes(device)
    if free is not None and needed > free:
        raise DeviceError(
            f"training needs about {needed / 1e9:,.1f} GB, and {device} has {free / 1e9:,.1f} GB free: "
            "lower model.d_model, model.d_mlp, model.n_layer or batch_size"
        )
