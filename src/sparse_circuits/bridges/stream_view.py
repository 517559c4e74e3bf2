"""Edits of the whole stream instead of one read: a view of a model whose reads are its residual stream."""

import contextlib
import dataclasses
from collections.abc import Iterator

from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.bridges.maps import Bridge
from sparse_circuits.bridges.residual import ResidualModel
from sparse_circuits.tokenizer import Tokenizer


class StreamView:
    """A `ResidualModel` whose read at a site is the stream there: what is added reaches every later sublayer.

    Args:
        dense: The model that it is a view of.
    """

    def __init__(self, dense: ResidualModel) -> None:
        self.dense = dense
        self.d_model: int = dense.d_model
        self.n_sublayer: int = dense.n_sublayer
        self.n_ctx: int = dense.n_ctx
        self.n_vocab: int = dense.n_vocab
        self.tokenizer: Tokenizer | None = dense.tokenizer
        self.hash: str = dense.hash
        self._added: tuple[int, Tensor] | None = None

    def embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Return the stream at site 0."""
        return self.dense.embed(tokens)

    def run(
        self, x: Float[Tensor, "batch pos d_model"], start: int = 0, stop: int | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Run sublayers; what is added is added at its site."""
        if self._added is not None:
            site, delta = self._added
            end = self.n_sublayer if stop is None else stop
            if start <= site < end:
                return self.dense.run(self.dense.run(x, start, site) + delta, site, stop)
        return self.dense.run(x, start, stop)

    def unembed(
        self, x: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos vocab"]:
        """Turn the last stream into logits."""
        return self.dense.unembed(x, tokens)

    def divisor(self, site: int, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
        """Return 1: nothing is normalised here."""
        return x.new_ones(x.shape[:-1])

    def to_read(self, site: int, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the stream itself."""
        return x

    @contextlib.contextmanager
    def adding(self, site: int, delta: Float[Tensor, "batch pos d_model"]) -> Iterator[None]:
        """Add to the stream at a site inside a `with` block."""
        before, self._added = self._added, (site, delta)
        try:
            yield
        finally:
            self._added = before


def on_stream(bridge: Bridge) -> Bridge:
    """Return the bridge with its dense model seen so, and with divisors of 1 for it."""
    return dataclasses.replace(bridge, dense=StreamView(bridge.dense), rms=tuple((s, 1.0) for s, _ in bridge.rms))
