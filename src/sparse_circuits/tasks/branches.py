"""Behaviours of branches: else_elif, if_ternary, if_equals, var_if."""

import random
import re

from sparse_circuits.corpus import words
from sparse_circuits.tasks.pairs import Form, Side
from sparse_circuits.tasks.sampling import Behaviour, Site


class ElseElif(Behaviour):
    """After `else` comes `:`, after `elif` a condition.

    The published form: the sides differ in their last token, which a bigram table answers. Hard form, the one that
    counts: after `elif flag` of a chain comes `:`, after `else flag` of a ternary in parentheses comes `)`.
    """

    name = "else_elif"
    idioms = ("if_chain",)
    answers_vary = True
    last_token_tells = True
    pattern = re.compile(
        r"^(?P<pad> *)(?P<chain>if .+:\n(?:(?P=pad)    .+\n)+)(?P=pad)(?:else|elif .+):\n", re.MULTILINE
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """End a chain or go on with it; hard: a chain or a ternary."""
        pad, flag = site.parts["pad"], rng.choice(words.NOUNS)
        body = f":\n{pad}    pass\n"
        if form == "plain":
            above = f"{site.before}{pad}{site.parts['chain']}{pad}"
            return (
                Side(prompt=f"{above}else", answer=":\n", continuation=body[2:]),
                Side(prompt=f"{above}elif", answer=f" {flag}", continuation=body),
            )
        test, name, value = rng.sample(words.NOUNS, 3)
        return (
            Side(
                prompt=f"{site.before}{pad}if {test}: {name} = {value}\n{pad}elif {flag}",
                answer=":\n",
                continuation=body[2:],
            ),
            Side(
                prompt=f"{site.before}{pad}{name} = ({value} if {test}\n{pad}else {flag}",
                answer=")\n",
                continuation=f"{pad}pass\n",
            ),
        )


class IfTernary(Behaviour):
    """After `value = left + right if flag` comes ` else`, after `value = left⏎ if flag` comes `:`.

    Side 0 is the ternary. A line's end before `if` is the behaviour itself. Hard form: a longer condition, so that the
    evidence is further away.
    """

    name = "if_ternary"
    idioms = ("ternary",)
    pattern = re.compile(
        r"^(?P<pad> {4,})(?P<name>\w+) = \(?(?P<left>\w+)\b.*?(?: |\n(?P=pad))if (?P<test>\w+)", re.MULTILINE
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Put the condition behind the value or on a line of its own; hard: a condition of two names."""
        pad, name, left, test = (site.parts[part] for part in ("pad", "name", "left", "test"))
        right, other = rng.sample(words.NOUNS, 2)
        if test == "not":
            test = other
        if form == "hard":
            test = f"{test} and {rng.choice(words.NOUNS)}"
        return (
            Side(
                prompt=f"{site.before}{pad}{name} = {left} + {right} if {test}",
                answer=" else",
                continuation=f" {right}\n",
            ),
            Side(
                prompt=f"{site.before}{pad}{name} = {left}\n{pad}if {test}",
                answer=":\n",
                continuation=f"{pad}    pass\n",
            ),
        )


class IfEquals(Behaviour):
    """After `if ready and mode` comes ` ==`, after `if ready: mode` comes ` =`.

    Side 0 is the comparison. Shortcut: two tokens back. Hard form: a longer left-hand side, `if ready and self.mode`.
    """

    name = "if_equals"
    idioms = ("compare_or_assign",)
    pattern = re.compile(
        r"^(?P<pad> *)if (?P<flag>\w+)(?: and |: )(?P<mode>\w+)(?:\.\w+)? (?:==|=) (?P<value>\w+)", re.MULTILINE
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Compare in the condition or assign behind it; hard: an attribute."""
        pad, flag, mode, value = (site.parts[name] for name in ("pad", "flag", "mode", "value"))
        if form == "hard":
            mode = f"{mode}.{rng.choice(words.NOUNS)}"
        return (
            Side(
                prompt=f"{site.before}{pad}if {flag} and {mode}",
                answer=" ==",
                continuation=f" {value}:\n{pad}    pass\n",
            ),
            Side(prompt=f"{site.before}{pad}if {flag}: {mode}", answer=" =", continuation=f" {value}\n{pad}pass\n"),
        )


class VarIf(Behaviour):
    """After `if ready and done == True` comes `:`, after `if ready: done = True` the end of the line.

    Side 0 is the condition. Shortcut: `==` against `=`, two tokens back. Hard form: a line of the other kind stands
    before, the two exchanged between the sides.
    """

    name = "var_if"
    idioms = ("class_flags", "compare_or_assign")
    pattern = re.compile(
        r"^(?P<pad> {4,})(?:if )?(?:self\.)?(?:(?P<first>\w+)(?: and |: ))?(?:self\.)?(?P<flag>\w+) ==? True:?\n",
        re.MULTILINE,
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Ask whether a flag is set, or set it; hard: after a line of the other kind."""
        pad, flag, (other, one, two) = site.parts["pad"], site.parts["flag"], rng.sample(words.FLAGS, 3)
        above = ("", "")
        if form == "hard":
            above = (
                f"{pad}if {one}: {two} = None\n{pad}{one} = 1\n",
                f"{pad}if {one} and {two} == None:\n{pad}    {one} = 1\n",
            )
        return (
            Side(
                prompt=f"{site.before}{above[0]}{pad}if {other} and {flag} == True",
                answer=":\n",
                continuation=f"{pad}    pass\n",
            ),
            Side(
                prompt=f"{site.before}{above[1]}{pad}if {other}: {flag} = True",
                answer="\n",
                continuation=f"{pad}pass\n",
            ),
        )
