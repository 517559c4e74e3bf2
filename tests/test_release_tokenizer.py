"""The release's tokenizer files: there and back, and what is said of wrong ones."""

import itertools
import json
from pathlib import Path

import pytest

import sparse_circuits as sc
from sparse_circuits.errors import FormatError
from sparse_circuits.formats import release_tokenizer
from sparse_circuits.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="session")
def example_tokenizer():
    return Tokenizer.load(sc.example("tokenizer.json"))


def test_the_releases_tokenizer_files_hold_our_tokenizer(example_tokenizer, tmp_path):
    release_tokenizer.save(example_tokenizer, tmp_path)
    opened = release_tokenizer.load(tmp_path)
    text = Path(__file__).read_text() + "é日本 \t\r\n 12345 <|endoftext|>"
    assert opened.encode(text) == example_tokenizer.encode(text)
    assert opened.decode(opened.encode(text)) == text
    assert opened.end_of_text == example_tokenizer.end_of_text
    encoder = json.loads((tmp_path / "encoder.json").read_text())
    assert encoder["!"] == 0
    assert encoder.pop("<|endoftext|>") == example_tokenizer.n_vocab - 1
    (tmp_path / "encoder.json").write_text(json.dumps(encoder))
    assert release_tokenizer.load(tmp_path).n_vocab == example_tokenizer.n_vocab


def plain_bpe(piece, ranks):
    """Merge the pair of lowest rank until none is left, as the release's library does it."""
    if piece in ranks:
        return [ranks[piece]]
    parts = list(piece)
    while True:
        pairs = [(ranks.get(a + b, 10**9), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        best, i = min(pairs, default=(10**9, 0))
        if best == 10**9:
            return [ranks[part] for part in parts]
        parts[i : i + 2] = ["".join(parts[i : i + 2])]


def test_the_releases_tokenizer_merges_by_rank(example_tokenizer, tmp_path):
    release_tokenizer.save(example_tokenizer, tmp_path)
    opened = release_tokenizer.load(tmp_path)
    ranks = json.loads((tmp_path / "encoder.json").read_text())
    for word in ("self", "heapq", "xyzzy", "aaaa", "returns", "enumerate"):
        assert opened.encode(word) == plain_bpe(word, ranks)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("encoder.json", lambda text: text[:-9], "not a whole JSON file"),
        ("encoder.json", lambda text: text.replace('"!": 0', '"!": 1'), "the ids are not the numbers from 0"),
        ("encoder.json", lambda text: text.replace('"!": 0', '"!": "0"'), "the ids are not the numbers"),
        ("encoder.json", lambda text: text.replace('"!": 0', '"!!!!": 0'), "1 of the 256 single bytes have no id"),
        ("vocab.bpe", lambda text: text[: len(text) // 2].rsplit("\n", 1)[0], "has .* merges, encoder.json makes it"),
        ("vocab.bpe", lambda text: text + "! nowhere", "line .* merges '! nowhere', which makes no token"),
    ],
)
def test_damaged_tokenizer_files_are_named(name, change, message, example_tokenizer, tmp_path):
    release_tokenizer.save(example_tokenizer, tmp_path)
    (tmp_path / name).write_text(change((tmp_path / name).read_text()))
    with pytest.raises(FormatError, match=message):
        release_tokenizer.load(tmp_path)


def test_a_merge_without_an_id_is_refused_before_the_library_dies_of_it(example_tokenizer, tmp_path):
    data = json.loads(example_tokenizer.to_json())
    left, right = data["model"]["merges"][-1]
    del data["model"]["vocab"][left + right]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(FormatError, match="makes no token that has an id"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    data["model"]["merges"][-1] = [left]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(FormatError, match="is no pair of tokens"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_tokenizer_of_another_vocabulary_is_refused(release_folder, example_tokenizer):
    release_tokenizer.save(example_tokenizer, release_folder)
    with pytest.raises(FormatError, match=r"tokenizer has .* tokens, the model's vocabulary 72"):
        sc.load(release_folder)


# Packed copies
