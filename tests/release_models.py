"""The release's golden models, and folders made of them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sparse_circuits.formats import official

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted((GOLDEN / "models").iterdir())


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a release folder in place."""
    path = folder / official.WEIGHTS_NAME
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
