"""Arrays in JSON: little-endian int16 in base64, a scale a row, so that a page of many prompts stays small."""

import base64
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

MOST = 32_767
"""Largest packed number."""


def pack_numbers(values: Float[Tensor, "row ..."]) -> dict[str, Any]:
    """Pack an array; each row of the first axis is exact to 1/65,534 of its largest magnitude.

    Returns:
        `shape`, `scales` by row and `data`: value = scale · packed number. NaN and infinities become 0.
    """
    rows = np.nan_to_num(values.detach().double().numpy(), nan=0.0, posinf=0.0, neginf=0.0)
    flat = rows.reshape(len(rows), -1)
    scales = np.abs(flat).max(1, initial=0.0) / MOST
    packed = np.round(flat / np.where(scales == 0, 1.0, scales)[:, None]).astype("<i2")
    return {"shape": list(rows.shape), "scales": [float(f"{s:.7g}") for s in scales], "data": _text(packed)}


def pack_tokens(tokens: Int[Tensor, "..."]) -> dict[str, Any]:
    """Pack token ids as unsigned int16; no vocabulary of this package is larger."""
    return {"shape": list(tokens.shape), "data": _text(tokens.numpy().astype("<u2"))}


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()
