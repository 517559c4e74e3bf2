"""Where in the corpus a node is high, low, and anything: examples at several quantiles, and a histogram."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.readings import CorpusReading
from sparse_circuits.viewer.packing import pack_numbers, pack_tokens

FRACTIONS = (0.0, 0.001, 0.01, 0.1)
"""How far from an end of the ranking examples are taken: the extreme, then this share of all tokens further in."""

N_EXAMPLE = 4
"""Examples at each place, from different windows."""

BEFORE, AFTER = 16, 8
"""Tokens shown around an example's."""

N_BIN = 41
"""Bars of a histogram."""


def sample_nodes(reading: CorpusReading) -> dict[str, Any]:
    """Return examples and histogram of each node.

    An example is a stretch of `before` tokens, the one that it was chosen for, and `after` tokens; at a window's edge
    the token −1 fills up (65,535 packed).
    """
    return {
        "corpus_hash": reading.corpus_hash,
        "n_token": reading.tokens.numel(),
        "before": BEFORE,
        "after": AFTER,
        "bins": [{"end": end, "fraction": fraction} for end, fraction in _bins()],
        "n_example": N_EXAMPLE,
        "nodes": {
            name: _sample(reading.tokens, activation)
            for name, activation in zip(reading.names, reading.activations, strict=True)
        },
    }


def _bins() -> list[tuple[str, float | None]]:
    ends: list[tuple[str, float | None]] = [(end, fraction) for end in ("top", "bottom") for fraction in FRACTIONS]
    return [*ends, ("random", None)]


def _sample(tokens: Int[Tensor, "window context"], activation: Float[Tensor, "window context"]) -> dict[str, Any]:
    flat = activation.flatten()
    order = flat.argsort(descending=True, stable=True)
    chosen: list[int] = []
    for end, fraction in _bins():
        if fraction is None:
            ranked = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))
        else:
            ranked = (order if end == "top" else order.flip(0))[int(fraction * len(flat)) :]
        chosen += _from_different_windows(ranked, tokens.shape[1])
    at = torch.tensor(chosen)
    window, position = at // tokens.shape[1], at % tokens.shape[1]
    place = position[:, None] + torch.arange(-BEFORE, AFTER + 1)  # (example, token)
    is_inside = (place >= 0) & (place < tokens.shape[1])
    place = place.clamp(0, tokens.shape[1] - 1)
    shown = torch.where(is_inside, activation[window[:, None], place], 0.0)
    nonzero = flat[flat != 0]
    return {
        "tokens": pack_tokens(torch.where(is_inside, tokens[window[:, None], place], 65_535)),
        "activations": pack_numbers(shown[None]),
        "largest": float(flat.abs().max()),
        "mean": float(flat.mean()),
        "deviation": float(flat.std()),
        "n_nonzero": len(nonzero),
        "histogram": _histogram(nonzero),
    }


def _from_different_windows(ranked: Int[Tensor, " place"], context: int) -> list[int]:
    """Take the first places that lie in windows of their own; repeat the last if there are too few windows."""
    chosen: dict[int, int] = {}
    for place in ranked[: 400 * N_EXAMPLE].tolist():
        chosen.setdefault(place // context, place)
        if len(chosen) == N_EXAMPLE:
            break
    places = list(chosen.values())
    return places + places[-1:] * (N_EXAMPLE - len(places))


def _histogram(nonzero: Float[Tensor, " value"]) -> dict[str, Any]:
    """Count the values that are not zero; AbsTopK makes most of them zero, and these are counted apart."""
    if not len(nonzero):
        return {"low": 0.0, "high": 0.0, "counts": []}
    low, high = float(nonzero.min()), float(nonzero.max())
    if low == high:
        return {"low": low, "high": high, "counts": [len(nonzero)]}
    return {"low": low, "high": high, "counts": torch.histc(nonzero, N_BIN, low, high).long().tolist()}
