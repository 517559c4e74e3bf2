"""The release's tokenizer files: `encoder.json` (ids of tokens) and `vocab.bpe` (merges in order)."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from sparse_circuits.errors import FormatError
from sparse_circuits.files import read_json, written_whole
from sparse_circuits.tokenizer import END_OF_TEXT, PATTERN, Tokenizer

ENCODER_NAME, MERGES_NAME = "encoder.json", "vocab.bpe"
_HEADER = "#version: 0.2"


def is_there(folder: Path) -> bool:
    """Say whether the folder has both files."""
    return (folder / ENCODER_NAME).exists() and (folder / MERGES_NAME).exists()


def load(folder: Path) -> Tokenizer:
    """Open the release's tokenizer. The end of text is the last id, also where `encoder.json` leaves it out.

    A piece of text that is a token as a whole is that token, whatever the merges say, as in the release's library.

    Raises:
        FormatError: A file is missing or truncated, or ids and merges don't fit each other.
    """
    path = folder / ENCODER_NAME
    ids = read_json(path)
    n_text = len(ids) - (END_OF_TEXT in ids)
    if not all(type(i) is int for i in ids.values()) or set(ids.values()) != set(range(len(ids))):
        raise FormatError(f"{path}: the ids are not the numbers from 0 to {len(ids) - 1}, one each")
    if ids.setdefault(END_OF_TEXT, n_text) != n_text:
        raise FormatError(f"{path}: {END_OF_TEXT} has id {ids[END_OF_TEXT]}, expected the last one, {n_text}")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    missing = [byte for byte in alphabet if byte not in ids]
    if missing:
        raise FormatError(f"{path}: {len(missing)} of the 256 single bytes have no id")
    merges = _read_merges(folder / MERGES_NAME, ids)
    vocabulary = {token: i for token, i in ids.items() if token != END_OF_TEXT}
    bpe = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])  # pyright: ignore
    bpe.decoder = decoders.ByteLevel()  # pyright: ignore
    bpe.add_special_tokens([END_OF_TEXT])
    return Tokenizer(bpe)


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files.

    Raises:
        FormatError: The tokenizer's ids don't follow the order of its merges, the end of text last.
    """
    model = json.loads(tokenizer.to_json())["model"]
    ids, merges = model.get("vocab"), model.get("merges", [])
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    in_order = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    if model.get("type") != "BPE" or [ids.get(token) for token in in_order] != list(range(tokenizer.n_vocab - 1)):
        raise FormatError("the tokenizer's ids don't follow the order of its merges; the release's files can't hold it")
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: i for i, token in enumerate(in_order)} | {END_OF_TEXT: tokenizer.end_of_text}
    for name, text in (
        (ENCODER_NAME, json.dumps(ids)),
        (MERGES_NAME, "\n".join([_HEADER, *(" ".join(merge) for merge in merges), ""])),
    ):
        with written_whole(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _read_merges(path: Path, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Return the pairs of tokens that are merged, in order; each must make a token out of tokens."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: can't be read as text ({error})") from None
    merges = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise FormatError(f"{path}: line {number} merges {line!r:.60}, which makes no token of {ENCODER_NAME}")
        merges.append((left, right))
    n_expected = len(ids) - 1 - 256
    if len(merges) != n_expected:
        raise FormatError(f"{path}: has {len(merges)} merges, {ENCODER_NAME} makes it {n_expected}; one is truncated")
    return merges
