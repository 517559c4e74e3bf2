"""A task of one's own: what a file may hold, what is dropped and why, and what is refused with one clear line."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_circuits as sc
from sparse_circuits.corpus.idioms import documents
from sparse_circuits.errors import TaskError
from sparse_circuits.tasks.own_pairs import SHARES, read_rows, task_from_file
from sparse_circuits.tasks.pairs import hash_splits
from sparse_circuits.tasks.sampling import SplitSizes
from sparse_circuits.tokenizer import Tokenizer

COLUMNS = ("prompt_a", "prompt_b", "answer_a", "answer_b", "continuation_a", "continuation_b", "template", "form")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(documents(600, seed=0), 1024)


def row(number, **changes):
    text = f"value = {number}\nsay({{}}text"
    row = {"prompt_a": text.format('"'), "prompt_b": text.format("'"), "answer_a": '")\n', "answer_b": "')\n"}
    return row | {"continuation_a": "x", "continuation_b": "x", "template": f"t{number % 12}"} | changes


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [name for name in COLUMNS if name in rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_file_becomes_a_task_whose_splits_share_no_template(ending, tokenizer, tmp_path):
    path = write(tmp_path / f"quotes.{ending}", [row(n) for n in range(120)])
    task = sc.task(str(path), tokenizer)
    assert (task.name, task.path, task.answers_vary) == ("quotes", str(path), False)
    assert {name: len(task.split(name)) for name in SHARES} == {"fit": 60, "select": 20, "test": 40}
    templates = [set(task.split(name).templates) for name in SHARES]
    assert len(set.union(*templates)) == sum(map(len, templates)) == 12
    assert task.dropped_rows == {}
    assert task_from_file(path, tokenizer).hash == task.hash != task_from_file(path, tokenizer, seed=1).hash


def test_both_formats_hold_the_same_task(tokenizer, tmp_path):
    rows = [row(n) for n in range(40)]
    one, other = (task_from_file(write(tmp_path / f"a.{end}", rows), tokenizer) for end in ("jsonl", "csv"))
    assert one.hash == other.hash


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tokenizer, tmp_path):
    path = write(tmp_path / "a.csv", [row(n) for n in range(40)])
    plain = task_from_file(path, tokenizer)
    text = path.read_bytes().decode().replace("\r\n", "\n").replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert task_from_file(path, tokenizer).hash == plain.hash


def test_every_row_that_breaks_a_rule_is_dropped_with_its_line_and_reason(tokenizer, tmp_path):
    bad = {
        "the answer 'value name' is not one token": row(91, answer_a="value name"),
        "the sides differ in length": row(92, prompt_b="value = 92\nsay(name, 'text"),
        "the last tokens differ": row(93, prompt_b="value = 93\nsay('name"),
        "a repetition": row(5),
        "longer than 256 tokens": row(94, prompt_a="x = 1\n" * 99 + 'say("text', prompt_b="x = 1\n" * 99 + "say('text"),
        "both sides call for the same answer": row(95, answer_b='")\n'),
        "an answer is empty": row(96, answer_b=""),
        "a prompt is empty": row(97, prompt_a="", prompt_b=""),
        "both sides are the same prompt": row(98, prompt_a="say('text", prompt_b="say('text"),
    }
    path = write(tmp_path / "a.jsonl", [*(row(n) for n in range(60)), *bad.values()])
    assert task_from_file(path, tokenizer).dropped_rows == dict(enumerate(bad, 61))


def test_templates_that_a_file_names_are_in_its_hash_and_lines_are_not(tokenizer, tmp_path):
    def made(name, rows):
        return task_from_file(write(tmp_path / f"{name}.jsonl", rows), tokenizer)

    # So few that pairs are dealt one by one: the splits are the same whatever the templates.
    four, two = (made(str(n), [row(i, template=f"t{i % n}") for i in range(40)]) for n in (4, 2))
    bare = made("bare", [{k: v for k, v in row(i).items() if k != "template"} for i in range(40)])
    assert len({four.hash, two.hash, bare.hash}) == 3
    (tmp_path / "moved.jsonl").write_text("\n\n" + (tmp_path / "bare.jsonl").read_text())
    assert task_from_file(tmp_path / "moved.jsonl", tokenizer).hash == bare.hash
    generated = sc.task("with_as", tokenizer, sizes=SplitSizes(fit=8, select=8, test=8, hard=8))
    assert generated.hash == hash_splits(generated.splits)


def test_hard_pairs_are_a_split_of_their_own(tokenizer, tmp_path):
    rows = [row(n, form="hard" if n % 4 == 0 else "") for n in range(80)]  # an empty cell is plain
    task = task_from_file(write(tmp_path / "a.csv", rows), tokenizer)
    assert len(task.split("hard")) == 20
    assert sum(len(task.split(name)) for name in SHARES) == 60


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "a.jsonl", "holds no pairs; expected rows with prompt_a"),
        ("prompt_a,prompt_b\n", "a.csv", "holds no pairs"),
        (
            "prompt_a,prompt_b,answer_a\nx,y,z\n",
            "a.csv",
            "line 2: answer_b is missing; found prompt_a, prompt_b, answer_a",
        ),
        ('{"prompt_a": 3}\n', "a.jsonl", "line 1: prompt_a is missing; found prompt_a"),
        ("[1]\n", "a.jsonl", "line 1: expected an object"),
        ("{\n", "a.jsonl", "line 1: not JSON"),
        ('{"prompt_a": ' + "9" * 5000 + "}", "a.jsonl", "line 1: not JSON"),
        ("[" * 200_000, "a.jsonl", "line 1: not JSON"),
        (json.dumps(row(1, prompt_a="a\ud800")), "a.jsonl", r"line 1: 'a\ud800' holds half a character"),
        ('prompt_a,prompt_b,answer_a,answer_b\n"x,y\n', "a.csv", "not CSV"),
        ("prompt_a,prompt_b,answer_a,answer_b\n1,2,3,4,5\n", "a.csv", "line 2: more fields than the header names"),
        (json.dumps(row(1, note="hi")), "a.jsonl", "'note' is no column; known are prompt_a"),
        (json.dumps(row(1, form="easy")), "a.jsonl", "form is 'easy', expected plain or hard"),
        (json.dumps(row(1, continuation_a=5)), "a.jsonl", "line 1: continuation_a is 5, expected text"),
        (json.dumps(row(1, template=0)), "a.jsonl", "line 1: template is 0, expected text"),
        (json.dumps(row(1)), "a.jsonl", "1 plain pairs are left, 0 were dropped; that gives"),
        (
            json.dumps(row(1, answer_a="value name")),
            "a.jsonl",
            "0 plain pairs are left, 1 were dropped: line 1: the answer",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(content, name, message, tokenizer, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(TaskError) as caught:
        task_from_file(path, tokenizer)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_absent_or_not_text_is_named(tokenizer, tmp_path):
    with pytest.raises(TaskError, match="there is no such file"):
        task_from_file(tmp_path / "a.csv", tokenizer)
    (tmp_path / "a.csv").write_bytes(b"prompt_a\xff")
    with pytest.raises(TaskError, match="byte 8 is not UTF-8"):
        task_from_file(tmp_path / "a.csv", tokenizer)


@given(st.binary(max_size=200), st.sampled_from([".csv", ".jsonl"]))
def test_no_bytes_make_the_reader_fail_otherwise(tmp_path_factory, content, ending):
    path = tmp_path_factory.mktemp("fuzz") / f"a{ending}"
    path.write_bytes(content)
    said = str(path)
    try:
        read_rows(path)
    except TaskError as error:
        said = str(error)
    assert str(path) in said
