"""Behaviours of values and variables: set_or_string, set_or_string_fixedvarname, var_swap."""

import random
import re
from collections.abc import Iterator

from sparse_circuits.corpus import words
from sparse_circuits.tasks.pairs import Form, Side
from sparse_circuits.tasks.sampling import Behaviour, Site

_EMPTY = r"""(?:set\(\)|str\(\)|""|'')\n"""


class SetOrString(Behaviour):
    """After `text = set()` a use of `text` goes on with `.add`, after `text = str()` with ` +=`.

    Side 0 is the set. Shortcut: is there a `set` anywhere. Hard form: a second variable of the other type is made
    beside it, the two exchanged between the sides, so the name must be bound to its value.
    """

    name = "set_or_string"
    idioms = ("set_or_string",)
    pattern = re.compile(
        rf"^(?P<pad> *)(?P<name>\w+) = {_EMPTY}(?P<rest>(?:.+\n)*?)(?P<line> +)(?P=name)"
        r"(?:\.add\(| \+= )(?P<value>\w+)",
        re.MULTILINE,
    )

    def sites(self, text: str) -> Iterator[Site]:
        """Find variables that are filled after a loop's head, alone."""
        for site in super().sites(text):
            if not re.search(rf"= {_EMPTY}| \+= |\.add\(", site.parts["rest"]):
                yield site

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Make the variable a set or a string; hard: beside one of the other type."""
        pad, name, rest, line, value = (site.parts[part] for part in ("pad", "name", "rest", "line", "value"))
        text = site.before + site.parts["rest"]
        other = rng.choice([word for word in words.NOUNS if not re.search(rf"\b{word}\b", text) and word != name])
        is_first = rng.random() < 0.5

        def side(is_set: bool) -> Side:
            if form == "plain":
                made = f"{pad}{name} = {'set()' if is_set else 'str()'}\n"
            else:
                lines = [
                    f"{pad}{word} = {'set()' if yes == is_set else chr(34) * 2}\n"
                    for word, yes in ((name, True), (other, False))
                ]
                made = "".join(lines if is_first else lines[::-1])
            return Side(
                prompt=f"{site.before}{made}{rest}{line}{name}",
                answer=".add" if is_set else " +=",
                continuation=f"({value})\n" if is_set else f" {value}\n",
            )

        return side(True), side(False)


class SetOrStringFixedVarname(SetOrString):
    """`set_or_string` with a variable that is always called `current`; shortcut and hard form as there."""

    name = "set_or_string_fixedvarname"

    def sites(self, text: str) -> Iterator[Site]:
        """Find the same sites and rename the variable."""
        for site in super().sites(text):
            if not re.search(r"\bcurrent\b", site.before + site.parts["rest"]):
                yield Site(before=site.before, parts=site.parts | {"name": "current"}, after=site.after)


class VarSwap(Behaviour):
    """After `left, right = right,` comes ` left`, after `start, right = right,` comes ` start`.

    Both names are known before. Shortcut: the first name of the line, without a look at the right-hand side. Hard form:
    the same two names with exchanged roles.
    """

    name = "var_swap"
    idioms = ("swap",)
    answers_vary = True
    pattern = re.compile(r"^(?P<pad> *)(?P<one>\w+), (?P<two>\w+) = (?P=two), (?P=one)\n", re.MULTILINE)

    def sites(self, text: str) -> Iterator[Site]:
        """Find swaps of two names where a third is known."""
        for site in super().sites(text):
            listed = re.findall(r"def \w+\(([\w, ]+)\)", site.before)
            known = re.findall(r"\w+", " ".join(listed)) + re.findall(r"^ +(\w+) = ", site.before, re.MULTILINE)
            thirds = [
                name for name in known if name in words.NOUNS and name not in (site.parts["one"], site.parts["two"])
            ]
            if thirds:
                yield Site(before=site.before, parts=site.parts | {"third": thirds[-1]}, after=site.after)

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Swap one name or the third with the same other; hard: swap the same two, either first."""
        pad, one, two, third = (site.parts[name] for name in ("pad", "one", "two", "third"))

        def side(first: str, second: str) -> Side:
            prompt = f"{site.before}{pad}{first}, {second} = {second},"
            return Side(prompt=prompt, answer=f" {first}", continuation="\n")

        return side(one, two), side(two, one) if form == "hard" else side(third, two)
