"""Behaviours of loops: for_while, indent_for, enumerate_range, while_return_true."""

import random
import re

from sparse_circuits.corpus import words
from sparse_circuits.tasks.pairs import Form, Side
from sparse_circuits.tasks.sampling import Behaviour, Site


def _loops(rng: random.Random, pad: str) -> list[str]:
    """Draw a finished `for` and a finished `while`, in either order."""
    item, source, test, call = *rng.sample(words.NOUNS, 3), rng.choice(words.CALLS)
    loops = [
        f"{pad}for {item} in {source}:\n{pad}    {call}({item})\n",
        f"{pad}while {test}:\n{pad}    {call}({test})\n",
    ]
    rng.shuffle(loops)
    return loops


class ForWhile(Behaviour):
    """After `for node` comes ` in`, after `while node` comes `:`.

    Side 0 is `for`. Shortcut: names lean to one kind; both sides share the name. Hard form: a finished loop of each
    kind stands before, in either order, on both sides.
    """

    name = "for_while"
    idioms = ("for_or_while",)
    pattern = re.compile(
        r"^(?P<pad> *)(?:for|while) (?!True\b|False\b|None\b)(?P<item>[^\W\d]\w*)(?: in (?P<source>[\w.]+))?:\n",
        re.MULTILINE,
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Begin a `for` or a `while`; hard: after one of each."""
        pad, item = site.parts["pad"], site.parts["item"]
        source = site.parts.get("source", rng.choice(words.PLURALS))
        above = site.before + ("".join(_loops(rng, pad)) if form == "hard" else "")
        body = f"{pad}    pass\n"
        return (
            Side(prompt=f"{above}{pad}for {item}", answer=" in", continuation=f" {source}:\n{body}"),
            Side(prompt=f"{above}{pad}while {item}", answer=":\n", continuation=body),
        )


class IndentFor(Behaviour):
    """After a `for` line at four spaces comes a line at eight, after one at eight a line at twelve.

    Answers are the runs of spaces less one, which belongs to the next word. Side 0 is the outer loop. Shortcut: the
    last line's indent and one level more. Hard form: a finished loop at the other indentation stands before.
    """

    name = "indent_for"
    idioms = ("nested_loops",)
    pattern = re.compile(
        r"^    (?P<head>if .+:\n        )(?P<inner>\w+ = .+\n)        for (?P<item>\w+) in (?P<source>[\w.]+):\n",
        re.MULTILINE,
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Put the loop below the `if` or beside it; hard: after another `if` with the loop at the other place."""
        head, inner, item, source = (site.parts[name] for name in ("head", "inner", "item", "source"))
        flag, name, thing, things = rng.choice(words.FLAGS), *rng.sample(words.NOUNS, 3)
        call = rng.choice(words.CALLS)

        def side(pad: str, other: str) -> Side:
            above = f"    if {flag}:\n        {name} = 1\n{other}for {thing} in {things}:\n{other}    {call}({thing})\n"
            prompt = f"{site.before}{above if form == 'hard' else ''}    {head}{inner}{pad}for {item} in {source}:\n"
            return Side(prompt=prompt, answer=f"{pad}    "[:-1], continuation=" pass\n")

        return side(" " * 4, " " * 8), side(" " * 8, " " * 4)


class EnumerateRange(Behaviour):
    """After `[item for i, item in` comes ` enumerate`, after `[size + i for i in` comes ` range`.

    Side 0 is `enumerate`. A comma in the target is the behaviour itself. Hard form: loops, with a finished one of the
    other kind before, the two exchanged between the sides.
    """

    name = "enumerate_range"
    idioms = ("enumerate_or_range",)
    pattern = re.compile(
        r"^(?P<pad> *)(?:(?P<target>\w+) = \[.+ )?for i(?:, \w+)? in (?:range|enumerate)\((?P<source>\w+)\)(?:\]|:)\n",
        re.MULTILINE,
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Count with or without the items; hard: after a loop of the other kind."""
        pad, source = site.parts["pad"], site.parts["source"]
        target = site.parts.get("target", rng.choice(words.LIST_NAMES))
        item, other, call = rng.choice(words.SINGULARS), rng.choice(words.NOUNS), rng.choice(words.CALLS)
        counts, lists = "for i in", f"for i, {item} in"
        if form == "plain":
            return (
                Side(
                    prompt=f"{site.before}{pad}{target} = [{item} {lists}",
                    answer=" enumerate",
                    continuation=f"({source})]\n",
                ),
                Side(
                    prompt=f"{site.before}{pad}{target} = [{source} + i {counts}",
                    answer=" range",
                    continuation=f"({source})]\n",
                ),
            )
        body = f"{pad}    {call}(i)\n"
        counted, listed = f"{pad}{counts} range({other}):\n{body}", f"{pad}{lists} enumerate({other}):\n{body}"
        rest = f"({source}):\n{body}"
        return (
            Side(prompt=f"{site.before}{counted}{pad}{lists}", answer=" enumerate", continuation=rest),
            Side(prompt=f"{site.before}{listed}{pad}{counts}", answer=" range", continuation=rest),
        )


class WhileReturnTrue(Behaviour):
    """After `while True` comes `:`, after `return True` the end of the line.

    Side 0 is `while`. Shortcut: two tokens back. Hard form: `while ready and flag`, the keyword four tokens back.

    Sites lie in a block below a function's own, with a line right behind them: at a function's end the natural answer
    would be an empty line.
    """

    name = "while_return_true"
    idioms = ("while_or_return_true",)
    pattern = re.compile(
        r"^(?P<pad> {8,})(?:while True:|return True|while \w+ and \w+:|return \w+ and \w+)\n(?= *\S)",
        re.MULTILINE,
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Loop on a value or return it; hard: on two names."""
        pad = site.parts["pad"]
        value = " and ".join(rng.sample(words.NOUNS, 2)) if form == "hard" else "True"
        return (
            Side(prompt=f"{site.before}{pad}while {value}", answer=":\n", continuation=f"{pad}    pass\n"),
            Side(prompt=f"{site.before}{pad}return {value}", answer="\n", continuation=f"{pad[4:]}pass\n"),
        )
