"""Tests of the tasks: pairs keep their rules, splits share nothing, and what the tokenizer breaks is counted."""

import ast
import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparse_circuits as sc
from sparse_circuits.configs import CorpusConfig
from sparse_circuits.corpus.idioms import IDIOMS, documents
from sparse_circuits.corpus.shards import build
from sparse_circuits.errors import TaskError
from sparse_circuits.tasks import BEHAVIOURS, CONTROLS, sampling, task
from sparse_circuits.tasks.contexts import UNSEEN, Snippet
from sparse_circuits.tasks.pairs import Form, Level, PairFilter, Pairs, Side, Task, TextPair, collect
from sparse_circuits.tasks.sampling import SplitSizes
from sparse_circuits.tokenizer import Tokenizer

SIZES = SplitSizes(fit=80, select=40, test=60, hard=40, mined=30)
NAMES = sorted(BEHAVIOURS)
ANSWERS = {
    "single_double_quote": ('")\n', "')\n"),
    "final_kwarg": ("=None", "):\n"),
    "set_or_string": (".add", " +="),
    "set_or_string_fixedvarname": (".add", " +="),
    "with_as": (")", ")\n"),
    "bracket_brace": (":", ","),
    "with_open": ("r", "w"),
    "bracket_counting": ("]]\n", "]\n"),
    "for_while": (" in", ":\n"),
    "fstring_brace": (" {", '",'),
    "if_ternary": (" else", ":\n"),
    "indent_for": (" " * 7, " " * 11),
    "lambda_func": (":", "(self"),
    "if_equals": (" ==", " ="),
    "enumerate_range": (" enumerate", " range"),
    "var_if": (":\n", "\n"),
    "while_return_true": (":\n", "\n"),
}
"""Answers of the tasks that have the same ones everywhere."""
BY_MARK = ["bracket_counting", "single_double_quote"]
ONE_EDIT = [
    *BY_MARK,
    "bracket_brace",
    "for_while",
    "indent_for",
    "set_or_string",
    "set_or_string_fixedvarname",
    "var_swap",
    "while_return_true",
    "with_as",
]
"""Tasks whose plain sides differ in one token."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(documents(1500, seed=0), 2048)


@pytest.fixture(scope="module")
def tasks(tokenizer: Tokenizer) -> dict[str, Task]:
    return {name: task(name, tokenizer, seed=3, sizes=SIZES) for name in NAMES}


def prompts(pairs: Pairs, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    for rows, length in zip(pairs.tokens.tolist(), pairs.length.tolist(), strict=True):
        first, second = (tokenizer.decode(row[:length]) for row in rows)
        yield first, second


def text_pairs(name: str, form: Form, n_pair: int = 200) -> Iterator[tuple[str, TextPair]]:
    """Draw pairs of a behaviour's templates, in turn."""
    behaviour, rng = BEHAVIOURS[name], random.Random(0)
    templates = sampling.unseen_templates(behaviour) | sampling.seen_templates(behaviour)
    drawn = sampling._drawn_pairs(behaviour, templates, "ii", form, rng)
    for _, pair in zip(range(n_pair), drawn, strict=False):
        yield pair.template, pair


@pytest.mark.parametrize("name", NAMES)
def test_every_split_is_as_large_as_asked_and_has_its_levels(name: str, tasks: dict[str, Task]) -> None:
    splits = tasks[name].splits
    assert list(splits) == ["fit", "select", "test", "hard"]
    assert {split: Counter(pairs.levels) for split, pairs in splits.items()} == {
        "fit": {"i": 80},
        "select": {"i": 40},
        "test": {"i": 60, "ii": 60},
        "hard": {"i": 40, "ii": 40},
    }
    for pairs in splits.values():
        assert pairs.tokens.shape == (len(pairs), 2, int(pairs.length.max()))
        assert pairs.answers.shape == (len(pairs), 2)


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_of_a_pair_end_in_the_same_token_and_call_for_different_answers(
    name: str, tasks: dict[str, Task], tokenizer: Tokenizer
) -> None:
    for pairs in tasks[name].splits.values():
        last = pairs.tokens.gather(2, (pairs.length - 1)[:, None, None].expand(-1, 2, 1))[..., 0]
        assert torch.equal(last[:, 0], last[:, 1]) or BEHAVIOURS[name].last_token_tells
        if not BEHAVIOURS[name].answers_vary:
            answers = {(tokenizer.decode([a]), tokenizer.decode([b])) for a, b in pairs.answers.tolist()}
            assert answers == {ANSWERS[name]}
        assert (pairs.answers[:, 0] != pairs.answers[:, 1]).all()
        assert int(pairs.length.max()) <= 64


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_controls_fill_every_split_from_templates_of_its_own(name: str, tokenizer: Tokenizer) -> None:
    splits = task(name, tokenizer, sizes=SIZES).splits
    assert [len(splits[split]) for split in ("fit", "select", "test", "hard")] == [80, 40, 120, 80]
    seen = [
        {template for template, level in zip(pairs.templates, pairs.levels, strict=True) if level == "i"}
        for pairs in (splits["fit"], splits["select"], splits["test"])
    ]
    assert all(seen)
    assert len(set.union(*seen)) == sum(len(one) for one in seen)


def test_no_templates_draw_nothing() -> None:
    drawn = sampling._drawn_pairs(BEHAVIOURS["for_while"], {}, "i", "plain", random.Random(0))
    assert list(drawn) == []


@pytest.mark.parametrize("name", ONE_EDIT)
def test_the_sides_of_a_plain_pair_differ_in_one_token(name: str, tasks: dict[str, Task]) -> None:
    for split in ("fit", "select", "test"):
        pairs = tasks[name].splits[split]
        n_different = (pairs.tokens[:, 0] != pairs.tokens[:, 1]).sum(1)
        assert n_different.tolist() == [1] * len(pairs)


@pytest.mark.parametrize("name", BY_MARK)
def test_the_sides_of_a_plain_pair_differ_in_the_opening_mark_alone(
    name: str, tasks: dict[str, Task], tokenizer: Tokenizer
) -> None:
    marks = {"single_double_quote": ('("', "('"), "bracket_counting": (" [[", " [")}[name]
    for split in ("fit", "select", "test"):
        for first, second in prompts(tasks[name].splits[split], tokenizer):
            assert second == marks[1].join(first.rsplit(marks[0], 1))


@pytest.mark.parametrize("name", BY_MARK)
def test_the_sides_of_a_hard_pair_hold_the_same_marks(name: str, tasks: dict[str, Task], tokenizer: Tokenizer) -> None:
    inserted = {"single_double_quote": {'"': 1, "'": 1}, "bracket_counting": {"[": 0, "]": 1}}[name]
    for first, second in prompts(tasks[name].splits["hard"], tokenizer):
        for mark, n_more in inserted.items():
            # Side 0 has one double quote more, or (brackets) its distractor one closing bracket less.
            assert abs(first.count(mark) - second.count(mark)) == n_more
        assert sorted(first.replace("'", '"').replace("]", "")) == sorted(second.replace("'", '"').replace("]", ""))


@pytest.mark.parametrize("form", ["plain", "hard"])
@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_with_its_answer_and_continuation_is_whole_python(name: str, form: Form) -> None:
    seen = set()
    for template, pair in text_pairs(name, form):
        seen.add(template)
        for side in pair.sides:
            ast.parse(side.prompt + side.answer + side.continuation)
    assert len(seen) >= 8


@pytest.mark.parametrize("name", BY_MARK)
def test_sites_in_idioms_are_cut_so_that_a_side_is_the_text_itself(name: str) -> None:
    behaviour, rng = BEHAVIOURS[name], random.Random(1)
    n_site = 0
    for text in documents(100, seed=5):
        for site in behaviour.sites(text):
            n_site += 1
            sides = behaviour.sides(site, "plain", rng)
            wholes = [side.prompt + side.answer + side.continuation for side in sides]
            assert any(text.startswith(whole) for whole in wholes)
            assert sides[0].continuation == sides[1].continuation != ""
    assert n_site > 50


@pytest.mark.parametrize("name", NAMES)
def test_each_kind_of_answer_is_asked_equally_often_in_each_template(name: str, tasks: dict[str, Task]) -> None:
    for pairs in tasks[name].splits.values():
        for template in set(pairs.templates):
            chosen = [i for i, other in enumerate(pairs.templates) if other == template]
            if not BEHAVIOURS[name].answers_vary:
                kinds = Counter(pairs.answers[chosen].flatten().tolist())
                assert len(kinds) == 2
                assert len(set(kinds.values())) == 1


def test_only_sites_in_what_a_template_is_about_count() -> None:
    """A loop in the lines before belongs to the template that is about such loops, and they may be in another split."""
    behaviour, before, after = BEHAVIOURS["for_while"], "def f(rows):\n    for row in rows:\n", "    for cell in f:\n"
    code = Snippet(
        before=f"{before}        pass\n", piece="    while ready:\n        pass\n", after=f"{after}        pass\n"
    )
    assert len(list(behaviour.sites(code.text))) == 3
    drawn = sampling._drawn_pairs(behaviour, {"it": lambda rng: code}, "i", "plain", random.Random(0))
    for _, pair in zip(range(20), drawn, strict=False):
        assert [side.prompt for side in pair.sides] == [f"{code.before}    for ready", f"{code.before}    while ready"]


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("final_kwarg", "def f(self):\n", {"pad": "", "name": "f", "owner": "self"}),
        (
            "final_kwarg",
            "    def f(cls, a=None, b):\n",
            {"pad": "    ", "name": "f", "owner": "cls", "names": "a=None, b"},
        ),
        ("final_kwarg", "def f(selfish):\n", {"pad": "", "name": "f", "names": "selfish"}),
        ("final_kwarg", "def f():\n", None),
        ("for_while", "while True:\n", None),
        ("for_while", "while 1:\n", None),
        ("for_while", "while Trues:\n", {"pad": "", "item": "Trues"}),
        ("while_return_true", "    return True\n    pass\n", None),
        ("while_return_true", "        return True\n    pass\n", {"pad": "        "}),
        ("while_return_true", "        return True\n\n\ndef f", None),
    ],
)
def test_sites_are_where_both_sides_are_natural_code(name: str, text: str, parts: dict[str, str] | None) -> None:
    assert [site.parts for site in BEHAVIOURS[name].sites(text)] == ([] if parts is None else [parts])


@pytest.mark.parametrize("name", NAMES)
def test_fit_select_and_test_share_no_template(name: str, tasks: dict[str, Task]) -> None:
    splits = tasks[name].splits
    fit, select = set(splits["fit"].templates), set(splits["select"].templates)
    test = set(splits["test"].at_level("i").templates)
    unseen = set(splits["test"].at_level("ii").templates)
    assert not fit & select
    assert not (fit | select) & test
    assert unseen == set(UNSEEN)
    assert len(unseen) >= 8
    assert not unseen & set(IDIOMS)
    assert not set(splits["hard"].templates) & (fit | select)


@pytest.mark.parametrize("name", NAMES)
def test_no_prompt_occurs_twice_over_all_splits(name: str, tasks: dict[str, Task], tokenizer: Tokenizer) -> None:
    seen = [text for pairs in tasks[name].splits.values() for both in prompts(pairs, tokenizer) for text in both]
    assert len(set(seen)) == len(seen) == 2 * (80 + 40 + 120 + 80)


def test_the_same_seed_gives_the_same_task_and_another_seed_another(
    tasks: dict[str, Task], tokenizer: Tokenizer
) -> None:
    for name in BY_MARK:
        assert task(name, tokenizer, seed=3, sizes=SIZES).hash == tasks[name].hash
        assert task(name, tokenizer, seed=4, sizes=SIZES).hash != tasks[name].hash


def test_more_pairs_of_a_split_begin_with_the_fewer(tokenizer: Tokenizer) -> None:
    few, many = (
        task("single_double_quote", tokenizer, sizes=dataclasses.replace(SIZES, fit=n)).split("fit") for n in (10, 30)
    )
    assert torch.equal(many.take(torch.arange(10)).tokens, few.tokens)


def test_a_task_without_name_or_tokenizer_or_split_is_refused(tasks: dict[str, Task], tokenizer: Tokenizer) -> None:
    with pytest.raises(TaskError, match=r"no task is called 'single_duble_quote'; did you mean single_double_quote\?"):
        task("single_duble_quote", tokenizer)
    with pytest.raises(TaskError, match="the model has no tokenizer"):
        task("single_double_quote", None)
    with pytest.raises(TaskError, match="has no split 'mined'; it has fit, select, test, hard"):
        tasks["single_double_quote"].split("mined")


def test_a_tokenizer_without_the_answer_as_one_token_is_refused_by_the_answer() -> None:
    flat = (text.replace("[[", "[").replace("]]", "]") for text in documents(300, seed=0))
    with pytest.raises(TaskError, match=r"only 0 of 80 fit pairs survive this tokenizer .*'\]\]\\n' is not one token"):
        task("bracket_counting", Tokenizer.train(flat, 512), sizes=SIZES)


def side(prompt: str, answer: str = '")\n', continuation: str = "return 1\n") -> Side:
    return Side(prompt=prompt, answer=answer, continuation=continuation)


@pytest.mark.parametrize(
    ("sides", "reason"),
    [
        ((side('say("text'), side("say('text", "')\n")), None),
        ((side('say("text"', ")\n"), side("say('text'", ")\n")), "the answer joins the prompt's last token"),
        ((side('say("text', '"))))\n'), side("say('text", "')\n")), "the answer '\"))))\\n' is not one token"),
        ((side('say("text'), side("say(zeal, 'text", "')\n")), "the sides differ in length"),
        ((side('say("text'), side("say('name", "')\n")), "the last tokens differ"),
        ((side("x = 1\n" * 30 + 'say("text'), side("x = 1\n" * 30 + "say('text", "')\n")), "longer than 64 tokens"),
    ],
)
def test_a_pair_that_the_tokenizer_breaks_is_dropped_and_counted(
    sides: tuple[Side, Side], reason: str | None, tokenizer: Tokenizer
) -> None:
    accept = PairFilter(tokenizer)
    row = accept(TextPair(sides=sides, template="t", level="i"))
    assert accept.n_dropped == ({} if reason is None else {reason: 1})
    assert (row is None) == (reason is not None)


def test_a_repetition_is_dropped_and_counted(tokenizer: Tokenizer) -> None:
    accept = PairFilter(tokenizer)
    pair = TextPair(sides=(side('say("text'), side("say('text", "')\n")), template="t", level="i")
    row = accept(pair)
    assert row is not None
    assert [tokenizer.decode(ids) for ids in row[0]] == ['say("text', "say('text"]
    assert [tokenizer.decode([answer]) for answer in row[1]] == ['")\n', "')\n"]
    assert [accept(pair), accept(pair)] == [None, None]
    assert accept.n_dropped == {"a repetition": 2}


def test_pairs_are_collected_until_there_are_enough_or_the_tries_end(tokenizer: Tokenizer) -> None:
    texts = ["text", "text", "name", "value count"]
    pairs = [
        TextPair(sides=(side(f'say("{text}'), side(f"say('{text}", "')\n")), template=text, level="i") for text in texts
    ]
    assert collect(iter(pairs), PairFilter(tokenizer), n_pair=2, n_try=9).templates == ("text", "name")
    assert collect(iter(pairs), PairFilter(tokenizer), n_pair=9, n_try=2).templates == ("text",)
    everything = collect(iter(pairs), PairFilter(tokenizer), n_pair=9, n_try=9)
    assert everything.templates == ("text", "name", "value count")
    assert everything.length.tolist() == [len(tokenizer.encode(f'say("{t}')) for t in everything.templates]
    nothing = collect(iter([]), PairFilter(tokenizer), n_pair=9, n_try=9)
    assert len(nothing) == 0
    assert nothing.tokens.shape == (0, 2, 0)
    assert nothing.answers.shape == (0, 2)


def made_pairs(lengths: list[int], level: str = "i") -> Pairs:
    n_pos = max(lengths)
    tokens = torch.zeros(len(lengths), 2, n_pos, dtype=torch.long)
    for i, length in enumerate(lengths):
        tokens[i, :, :length] = 10 * length + torch.arange(2)[:, None]
    return Pairs(
        tokens=tokens,
        length=torch.tensor(lengths),
        answers=torch.tensor([[n, n + 100] for n in lengths]),
        templates=tuple(f"t{n}" for n in lengths),
        levels=tuple(level for _ in lengths),  # pyright: ignore[reportArgumentType]
    )


def test_pairs_that_are_taken_are_trimmed_and_keep_what_belongs_to_them() -> None:
    taken = made_pairs([3, 9, 5]).take(torch.tensor([2, 0]))
    assert taken.tokens.shape == (2, 2, 5)
    assert taken.length.tolist() == [5, 3]
    assert taken.answers.tolist() == [[5, 105], [3, 103]]
    assert taken.templates == ("t5", "t3")
    assert len(made_pairs([3]).take(torch.tensor([], dtype=torch.long))) == 0


@given(
    kinds=st.lists(st.tuples(st.sampled_from(["i", "ii"]), st.sampled_from("abcd")), min_size=1, max_size=60),
    n_pair=st.integers(1, 80),
)
def test_a_part_stands_for_the_whole_each_level_by_its_share_and_in_it_all_templates_alike(
    kinds: list[tuple[Level, str]], n_pair: int
) -> None:
    n = len(kinds)
    pairs = dataclasses.replace(
        made_pairs(list(range(1, n + 1))),
        levels=tuple(level for level, _ in kinds),
        templates=tuple(f"{level} {name}" for level, name in kinds),
    )
    places = pairs.spread(n_pair).tolist()
    assert len(set(places)) == len(places) == min(n, n_pair)
    taken = Counter(pairs.templates[i] for i in places)
    for level in ("i", "ii"):
        have = Counter(name for name in pairs.templates if name.split()[0] == level)
        share = len(places) * have.total() / n
        assert abs(sum(taken[name] for name in have) - share) <= 1
        most = max((taken[name] for name in have), default=0)
        assert all(taken[name] >= min(have[name], most - 1) for name in have)
    part = pairs.part(n_pair)
    assert part.length.tolist() == sorted(i + 1 for i in places), "in their own order"


def test_pairs_are_joined_in_order_and_parted_by_level() -> None:
    joined = Pairs.join([made_pairs([3, 4]), made_pairs([7], "ii")])
    assert joined.tokens.shape == (3, 2, 7)
    assert joined.tokens[0, 0].tolist() == [30, 30, 30, 0, 0, 0, 0]
    assert joined.levels == ("i", "i", "ii")
    assert torch.equal(joined.at_level("ii").tokens, made_pairs([7], "ii").tokens)
    assert torch.equal(joined.at_level("i").tokens, made_pairs([3, 4]).tokens)
    assert len(joined.at_level("iii")) == 0


def test_batches_give_every_pair_once_longest_first() -> None:
    pairs = made_pairs([3, 9, 5, 4, 9])
    batches = list(pairs.batches(2))
    assert [batch.length.tolist() for batch in batches] == [[9, 9], [5, 4], [3]]
    assert [batch.tokens.shape[2] for batch in batches] == [9, 5, 3]


@pytest.mark.parametrize("name", BY_MARK)
def test_the_hash_does_not_depend_on_what_is_mined(
    name: str, tasks: dict[str, Task], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    for number, text in enumerate(documents(60, seed=77)):
        (code / f"{number}.py").write_text(text)
    corpus = build(
        CorpusConfig(sources=(str(code), "idioms"), n_vocab=400, max_token=50_000, validation_frac=0.5),
        tmp_path / "out",
    )
    for n_mined in (5, 12):
        mined = task(name, tokenizer, seed=3, corpus=corpus, sizes=dataclasses.replace(SIZES, mined=n_mined))
        assert mined.hash == tasks[name].hash
        pairs = mined.split("mined")
        assert len(pairs) == n_mined
        assert set(pairs.levels) == {"iii"}
        held_out = [corpus.tokenizer.decode(ids) for ids in corpus.documents(str(code), "validation")]
        for template, both in zip(pairs.templates, prompts(pairs, tokenizer), strict=True):
            source, _, number = template.rpartition(":")
            assert source == str(code)
            assert any(prompt in held_out[int(number)] for prompt in both)
            assert all(prompt.count("\n") <= sampling.N_LINE for prompt in both)


def test_prompts_may_be_longer_if_asked_and_a_model_that_cant_read_them_says_so():
    model = sc.load(sc.example())
    task = sc.task("if_equals", model.tokenizer, max_token=120, sizes=SplitSizes(fit=256))
    assert task.max_token == 120
    assert 64 < int(task.split("fit").length.max()) <= 120
    with pytest.raises(TaskError, match="the model's context 64; make the task with max_token 64 or less"):
        sc.prune(model, task)
    with pytest.raises(TaskError, match="max_token is 0, expected 1 or more"):
        sc.task("if_equals", model.tokenizer, max_token=0)
