"""Make a corpus that the tasks can be held to: no document has a piece of a prompt of level ii."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sparse_circuits.configs import CorpusConfig
from sparse_circuits.corpus import shards
from sparse_circuits.corpus.grams import hash_grams
from sparse_circuits.tasks import BEHAVIOURS
from sparse_circuits.tasks.sampling import unseen_pairs
from sparse_circuits.tokenizer import Tokenizer


def build_corpus(
    config: CorpusConfig,
    out: Path | str,
    *,
    tokenizer: Tokenizer | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> shards.Corpus:
    """Read the sources, train the tokenizer, write the shards.

    Documents that share 13 tokens in a row with a task's prompt of `test`, level ii, seed 0 are not trained on; their
    number is `n_leaking` of a source in `index.json`. Ours, so that level ii asks for what was not read.

    Args:
        config: Sources and sizes.
        out: Folder to write.
        tokenizer: One to use as it is, such as a dense model's, in place of a new one; of `config.n_vocab` tokens.
        on_step: Called with a sentence at each stage.

    Raises:
        CorpusError: A source is missing, empty or too short.
        OutputExistsError: `out` already holds a finished corpus.
    """

    def kept_out(made: Tokenizer) -> np.ndarray:
        on_step("drawing the prompts that are kept out")
        return unseen_grams(made)

    return shards.build(config, out, tokenizer=tokenizer, kept_out=kept_out, on_step=on_step)


def unseen_grams(tokenizer: Tokenizer, *, seed: int = 0) -> np.ndarray:
    """Return the sorted hashes of all 13 tokens in a row of the prompts of `test`, level ii, of every task."""
    found = [np.zeros(0, dtype=np.uint64)]
    for behaviour in BEHAVIOURS.values():
        pairs = unseen_pairs(behaviour, tokenizer, seed=seed)
        for prompts, length in zip(pairs.tokens.numpy(), pairs.length.tolist(), strict=True):
            found.append(hash_grams(prompts[:, :length]).reshape(-1))
    return np.unique(np.concatenate(found))
