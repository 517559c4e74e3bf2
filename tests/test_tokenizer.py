"""Tests of the tokenizer: nothing is lost, the end of text is never text, and marks keep their newlines.

`tests/golden/tokenizer.json` holds texts and their ids under the tokenizer trained here. It is written anew, after a
change that is meant to give other tokens, by `python tests/test_tokenizer.py`.
"""

import json
from pathlib import Path

import pytest
import tokenizers
import tokenizers.models
import tokenizers.trainers
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_circuits.corpus.idioms import documents
from sparse_circuits.errors import FormatError
from sparse_circuits.tokenizer import END_OF_TEXT, Tokenizer

GOLDEN = Path(__file__).parent / "golden" / "tokenizer.json"

# Fixed input, so that the golden ids depend on the tokenizer alone and not on the idiom generator.
TRAINING_TEXTS = [
    f"def {verb}_{noun}(self, {noun}, limit=None):\n"
    f'    """{verb.capitalize()} the {noun}."""\n'
    f"    if {noun} is None:\n        return [[1, 2, {number}]]\n"
    f"    values = [[{number}, {number + 7}]]\n    rows = set()\n"
    f"    for item in {noun}s:\n        rows.add(item)\n"
    f"    print(\"{noun} is {verb}\")\n    self.{noun} = {noun}\n    print('done')\n    return rows\n"
    for number, verb in enumerate(("read", "write", "check", "update", "remove", "print", "count"))
    for noun in ("name", "value", "path", "index", "count", "user", "file", "line")
]

GOLDEN_TEXTS = [
    "",
    " ",
    "\n",
    "\t\n",
    "    ",
    "a",
    "def",
    " def",
    "return",
    "self.name",
    "self.name = name\n",
    "set()",
    "set()\n",
    "rows = set()\n",
    "):\n",
    "):\n    return",
    "]]\n",
    "]\n",
    "[[1, 2",
    "[1, 2, 3]\n",
    "values = [[5, 3, 11]]\n",
    '("name is read")\n',
    "('done')\n",
    '"',
    "'",
    '""\n',
    "1",
    "12",
    "123",
    "1234",
    "1234567",
    "3.14159",
    "x1y2",
    "def read_name(self, name):\n    return name\n",
    "class Node:\n    def __init__(self):\n        pass\n",
    "for item in items:\n        rows.add(item)\n",
    "if x is None:\n        return [[1]]\n",
    "\n\n\n",
    "\n\n    x",
    "   x",
    "x   ",
    "# comment // with /// slashes\n",
    "http://example.org/\n",
    "a\r\nb",
    "Größe",
    "naïve café",
    "日本語",
    "🙂 ok",
    "\u00a0\u2003wide spaces",
    "<|endoftext|>",
]


def trained_on_fixed_texts() -> Tokenizer:
    return Tokenizer.train(TRAINING_TEXTS, 400)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(documents(300, seed=0), 512)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer.encode(text)]


def test_the_vocabulary_is_as_large_as_asked(tokenizer: Tokenizer) -> None:
    assert tokenizer.n_vocab == 512
    assert tokenizer.end_of_text == 511
    assert tokenizer.decode([511]) == END_OF_TEXT


@settings(max_examples=200)
@given(text=st.text() | st.text(alphabet=st.sampled_from("ab1 \n\t\r\"'()[]:/<|>é\u2003")))
def test_any_text_comes_back_from_its_tokens(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.end_of_text for token in ids)


@settings(max_examples=50)
@given(before=st.text(max_size=5), after=st.text(max_size=5))
def test_the_end_of_text_never_comes_from_text_that_spells_it(tokenizer: Tokenizer, before: str, after: str) -> None:
    text = before + END_OF_TEXT + after
    ids = tokenizer.encode(text)
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_many([text, text]) == [ids, ids]


def test_half_a_character_is_no_text(tokenizer: Tokenizer) -> None:
    text = "a\ud800b"
    for encode in (tokenizer.encode, tokenizer.token, lambda text: tokenizer.encode_many(["whole", text])):
        with pytest.raises(FormatError, match=r"'a\\ud800b' holds half a character"):
            encode(text)
    assert tokenizer.encode("a\U0001f642b")


def test_text_full_of_ends_of_text_does_not_teach_it_as_a_word() -> None:
    tokenizer = Tokenizer.train([END_OF_TEXT * 50 + " words and more words"] * 5, 300)
    assert tokenizer.end_of_text not in tokenizer.encode(END_OF_TEXT)
    assert tokenizer.decode([tokenizer.end_of_text]) == END_OF_TEXT


@settings(max_examples=30)
@given(texts=st.lists(st.text(), max_size=4))
def test_many_texts_are_encoded_as_one_by_one(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_many(texts) == [tokenizer.encode(text) for text in texts]


def test_a_saved_tokenizer_comes_back_as_it_was(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.n_vocab == tokenizer.n_vocab
    for text in [*documents(20, seed=9), END_OF_TEXT, *GOLDEN_TEXTS]:
        assert loaded.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("text", [None, "", "{}", "not json", '{"version": "1.0", "mod'])
def test_a_file_that_is_no_tokenizer_is_refused_by_name(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(FormatError, match="not a tokenizer") as caught:
        Tokenizer.load(path)
    assert str(path) in str(caught.value)


def test_training_is_the_same_every_time(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "one.json")
    Tokenizer.train(list(documents(300, seed=0)), 512).save(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_a_token_is_told_from_a_text_of_several(tokenizer: Tokenizer) -> None:
    one = tokenizer.token(" return")
    assert one is not None
    assert tokenizer.decode([one]) == " return"
    assert tokenizer.token("set()") is None
    assert tokenizer.token("") is None


def test_marks_and_newlines_are_shown_in_one_line(tokenizer: Tokenizer) -> None:
    newline, tab = tokenizer.token("\n"), tokenizer.token("\t")
    assert newline is not None
    assert tab is not None
    assert tokenizer.show(newline) == "\\n"
    assert tokenizer.show(tab) == "\\t"


@pytest.mark.parametrize(
    ("text", "cut_after"),
    [
        # Where the pattern cuts, whatever the vocabulary: a word takes one mark before it, marks end where words begin.
        ("set()", "set"),
        ("rows = set()\n", "rows = set"),
        ("f(x)", "f"),
        ("path):\n", "path"),
        ('("Some text")\n', '("'),
        ('("Some text")\n', '("Some'),
        ('("Some text")\n', '("Some text'),
        ("[5, 3", "[5, "),
        ("[[5, 3, 11]]\n", "[[5, 3, 11"),
        ("1234", "123"),
        ("x = 5", "x = "),
        ("if x:\n    y", "if x:\n   "),
        ("self.name", "self"),
    ],
)
def test_the_pattern_cuts_between_words_and_marks(tokenizer: Tokenizer, text: str, cut_after: str) -> None:
    ids = tokenizer.encode(text)
    starts = {tokenizer.decode(ids[:n]) for n in range(len(ids))}
    assert cut_after in starts


@pytest.mark.parametrize("marks", ["):", "]]", "]", '")', "')", "()", ":", '""'])
def test_marks_and_the_newline_behind_them_are_cut_as_one_piece(marks: str) -> None:
    # A tokenizer that has seen nothing else makes them one token; so nothing but the merges can come between.
    tokenizer = Tokenizer.train([f"a{marks}\nb"] * 20, 300)
    assert tokenizer.token(f"{marks}\n") is not None
    assert pieces(tokenizer, f"x{marks}\ny") == ["x", f"{marks}\n", "y"]


def test_a_newline_after_words_stands_alone_and_indentation_leaves_one_space_to_the_word(tokenizer: Tokenizer) -> None:
    assert "\n" in pieces(tokenizer, "x = name\n    y")
    text = "    return value\n"
    assert pieces(tokenizer, text)[0] == "   "
    assert "".join(pieces(tokenizer, text)) == text


def test_numbers_are_at_most_three_digits_a_token(tokenizer: Tokenizer) -> None:
    assert all(len(piece) <= 3 for piece in pieces(tokenizer, "1234567890" * 3))
    assert tokenizer.decode(tokenizer.encode(" 12")[:1]) == " "


def test_the_tokens_of_fixed_texts_are_those_of_the_golden_file() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    tokenizer = trained_on_fixed_texts()
    assert len(GOLDEN_TEXTS) == 50
    assert golden["n_vocab"] == tokenizer.n_vocab == 400
    assert [entry["text"] for entry in golden["texts"]] == GOLDEN_TEXTS
    for entry in golden["texts"]:
        assert tokenizer.encode(entry["text"]) == entry["ids"], entry["text"]
        assert tokenizer.decode(entry["ids"]) == entry["text"]


def write_golden() -> None:
    """Write the golden file from the tokenizer as it is now."""
    tokenizer = trained_on_fixed_texts()
    lines = [json.dumps({"text": text, "ids": tokenizer.encode(text)}) for text in GOLDEN_TEXTS]
    GOLDEN.write_text(
        f'{{"n_vocab": {tokenizer.n_vocab}, "texts": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8"
    )


@pytest.mark.parametrize("name", ["<|endoftext|>", "</s>"])
def test_another_tokenizers_end_of_text_is_found_by_its_name(name: str, tmp_path: Path) -> None:
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=[name], show_progress=False)
    bpe.train_from_iterator(["def side(value):\n    return value"], trainer)
    bpe.save(str(tmp_path / "tokenizer.json"))
    opened = Tokenizer.load(tmp_path / "tokenizer.json")
    assert opened.end_of_text == 0 != opened.n_vocab - 1


def test_a_tokenizer_without_an_end_of_text_says_so(tmp_path: Path) -> None:
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.train_from_iterator(["ab"], tokenizers.trainers.BpeTrainer(vocab_size=10, show_progress=False))
    with pytest.raises(FormatError, match=r"no end of text: none of <\|endoftext\|>, </s>"):
        _ = Tokenizer(bpe).end_of_text


if __name__ == "__main__":
    write_golden()
