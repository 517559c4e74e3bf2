"""Byte-level BPE with the release's pre-tokenisation pattern: train, load, encode, decode."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sparse_circuits.errors import FormatError
from sparse_circuits.files import read_json, written_whole

PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How text is cut before merging: words take one mark before them, marks take the newlines after them."""

END_OF_TEXT = "<|endoftext|>"
"""The last token; it stands after every document."""

ENDS_OF_TEXT = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")
"""What it is called in tokenizers of others (GPT-2 and Qwen, Llama 2, Llama 3, Gemma)."""


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, bpe: tokenizers.Tokenizer) -> None:
        bpe.encode_special_tokens = True  # text that spells the end of text is text
        self._bpe = bpe
        self.n_vocab = bpe.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], n_vocab: int) -> "Tokenizer":
        """Learn merges from `texts`; the vocabulary is the 256 bytes, the merges, and the end of text last."""
        bpe = tokenizers.Tokenizer(models.BPE())
        split = pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])  # pyright: ignore
        bpe.decoder = decoders.ByteLevel()  # pyright: ignore
        trainer = trainers.BpeTrainer(
            vocab_size=n_vocab - 1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        bpe.add_special_tokens([END_OF_TEXT])
        return cls(bpe)

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Read a `tokenizer.json`.

        Raises:
            FormatError: The file is missing or not a tokenizer, or its merges make tokens that have no id.
        """
        try:
            model = read_json(Path(path)).get("model")
        except FormatError as error:
            raise FormatError(f"{path}: not a tokenizer ({error})") from None
        if isinstance(model, dict):
            _check_merges(model, str(path))
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise FormatError(f"{path}: not a tokenizer ({error})") from None

    def save(self, path: Path | str) -> None:
        """Write a `tokenizer.json`, whole or not at all."""
        with written_whole(Path(path)) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """Return what a `tokenizer.json` holds."""
        return self._bpe.to_str()

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; the end of text never comes from text.

        Raises:
            FormatError: It holds a lone surrogate, as an argument that is no UTF-8 does.
        """
        _refuse_half_characters(text)
        return self._bpe.encode(text, add_special_tokens=False).ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts in parallel; raises as `encode` does."""
        for text in texts:
            _refuse_half_characters(text)
        return [e.ids for e in self._bpe.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 show as replacement characters."""
        return self._bpe.decode(list(ids), skip_special_tokens=False)

    def token(self, text: str) -> int | None:
        """Return the id of `text` if it is exactly one token, else None."""
        ids = self.encode(text)
        return ids[0] if len(ids) == 1 else None

    def show(self, token: int) -> str:
        """Return one token as text, newlines and tabs written out."""
        return self.decode([token]).replace("\n", "\\n").replace("\t", "\\t")

    def means_the_same(self, other: "Tokenizer") -> bool:
        """Say whether both cut every text into the same ids, as far as their definitions tell."""
        return self._bpe.to_str() == other._bpe.to_str()

    @property
    def end_of_text(self) -> int:
        """Id of the end of text.

        Raises:
            FormatError: The tokenizer has no token of such a name.
        """
        for name in ENDS_OF_TEXT:
            if (token := self._bpe.token_to_id(name)) is not None:
                return token
        raise FormatError(f"the tokenizer has no end of text: none of {', '.join(ENDS_OF_TEXT)} is one of its tokens")

    @property
    def end_of_text_name(self) -> str:
        """What this tokenizer calls the end of text, one of `ENDS_OF_TEXT`; raises as `end_of_text` does."""
        end = self.end_of_text
        return next(name for name in ENDS_OF_TEXT if self._bpe.token_to_id(name) == end)


def _refuse_half_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise FormatError(f"{around!r} holds half a character (a lone surrogate)") from None


def _check_merges(model: dict[str, Any], where: str) -> None:
    """Refuse a merge whose result has no id, of which the library dies; what else is wrong it says itself."""
    ids, prefix = model.get("vocab"), model.get("continuing_subword_prefix")
    merges = model.get("merges")
    if not isinstance(ids, dict) or not isinstance(merges, list):
        return
    n_prefix = len(prefix) if isinstance(prefix, str) else 0
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise FormatError(f"{where}: not a tokenizer (the merge {merge!r:.60} is no pair of tokens)")
        if pair[0] not in ids or pair[1] not in ids or pair[0] + pair[1][n_prefix:] not in ids:
            raise FormatError(f"{where}: the merge {merge!r:.60} makes no token that has an id")
