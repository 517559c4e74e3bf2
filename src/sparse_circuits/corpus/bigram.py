"""Bigram count tables: the start of a model's bigram table, and the baseline that a model must beat."""

import dataclasses

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_circuits.corpus.shards import Batches, Corpus

SMOOTHINGS = (0.3, 1.0, 3.0, 10.0, 30.0)
"""Weights of the unigram distribution that the baseline tries."""


@dataclasses.dataclass(frozen=True)
class BigramCounts:
    """How often each token followed each other."""

    counts: Float[Tensor, "current following"]
    """Counts, or counts weighted by source."""

    def log_probability(self, smoothing: float) -> Float[Tensor, "current following"]:
        """Return log((count + smoothing · unigram) / (row sum + smoothing)), in nats.

        The unigram distribution has half a count added to each token, so that nothing is impossible.
        """
        unigram = self.counts.sum(0) + 0.5
        unigram = unigram / unigram.sum()
        rows = self.counts.sum(1, keepdim=True)
        return ((self.counts + smoothing * unigram) / (rows + smoothing)).log().float()

    def loss(self, windows: Int[Tensor, "window context"], smoothing: float) -> float:
        """Return the mean loss in nats over the windows' transitions."""
        return float(-self.log_probability(smoothing)[windows[:, :-1], windows[:, 1:]].double().mean())

    def best_loss(self, windows: Int[Tensor, "window context"]) -> float:
        """Return the lowest loss over `SMOOTHINGS`: the baseline is given its best smoothing, on these very tokens."""
        return min(self.loss(windows, smoothing) for smoothing in SMOOTHINGS)


def count_corpus(corpus: Corpus, sources: list[str]) -> BigramCounts:
    """Count the training shards whole, each source weighted alike, whatever its length.

    Weighted by its share of the training tokens, the smaller source is drowned where both go on from a token; short
    runs then ended with a higher loss on both.
    """
    n_vocab = corpus.tokenizer.n_vocab
    total = torch.zeros(n_vocab, n_vocab, dtype=torch.float64)
    tokens = {name: np.asarray(corpus.tokens(name, "train")) for name in sources}
    mean_length = sum(len(t) for t in tokens.values()) / len(tokens)
    for found in tokens.values():
        total += _count(found[None], n_vocab) * (mean_length / len(found))
    return BigramCounts(total)


def count_batches(batches: Batches, n_vocab: int) -> dict[str, BigramCounts]:
    """Count just the tokens that a run trains on, by source."""
    totals = {name: torch.zeros(n_vocab, n_vocab, dtype=torch.float64) for name in batches.names}
    for start in range(0, batches.n_step, 256):
        steps = range(start, min(start + 256, batches.n_step))
        rows = np.concatenate([batches(step).numpy() for step in steps])
        source = batches.source_of_row[start * batches.batch_size :][: len(rows)]
        for number, name in enumerate(batches.names):
            totals[name] += _count(rows[source == number], n_vocab)
    return {name: BigramCounts(total) for name, total in totals.items()}


def baseline_losses(
    counts: dict[str, BigramCounts], source: str, windows: Int[Tensor, "window context"]
) -> tuple[float, float]:
    """Return what count tables of a run's own tokens reach on held-out windows of a source, each at its best smoothing.

    Returns:
        The loss of the table of all tokens, as the model has to predict them; and of one of this source's tokens alone,
        which is told the source, in nats a token.
    """
    together = BigramCounts(sum((c.counts for c in counts.values()), torch.zeros(())))
    return together.best_loss(windows), counts[source].best_loss(windows)


def _count(rows: np.ndarray, n_vocab: int) -> Tensor:
    pairs = rows[:, :-1].astype(np.int64) * n_vocab + rows[:, 1:]
    counts = np.bincount(pairs.ravel(), minlength=n_vocab**2)
    return torch.from_numpy(counts.astype(np.float64).reshape(n_vocab, n_vocab))
