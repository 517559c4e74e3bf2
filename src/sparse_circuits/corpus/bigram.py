"""Bigram counts: the start of a model's bigram table, and the baseline that a model must beat."""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.corpus.shards import Batches, Corpus

SMOOTHINGS = (0.3, 1.0, 3.0, 10.0, 30.0)
"""Weights of the unigram distribution that the baseline tries."""

N_COUNTED = 1 << 22
"""Tokens of a shard that are counted at a time."""


@dataclasses.dataclass(frozen=True)
class BigramCounts:
    """How often each token followed each other. Only pairs that occurred are kept, so the vocabulary may be large."""

    n_vocab: int
    """Tokens."""

    pairs: Int[np.ndarray, " pair"]
    """current · n_vocab + following of each pair that occurred, rising."""

    counts: Float[np.ndarray, " pair"]
    """Counts, or counts weighted by source."""

    @classmethod
    def of(cls, rows: Int[np.ndarray, "row pos"], n_vocab: int) -> "BigramCounts":
        """Count the pairs within rows."""
        codes = rows[:, :-1].astype(np.int64) * n_vocab + rows[:, 1:]
        pairs, counts = np.unique(codes, return_counts=True)
        return cls(n_vocab, pairs, counts.astype(np.float64))

    @classmethod
    def sum_of(cls, parts: Iterable["BigramCounts"], n_vocab: int) -> "BigramCounts":
        """Add counts up."""
        found = cls(n_vocab, np.zeros(0, np.int64), np.zeros(0))
        for part in parts:
            pairs, place = np.unique(np.concatenate((found.pairs, part.pairs)), return_inverse=True)
            found = cls(n_vocab, pairs, np.bincount(place, weights=np.concatenate((found.counts, part.counts))))
        return found

    def times(self, weight: float) -> "BigramCounts":
        """Return all counts times a weight."""
        return dataclasses.replace(self, counts=self.counts * weight)

    @functools.cached_property
    def _unigram(self) -> Float[Tensor, " following"]:
        """The unigram distribution, half a count added to each token, so that nothing is impossible."""
        unigram = np.bincount(self.pairs % self.n_vocab, weights=self.counts, minlength=self.n_vocab) + 0.5
        return torch.from_numpy(unigram / unigram.sum())

    @functools.cached_property
    def _n_after(self) -> Float[Tensor, " current"]:
        n_after = np.bincount(self.pairs // self.n_vocab, weights=self.counts, minlength=self.n_vocab)
        return torch.from_numpy(n_after)

    def after(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token following"]:
        """Return the counts of what followed each of some tokens."""
        current = tokens.numpy().astype(np.int64)
        start = np.searchsorted(self.pairs, current * self.n_vocab)
        length = np.searchsorted(self.pairs, (current + 1) * self.n_vocab) - start
        row = np.repeat(np.arange(len(current)), length)
        place = np.arange(len(row)) + np.repeat(start - (np.cumsum(length) - length), length)
        found = np.zeros((len(current), self.n_vocab))
        found[row, self.pairs[place] % self.n_vocab] = self.counts[place]
        return torch.from_numpy(found)

    def log_probability_after(
        self, tokens: Int[Tensor, " token"], smoothing: float
    ) -> Float[Tensor, "token following"]:
        """Return log((count + smoothing · unigram) / (count of the token + smoothing)), in nats."""
        n_after = self._n_after[tokens, None]
        return ((self.after(tokens) + smoothing * self._unigram) / (n_after + smoothing)).log().float()

    def log_probability(self, smoothing: float) -> Float[Tensor, "current following"]:
        """Return the whole table of these logarithms."""
        return self.log_probability_after(torch.arange(self.n_vocab), smoothing)

    def loss(self, windows: Int[Tensor, "window context"], smoothing: float) -> float:
        """Return the mean loss in nats over the windows' transitions."""
        current, following = windows[:, :-1].flatten().long(), windows[:, 1:].flatten().long()
        codes = (current * self.n_vocab + following).numpy()
        first, last = (np.searchsorted(self.pairs, codes, side=side) for side in ("left", "right"))
        count = torch.from_numpy(np.append(self.counts, 0.0)[np.where(last > first, first, len(self.counts))])
        share = (count + smoothing * self._unigram[following]) / (self._n_after[current] + smoothing)
        return float(-share.log().float().double().mean())

    def best_loss(self, windows: Int[Tensor, "window context"]) -> float:
        """Return the lowest loss over `SMOOTHINGS`: the baseline is given its best smoothing, on these very tokens."""
        return min(self.loss(windows, smoothing) for smoothing in SMOOTHINGS)


def count_corpus(corpus: Corpus, sources: list[str]) -> BigramCounts:
    """Count the training shards whole, each source weighted alike, whatever its length.

    Weighted by its share of the training tokens, the smaller source is drowned where both go on from a token; short
    runs then ended with a higher loss on both.
    """
    n_vocab = corpus.tokenizer.n_vocab
    tokens = [np.asarray(corpus.tokens(name, "train")) for name in sources]
    mean_length = sum(map(len, tokens)) / len(tokens)
    parts = (
        BigramCounts.of(found[start : start + N_COUNTED + 1][None], n_vocab).times(mean_length / len(found))
        for found in tokens
        for start in range(0, len(found) - 1, N_COUNTED)
    )
    return BigramCounts.sum_of(parts, n_vocab)


def count_batches(batches: Batches, n_vocab: int) -> dict[str, BigramCounts]:
    """Count just the tokens that a run trains on, by source."""
    found = {name: BigramCounts.sum_of((), n_vocab) for name in batches.names}
    for start in range(0, batches.n_step, 256):
        steps = range(start, min(start + 256, batches.n_step))
        rows = np.concatenate([batches(step).numpy() for step in steps])
        source = batches.source_of_row[start * batches.batch_size :][: len(rows)]
        for number, name in enumerate(batches.names):
            found[name] = BigramCounts.sum_of((found[name], BigramCounts.of(rows[source == number], n_vocab)), n_vocab)
    return found


def baseline_losses(
    counts: dict[str, BigramCounts], source: str, windows: Int[Tensor, "window context"]
) -> tuple[float, float]:
    """Return what count tables of a run's own tokens reach on held-out windows of a source, each at its best smoothing.

    Returns:
        The loss of the table of all tokens, as the model has to predict them; and of one of this source's tokens alone,
        which is told the source, in nats a token.
    """
    together = BigramCounts.sum_of(counts.values(), counts[source].n_vocab)
    return together.best_loss(windows), counts[source].best_loss(windows)
