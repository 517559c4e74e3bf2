"""bracket_counting: close a list with as many brackets as are open."""

import random
import re
from collections.abc import Callable, Iterator
from typing import ClassVar

from sparse_circuits.corpus import words
from sparse_circuits.tasks.pairs import Form, Side
from sparse_circuits.tasks.sampling import N_CONTINUATION, Behaviour, Site

_LIST = re.compile(
    r"(?P<line>(?:(?<=\n)|^) *[\w.]+ = )(?P<open>\[{1,2})(?P<content>\d{1,3}(?:, \d{1,3})*)"
    r"(?P<close>\]{1,2})\n(?=[ \w])"
)


def _numbers(rng: random.Random) -> str:
    return ", ".join(str(rng.randrange(10 ** rng.randint(1, 3))) for _ in range(rng.randint(1, 8)))


def _template(code: str, after: str) -> Callable[[random.Random], Site]:
    """Make a sampler from code with holes for names, up to ` = ` and after the list's line."""

    def sample(rng: random.Random) -> Site:
        noun, other = rng.sample(words.NOUNS, 2)
        names = {"noun": noun, "other": other, "list": rng.choice(words.LIST_NAMES)}
        return Site(before=code.format(**names), content=_numbers(rng), after=after.format(**names))

    return sample


class BracketCounting(Behaviour):
    """After `values = [[5, 3, 11` comes `]]`, after `values = [5, 3, 11` comes `]`.

    Side 0 is the nested list. Plain form: one edit, the bracket; counting every `[` of the context would do. Hard
    form: a closed list of the other depth stands before on each side, so the number of `[` in all is equal.
    """

    name = "bracket_counting"
    unseen: ClassVar = {
        "guard": _template(
            "def guard({noun}):\n    if {noun} is None:\n        return False\n    {list} = ", "    return {list}\n"
        ),
        "decorated": _template(
            "@cached\ndef fetch_{noun}(self):\n    self.{other} += 1\n    {list} = ", "    return {list}\n"
        ),
        "handler": _template(
            "try:\n    connect({noun})\nexcept TimeoutError as {other}:\n    {list} = ", "    raise\n"
        ),
        "module": _template("{noun}_default = 10\n{other}_default = {noun}_default * 2\n{list} = ", "launch()\n"),
        "coroutine": _template(
            "async def pump({noun}, {other}):\n    await {noun}.drain()\n    {list} = ", "    return {list}\n"
        ),
        "nested": _template(
            "def outer():\n    def inner({noun}):\n        {list} = ", "        return {list}\n    return inner\n"
        ),
        "attribute": _template(
            "class Table:\n    def reset(self):\n        self.{noun} = None\n        {list} = ",
            "        return {list}\n",
        ),
        "loop": _template(
            "for {noun} in sorted({other}, reverse=True):\n    if not {noun}:\n        continue\n    {list} = ",
            "    print({noun})\n",
        ),
        "retry": _template(
            "def retry({noun}, limit):\n    while limit:\n        limit -= 1\n        {list} = ",
            "        time.sleep(1)\n",
        ),
        "usage": _template(
            "import argparse\n\nparser = argparse.ArgumentParser()\n{list} = ", "args = parser.parse_args()\n"
        ),
    }

    def sites(self, text: str) -> Iterator[Site]:
        """Find assignments of a list of whole numbers, flat or of one row, that are followed by a line of code."""
        for match in _LIST.finditer(text):
            if len(match["open"]) == len(match["close"]):
                yield Site(
                    before=text[: match.end("line")],
                    content=match["content"],
                    after=text[match.end() : match.end() + N_CONTINUATION],
                )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Open one bracket or two; hard: after a line with a closed list of the other depth."""
        start = site.before.rfind("\n") + 1
        indent = re.match(" *", site.before[start:])
        name, numbers = rng.choice(words.LIST_NAMES), _numbers(rng)

        def side(depth: int) -> Side:
            other = 3 - depth
            distractor = f"{indent[0] if indent else ''}{name} = {'[' * other}{numbers}{']' * other}\n"
            inserted = distractor if form == "hard" else ""
            prompt = f"{site.before[:start]}{inserted}{site.before[start:]}{'[' * depth}{site.content}"
            return Side(prompt=prompt, answer="]" * depth + "\n", continuation=site.after)

        return side(2), side(1)
