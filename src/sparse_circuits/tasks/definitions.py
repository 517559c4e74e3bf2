"""Behaviours of definitions: final_kwarg, class_init, lambda_func."""

import random
import re
from collections.abc import Iterator

from sparse_circuits.corpus import words
from sparse_circuits.tasks.pairs import Form, Side
from sparse_circuits.tasks.sampling import Behaviour, Site

UNASSIGNED = tuple(name for name in words.HELD_OUT_NAMES if name not in ("version", "address"))
"""Names that neither the idioms nor the standard library (Python 3.11 and 3.12) have in `self.x = x`."""


class FinalKwarg(Behaviour):
    """After `def load(path=None, mode=None, limit` comes `=None`, after `def load(path, name, mode, limit` comes `):`.

    Side 0 has defaults. Shortcut: more commas on side 1, any `=None` in the context. Hard form: a function of the other
    kind stands before, the two exchanged between the sides, so only the signature at hand counts.
    """

    name = "final_kwarg"
    idioms = ("defaults",)
    pattern = re.compile(
        r"^(?P<pad> *)def (?P<name>\w+)\((?!\))(?:(?P<owner>self|cls)(?:, |(?=\))))?"
        r"(?P<names>(?!(?:self|cls)\b)\w+(?:=None)?(?:, \w+(?:=None)?)*)?\):\n",
        re.MULTILINE,
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Give every argument a default or none; hard: after a function of the other kind."""
        pad, own = site.parts["pad"], f"{site.parts['owner']}, " if "owner" in site.parts else ""
        names = site.parts["names"].replace("=None", "").split(", ") if "names" in site.parts else []
        more = rng.sample([name for name in words.NOUNS if name not in names], 6)
        one, two, three, last = [*names, *more][:4]
        verb, first, second = rng.choice(words.VERBS), *more[4:]
        body = f"{pad}    return {one}\n"

        def side(has_default: bool) -> Side:
            value, other = ("=None", "") if has_default else ("", "=None")
            if form == "hard":
                above = f"{pad}def {verb}({own}{first}{other}, {second}{other}):\n{pad}    return {first}\n\n\n"
                listed = f"{one}{value}, {two}{value}, {last}"
            else:
                above = ""
                listed = f"{one}=None, {two}=None, {last}" if has_default else f"{one}, {three}, {two}, {last}"
            return Side(
                prompt=f"{site.before}{above}{pad}def {site.parts['name']}({own}{listed}",
                answer="=None" if has_default else "):\n",
                continuation=f"):\n{body}" if has_default else body,
            )

        return side(True), side(False)


class ClassInit(Behaviour):
    """After `self.width =` comes ` width`, after `self.height =` comes ` height`: an argument copied to an attribute.

    Neither name is assigned yet, and either may be the next of the signature. Shortcut: the next argument of the
    signature; a memorised map. Hard form: names that are never assigned so in the corpus.
    """

    name = "class_init"
    idioms = ("class_copy",)
    answers_vary = True
    pattern = re.compile(
        r"^ *def __init__\(self, (?P<names>\w+(?:, \w+)+)\):\n(?P<body>(?: +self\.(\w+) = \3\n)+)", re.MULTILINE
    )

    def sites(self, text: str) -> Iterator[Site]:
        """Find the assignments of a constructor before which two or more arguments are left."""
        for match in self.pattern.finditer(text):
            names = match["names"].split(", ")
            lines = match["body"].splitlines(keepends=True)
            for n_done in range(len(lines)):
                done = [line.split(" = ")[1].strip() for line in lines[:n_done]]
                left = [name for name in names if name not in done]
                if len(left) >= 2 and len({*names}) == len(names):
                    end = match.start("body") + sum(map(len, lines[:n_done]))
                    pad = re.match(" *", lines[n_done])
                    yield Site(
                        before=text[:end],
                        parts={"names": ", ".join(names), "left": ", ".join(left), "pad": pad[0] if pad else ""},
                        after="",
                    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Assign one of the arguments that are left or another; hard: held-out names in place of all."""
        before, names = site.before, site.parts["names"].split(", ")
        asked = rng.sample(site.parts["left"].split(", "), 2)
        if form == "hard":
            others = dict(zip(names, rng.sample(UNASSIGNED, len(names)), strict=True))
            start = before.rfind("def __init__(")
            pattern = re.compile(rf"\b({'|'.join(names)})\b")
            before = before[:start] + pattern.sub(lambda match: others[match[0]], before[start:])
            asked = [others[name] for name in asked]
        first, second = (
            Side(prompt=f"{before}{site.parts['pad']}self.{name} =", answer=f" {name}", continuation="\n")
            for name in asked
        )
        return first, second


class LambdaFunc(Behaviour):
    """After `config.table = [⏎ lambda value` comes `:`, after `class Table:⏎ def value` comes `(self`.

    Side 0 is the lambda. Shortcut: the token before suffices in any form. Hard form: a finished one of each kind stands
    before, in either order.
    """

    name = "lambda_func"
    idioms = ("lambda_table", "inner_class")
    pattern = re.compile(
        r"^(?P<pad> *)(?:class \w+:\n|\w+ = \[\n)(?P=pad)    (?:lambda (?P<argument>\w+):|def (?P<method>\w+)\(self)",
        re.MULTILINE,
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Write a list with a lambda, or a class with a method."""
        pad, item = site.parts["pad"], site.parts.get("argument") or site.parts["method"]
        others, target = rng.sample(words.NOUNS, 2), rng.choice(words.LIST_NAMES)
        if rng.random() < 0.5:  # for classes whose name is two tokens
            target = f"{rng.choice(words.NOUNS)}.{target}"
        finished = [
            f"{pad}{rng.choice(words.LIST_NAMES)} = [\n{pad}    lambda {others[0]}: {others[0]},\n{pad}]\n",
            f"{pad}class {rng.choice(words.CLASSES)}:\n{pad}    def {others[1]}(self):\n{pad}        return {item}\n\n",
        ]
        rng.shuffle(finished)
        above = site.before + ("".join(finished) if form == "hard" else "")
        return (
            Side(
                prompt=f"{above}{pad}{target} = [\n{pad}    lambda {item}",
                answer=":",
                continuation=f" {item},\n{pad}]\n",
            ),
            Side(
                prompt=f"{above}{pad}class {rng.choice(words.CLASSES)}:\n{pad}    def {item}",
                answer="(self",
                continuation=f"):\n{pad}        return {item}\n",
            ),
        )
