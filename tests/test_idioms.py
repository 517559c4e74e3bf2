"""Tests of the idiom generator: valid Python, reproducible, and no cue but the opening mark."""

import ast
import functools
import itertools
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_circuits.corpus import words
from sparse_circuits.corpus.idiom_pieces import message, number_list, string
from sparse_circuits.corpus.idioms import IDIOMS, document, documents

CHARACTERS_PER_TOKEN = 3.3

# Share of the lines that hold each construct at least once in a thousand lines.
CONSTRUCTS = {
    "closed string in a call": r"\([\"'][^\"'\n]*[\"']\)\n",
    "string and a variable": r"\w+\([\"'][^\"'\n]*[\"'], \w+\)\n",
    "argument without default": r"def \w+\((?:\w+, )*\w+\):\n",
    "argument with default": r"=None\):\n",
    "set initialiser": r" = set\(\)\n",
    "str initialiser": r" = str\(\)\n",
    "empty string initialiser": r" = (?:\"\"|'')\n",
    "add": r"\.add\(",
    "grow": r" \+= \w+\n",
    "copied argument": r"self\.(\w+) = \1\n",
    "with open of a path": r"with open\(\w+\) as \w+:\n",
    "return of open": r"return open\(\w+\)\n",
    "with a resource": r"with \w+ as \w+:\n",
    "dict of names": r"\{[\w.]+(?: \+ \w+)?: \w+\}",
    "list of names": r"= \[[a-z.]+, [a-z.]+\]\n",
    "open of a file by name": r"open\([\"']\w+\.\w+[\"'], [\"'][rw][\"']\)",
    "for": r"for \w+ in [\w.]+:\n",
    "while a name": r"while \w+:\n",
    "elif": r" elif ",
    "else block": r" else:\n",
    "ternary in brackets": r" = \(.* if .*\n +else .*\)\n",
    "ternary": r" = .* if .* else .*\n",
    "f-string": r"\(f[\"']",
    "swap": r"(\w+), (\w+) = \2, \1\n",
    "cycle of three": r"(\w+), (\w+), (\w+) = \2, \3, \1\n",
    "comment like a loop": r"# \w+ in \w+:\n",
    "lambda": r"lambda \w+: ",
    "class in a function": r"\n    class \w+:\n        def ",
    "function without arguments": r"def \w+\(\):\n",
    "enumerate": r" in enumerate\(",
    "range": r" in range\(",
    "comparison in an if": r"if (?:\w+ and )?[\w.]+ == ",
    "assignment after an if": r"if \w+: [\w.]+ = ",
    "comparison with True": r" == True:\n",
    "assignment of True": r" = True\n",
    "while True": r"while True:\n",
    "return True": r"return True\n",
    "indented for": r"\n        for \w+ in ",
}


@functools.cache
def corpus() -> str:
    """Joins 1500 documents of a fixed seed."""
    return "\n\n\n".join(documents(1500, seed=7))


def share_of_tokens(pattern: str) -> float:
    """Counts a pattern per estimated token."""
    return len(re.findall(pattern, corpus())) * CHARACTERS_PER_TOKEN / len(corpus())


def test_every_document_parses() -> None:
    for text in documents(400, seed=0):
        ast.parse(text)
        assert text.endswith("\n")
        assert not text.endswith("\n\n")


@pytest.mark.parametrize("name", IDIOMS)
def test_every_idiom_is_one_piece_of_python(name: str) -> None:
    for seed in range(80):
        text = IDIOMS[name](random.Random(seed))
        ast.parse(text)
        assert not text.startswith((" ", "\n"))
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
        assert "\t" not in text


def test_there_are_at_least_45_idioms_and_each_varies() -> None:
    assert len(IDIOMS) >= 45
    for idiom in IDIOMS.values():
        assert len({idiom(random.Random(seed)) for seed in range(40)}) > 36


@settings(max_examples=40)
@given(seed=st.integers(0, 2**40), n_document=st.integers(1, 6), more=st.integers(0, 4))
def test_a_document_depends_on_the_seed_and_its_place_only(seed: int, n_document: int, more: int) -> None:
    short = list(documents(n_document, seed=seed))
    assert len(short) == n_document
    assert list(documents(n_document + more, seed=seed))[:n_document] == short
    assert len(set(short)) == n_document


def test_a_document_of_another_seed_is_another() -> None:
    assert not set(documents(50, seed=1)) & set(documents(50, seed=2))


@settings(max_examples=100)
@given(seed=st.integers(0, 2**40))
def test_a_document_has_two_to_seven_idioms_after_its_head(seed: int) -> None:
    text = document(random.Random(seed))
    assert "\n\n\n\n" not in text
    assert 2 <= text.count("\n\n\n") + 1 <= 7 * 2 + 1


@settings(max_examples=200)
@given(seed=st.integers(0, 2**40))
def test_a_message_is_one_to_nine_words_without_quotes(seed: int) -> None:
    text = message(random.Random(seed))
    assert 1 <= len(text.split(" ")) <= 9
    assert re.fullmatch(r"[A-Za-z0-9, ]+", text)


def test_a_sixth_or_so_of_the_messages_has_a_comma_or_a_digit() -> None:
    rng = random.Random(0)
    texts = [message(rng) for _ in range(5000)]
    assert 0.10 < sum(bool(re.search(r"[,\d]", text)) for text in texts) / 5000 < 0.2


def test_a_quote_is_independent_of_the_quote_before_it() -> None:
    marks = re.findall(r"(?<![f\w\"'])([\"'])[^\"'\n]*\1(?!\1)", corpus())
    assert len(marks) > 5000
    pairs = Counter(itertools.pairwise(marks))
    for first in "\"'":
        n_pair = pairs[first, '"'] + pairs[first, "'"]
        # Four standard deviations of a fair coin.
        assert abs(pairs[first, '"'] / n_pair - 0.5) < 2 / n_pair**0.5
    rng = random.Random(3)
    literals = [string(rng) for _ in range(10_000)]
    assert abs(sum(text[0] == '"' for text in literals) - 5000) < 200
    assert all(text[0] == text[-1] for text in literals)


def test_lists_of_numbers_are_flat_and_nested_equally_often() -> None:
    rng = random.Random(5)
    lists = [ast.literal_eval(number_list(rng)) for _ in range(10_000)]
    nested = [rows for rows in lists if isinstance(rows[0], list)]
    assert abs(len(nested) - 5000) < 200
    assert abs(sum(len(rows) == 1 for rows in nested) / len(nested) - 0.5) < 0.05
    lengths = Counter(len(numbers) for numbers in lists if not isinstance(numbers[0], list))
    rows = Counter(len(rows[0]) for rows in nested if len(rows) == 1)
    assert set(range(1, 25)) >= set(lengths)
    assert max(lengths) > 20
    for n_element in (1, 2, 3, 4):
        flat_share, nested_share = lengths[n_element] / 5000, rows[n_element] / sum(rows.values())
        assert abs(flat_share - nested_share) < 0.05


def test_the_name_of_a_list_does_not_tell_whether_it_is_nested() -> None:
    found = re.findall(r"(\w+) = \[(\[?)\d+[\d, \[\]]*\]\n", corpus())
    counts = Counter((name, bool(inner)) for name, inner in found)
    n_nested = sum(bool(inner) for _, inner in found)
    assert abs(n_nested / len(found) - 0.5) < 0.04
    # The sum of squared deviations is chi-squared with one degree of freedom a name.
    names = sorted({name for name, _ in found})
    deviations = [
        (counts[name, True] - counts[name, False]) ** 2 / (counts[name, True] + counts[name, False]) for name in names
    ]
    assert sum(deviations) < len(names) + 4 * (2 * len(names)) ** 0.5


def test_closed_lists_stand_before_lists_in_all_orders() -> None:
    for first, second in ((r"\[\[", r"\["), (r"\[", r"\[\["), (r"\[", r"\["), (r"\[\[", r"\[\[")):
        pattern = rf"\w = {first}\d[^\n]*\]\n +\w+ = {second}\d"
        assert share_of_tokens(pattern) > 0.0004


def test_strings_that_close_a_call_are_two_to_three_of_a_hundred_tokens() -> None:
    assert 0.015 < share_of_tokens(r"[\"']\)\n(?!\n)") < 0.03


def test_lists_of_numbers_close_one_of_a_hundred_tokens_or_a_bit_more() -> None:
    assert 0.009 < share_of_tokens(r" = \[[\d, \[\]]+\]\n(?!\n)") < 0.015
    one_row = share_of_tokens(r" = \[\[[\d, ]+\]\]\n(?!\n)")
    flat = share_of_tokens(r" = \[[\d, ]+\]\n(?!\n)")
    assert 0.4 < one_row / flat < 0.65


def test_numbers_in_lists_are_a_small_part_of_the_text() -> None:
    lists = re.findall(r"\[[\d, \[\]\n]+\]", corpus())
    n_number = sum(len(re.findall(r"\d+", text)) for text in lists)
    assert n_number * CHARACTERS_PER_TOKEN / len(corpus()) < 0.08


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_every_construct_is_found_in_a_two_thousandth_of_the_lines(name: str) -> None:
    n_found = len(re.findall(CONSTRUCTS[name], corpus()))
    assert n_found / corpus().count("\n") > 0.0005


def test_files_read_and_written_differ_by_stem_with_little_noise() -> None:
    stems = "|".join(words.READ_STEMS)
    modes = Counter(re.findall(rf"open\([\"'](?:{stems})(?:_\w+)?\.\w+[\"'], [\"'](\w)", corpus()))
    assert modes["r"] > 20 * modes["w"]


def test_held_out_names_are_read_but_never_copied_nor_swapped() -> None:
    for name in words.HELD_OUT_NAMES:
        assert not re.search(rf"self\.{name} = {name}\b", corpus())
        assert not re.search(rf"\b{name}, .* = .*, {name}\n|^ +\w+, {name}\b.* = ", corpus(), re.M)
        assert re.search(rf" {name}\b", corpus())
        assert re.search(rf"\.{name}\b", corpus())


def test_pools_have_no_word_twice_and_pair_singular_with_plural() -> None:
    assert len(words.SINGULARS) == len(words.PLURALS)
    for pool in (words.NOUNS, words.PLURALS, words.LIST_NAMES, words.CLASSES, words.TEXT_NOUNS):
        assert len(set(pool)) == len(pool) >= 40
    assert not set(words.NOUNS) & set(words.HELD_OUT_NAMES)
