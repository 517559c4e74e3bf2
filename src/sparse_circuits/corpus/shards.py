"""A corpus on disk: uint16 token shards by source and split, the tokenizer, and an index with hashes."""

import array
import dataclasses
import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sparse_circuits.configs import CorpusConfig
from sparse_circuits.corpus import idioms, python_files, text_files
from sparse_circuits.corpus.grams import hash_grams, is_among
from sparse_circuits.errors import CorpusError
from sparse_circuits.files import (
    is_done,
    mark_done,
    read_json,
    refuse_finished,
    sha256_of_json,
    write_json,
    written_whole,
)
from sparse_circuits.tokenizer import Tokenizer

FORMAT, VERSION = "sparse-circuits corpus", 1
BYTES_PER_TOKEN = 4.0
"""A safe guess at how much text a token takes, for reading no more than needed."""

MAX_CHARACTER = 200_000
"""Longer files are tables or generated, and would fill a split by themselves; they are left out and counted."""

GOLDEN_RATIO = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, fill [0, 1) evenly."""


@dataclasses.dataclass
class _Source:
    name: str
    version: str
    documents: list[str]
    n_undecodable: int = 0
    n_duplicate: int = 0
    n_too_long: int = 0


def build(
    config: CorpusConfig,
    out: Path | str,
    *,
    tokenizer: Tokenizer | None = None,
    kept_out: Callable[[Tokenizer], np.ndarray] = lambda _: np.zeros(0, dtype=np.uint64),
    on_step: Callable[[str], None] = lambda _: None,
) -> "Corpus":
    """Read the sources, train the tokenizer, write the shards.

    Args:
        config: Sources and sizes.
        out: Folder to write.
        tokenizer: One to use as it is, such as a dense model's, in place of a new one; of `config.n_vocab` tokens.
        kept_out: Gives the sorted hashes of 13 tokens in a row (`grams`) that no document may have that is trained on;
            such documents are left out and counted.
        on_step: Called with a sentence at each stage.

    Raises:
        CorpusError: A source is missing, empty or too short.
        OutputExistsError: `out` already holds a finished corpus.
    """
    out = Path(out)
    refuse_finished(out, "corpus")
    sources = []
    seen: set[str] = set()
    for name in config.sources:
        on_step(f"reading {name}")
        sources.append(_read_source(name, config, seen))
    if tokenizer is None:
        on_step("training the tokenizer")
        tokenizer = Tokenizer.train(_tokenizer_texts(sources, config), config.n_vocab)
    if tokenizer.n_vocab != config.n_vocab:
        raise CorpusError(
            f"the sources' text gives only {tokenizer.n_vocab} tokens, expected n_vocab {config.n_vocab}; "
            "add text or lower n_vocab"
        )
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out / "tokenizer.json")
    grams = kept_out(tokenizer)
    described = {}
    for source in sources:
        on_step(f"tokenising {source.name}")
        described[source.name] = _write_shards(source, tokenizer, grams, config, out)
    index = {"format": FORMAT, "version": VERSION, "config": config.to_json(), "sources": described}
    index["tokenizer_sha256"] = hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest()
    index["hash"] = sha256_of_json(index)
    write_json(out / "index.json", index)
    mark_done(out)
    return Corpus(out)


class Corpus:
    """A finished corpus: memory-mapped shards, tokenizer and index.

    Raises:
        CorpusError: The folder holds no finished corpus.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not is_done(self.folder):
            raise CorpusError(f"{self.folder}: no finished corpus; make one with `sparse-circuits corpus`")
        self.index = read_json(self.folder / "index.json", expect=FORMAT, version=VERSION)
        self.tokenizer = Tokenizer.load(self.folder / "tokenizer.json")
        self.hash: str = self.index["hash"]

    @property
    def sources(self) -> list[str]:
        """Names of the sources."""
        return list(self.index["sources"])

    def tokens(self, source: str, split: str) -> np.ndarray:
        """Return a shard as a read-only uint16 memory map.

        Raises:
            CorpusError: The shard is not of the size that the index says.
        """
        if source not in self.sources:
            raise CorpusError(f"{self.folder} has no source {source!r}; it has {', '.join(self.sources)}")
        path = self.folder / _shard_name(source, split)
        expected = self.index["sources"][source]["n_token"][split]
        if not path.exists() or path.stat().st_size != 2 * expected:
            raise CorpusError(f"{path}: missing or truncated, expected {2 * expected} bytes")
        return np.memmap(path, dtype=np.uint16, mode="r")

    def documents(self, source: str, split: str) -> Iterator[list[int]]:
        """Yield the documents of a shard as token ids, without the end of text."""
        tokens = self.tokens(source, split)
        start = 0
        for stop in np.flatnonzero(tokens == self.tokenizer.end_of_text):
            yield tokens[start:stop].tolist()
            start = int(stop) + 1

    def windows(self, source: str, split: str, *, context: int, n_token: int) -> Int[Tensor, "window context"]:
        """Return the first `n_token` tokens of a shard, or all if there are fewer, cut into whole windows.

        Raises:
            CorpusError: The shard is shorter than one window.
        """
        tokens = self.tokens(source, split)
        n_window = min(len(tokens), max(n_token, context)) // context
        if n_window == 0:
            raise CorpusError(
                f"{self.folder}: {split} of {source} has {len(tokens)} tokens, less than one context of {context}"
            )
        return torch.from_numpy(tokens[: n_window * context].astype(np.int64).reshape(n_window, context))


class Batches:
    """Training batches: a pure function of the step, so that a run resumes exactly.

    Each source is cut into windows of `context` tokens, visited in an order drawn anew each epoch. Rows go to the
    sources in proportion to their shares, evenly spread: row g to the one in whose share frac(g · golden ratio) falls.

    Args:
        corpus: Where the tokens are.
        shares: Share of the rows by source.
        context: Tokens a row.
        batch_size: Rows a step.
        n_step: Steps that will be asked for; a longer run begins with the same batches.
        seed: Decides the order.

    Raises:
        CorpusError: A share names no source, or a source is shorter than one context.
    """

    def __init__(
        self, corpus: Corpus, *, shares: dict[str, float], context: int, batch_size: int, n_step: int, seed: int
    ) -> None:
        self.context, self.batch_size, self.n_step, self.seed = context, batch_size, n_step, seed
        for name in shares:
            if name not in corpus.sources:
                raise CorpusError(f"{corpus.folder} has no source {name!r}; it has {', '.join(corpus.sources)}")
        self.names = list(shares)
        self.tokens = [corpus.tokens(name, "train") for name in shares]
        for name, tokens in zip(shares, self.tokens, strict=True):
            if len(tokens) < context:
                raise CorpusError(
                    f"{corpus.folder}: source {name} has {len(tokens)} training tokens, "
                    f"less than one context of {context}"
                )
        place = np.arange(n_step * batch_size) * GOLDEN_RATIO % 1.0
        edges = np.cumsum(list(shares.values()))[:-1]
        self.source_of_row = np.searchsorted(edges, place, side="right")
        self.rank_of_row = np.zeros(len(place), dtype=np.int64)
        for source in range(len(shares)):
            is_its = self.source_of_row == source
            self.rank_of_row[is_its] = np.arange(is_its.sum())
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, step: int) -> Int[Tensor, "batch context"]:
        """Return the batch of a step, in [0, n_step)."""
        rows = range(step * self.batch_size, (step + 1) * self.batch_size)
        windows = [self._window(int(self.source_of_row[g]), int(self.rank_of_row[g])) for g in rows]
        return torch.from_numpy(np.stack(windows).astype(np.int64))

    def _window(self, source: int, rank: int) -> np.ndarray:
        n_window = len(self.tokens[source]) // self.context
        epoch, place = divmod(rank, n_window)
        if (source, epoch) not in self._orders:
            rng = np.random.default_rng([self.seed, source, epoch])
            self._orders[source, epoch] = rng.permutation(n_window)
        start = int(self._orders[source, epoch][place]) * self.context
        return self.tokens[source][start : start + self.context]


def _read_source(name: str, config: CorpusConfig, seen: set[str]) -> _Source:
    """Read a source's documents in an order that the seed decides, about as many as will be needed.

    Texts that are in `seen`, in this source or one before it, are left out, so that none is both trained on and held
    out; what is read is added to it.
    """
    n_byte = int(config.max_token * BYTES_PER_TOKEN / (1 - config.validation_frac))
    if name == "idioms":
        version = f"idioms {idioms.VERSION}, seed {config.seed}"
        return _Source(name, version, _take(idioms.documents(seed=config.seed), n_byte))
    if name == "stdlib":
        files = python_files.standard_library()
    elif name.startswith("dist:"):
        files = python_files.distribution(name.removeprefix("dist:"))
    else:
        files = text_files.folder(Path(name))
    paths = list(files.paths)
    random.Random(f"{config.seed}:{name}").shuffle(paths)
    source = _Source(name, files.version, [])

    def texts() -> Iterator[str]:
        for path in paths:
            text = text_files.read(path)
            if text is None:
                source.n_undecodable += 1
            elif text.strip():
                if text in seen:
                    source.n_duplicate += 1
                    continue
                if len(text) > MAX_CHARACTER:
                    source.n_too_long += 1
                    continue
                seen.add(text)
                yield text

    source.documents = _take(texts(), n_byte)
    if len(source.documents) < 2:
        raise CorpusError(
            f"source {name}: {len(source.documents)} readable documents ({source.n_undecodable} undecodable), "
            "expected at least 2, one to train on and one held out"
        )
    return source


def _take(texts: Iterator[str], n_byte: int) -> list[str]:
    taken, size = [], 0
    for text in texts:
        taken.append(text)
        size += len(text)
        if size >= n_byte:
            break
    return taken


def _split_documents(source: _Source, config: CorpusConfig) -> dict[str, list[str]]:
    n_validation = max(1, round(config.validation_frac * len(source.documents)))
    return {"validation": source.documents[:n_validation], "train": source.documents[n_validation:]}


def _tokenizer_texts(sources: list[_Source], config: CorpusConfig) -> Iterator[str]:
    """Yield training documents, each source up to the same size."""
    share = config.n_tokenizer_byte // len(sources)
    return itertools.chain.from_iterable(
        _take(iter(_split_documents(source, config)["train"]), share) for source in sources
    )


def _write_shards(
    source: _Source, tokenizer: Tokenizer, grams: np.ndarray, config: CorpusConfig, out: Path
) -> dict[str, Any]:
    """Tokenise both splits; return the source's entry in the index."""
    entry: dict[str, Any] = {
        "version": source.version,
        "n_undecodable": source.n_undecodable,
        "n_duplicate": source.n_duplicate,
        "n_too_long": source.n_too_long,
        "n_leaking": 0,
        "n_document": {},
        "n_token": {},
        "sha256": {},
    }
    for split, documents in _split_documents(source, config).items():
        tokens, n_document = array.array("H"), 0
        for start in range(0, len(documents), 512):
            for ids in tokenizer.encode_many(documents[start : start + 512]):
                if len(tokens) >= config.max_token:
                    break
                if split == "train" and is_among(hash_grams(np.array(ids, dtype=np.uint16)), grams).any():
                    entry["n_leaking"] += 1
                    continue
                tokens.extend(ids)
                tokens.append(tokenizer.end_of_text)
                n_document += 1
        data = tokens.tobytes()
        with written_whole(out / _shard_name(source.name, split)) as temporary:
            temporary.write_bytes(data)
        entry["n_document"][split] = n_document
        entry["n_token"][split] = len(tokens)
        entry["sha256"][split] = hashlib.sha256(data).hexdigest()
    return entry


def _shard_name(source: str, split: str) -> str:
    """Name a shard; a folder's path is told by its hash."""
    plain = source if re.fullmatch(r"[\w.:-]+", source) else hashlib.sha256(source.encode()).hexdigest()[:12]
    return f"{plain.replace(':', '-')}.{split}.u16"
