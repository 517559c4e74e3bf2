"""single_double_quote: close a string with the mark that opened it."""

import random
import re
from collections.abc import Callable, Iterator
from typing import ClassVar

from sparse_circuits.corpus import words
from sparse_circuits.tasks.pairs import Form, Side
from sparse_circuits.tasks.sampling import N_CONTINUATION, Behaviour, Site

_CALL = re.compile(r"""\w\((?P<mark>["'])(?P<content>[A-Za-z][A-Za-z0-9 ,]*[A-Za-z0-9])(?P=mark)\)\n(?=[ \w])""")

_THINGS = ("Backup", "Cache", "Worker", "Job", "Session", "Archive", "Device", "Packet", "Invoice", "Ticket")
_STATES = ("ready now", "almost full", "out of date", "not responding", "up again", "under review", "on hold")
_PLACES = ("in the queue", "on disk", "for today", "at startup", "by the owner", "after midnight")


def _text(rng: random.Random) -> str:
    """Draw a message in words that the corpus's messages don't use."""
    text = rng.choice(_THINGS)
    if rng.random() < 0.8:
        text += " " + rng.choice(_STATES)
    if rng.random() < 0.5:
        text += " " + rng.choice(_PLACES)
    return text


def _template(code: str, after: str) -> Callable[[random.Random], Site]:
    """Make a sampler from code with a hole for a noun, before `(` and after `)`."""

    def sample(rng: random.Random) -> Site:
        noun, other = rng.sample(words.NOUNS, 2)
        return Site(
            before=code.format(noun=noun, other=other), content=_text(rng), after=after.format(noun=noun, other=other)
        )

    return sample


class SingleDoubleQuote(Behaviour):
    """After `("Some text` comes `")`, after `('Some text` comes `')`.

    Side 0 is the double quote. Plain form: a detector of any single quote in the context would do. Hard form: a
    closed string of the other kind stands before on each side, so only the open one tells.
    """

    name = "single_double_quote"
    unseen: ClassVar = {
        "retry": _template(
            "def retry({noun}, limit):\n    while limit:\n        limit -= 1\n        emit", "        time.sleep(1)\n"
        ),
        "guard": _template(
            "def guard({noun}):\n    if {noun} is None:\n        return False\n    announce", "    return True\n"
        ),
        "usage": _template("import argparse\n\nparser = argparse.ArgumentParser()\nparser.exit", "args = parser\n"),
        "decorated": _template(
            "@cached\ndef fetch_{noun}(self):\n    self.{other} += 1\n    self.whisper", "    return self.{other}\n"
        ),
        "handler": _template("try:\n    connect({noun})\nexcept TimeoutError as {other}:\n    complain", "    raise\n"),
        "module": _template("{noun}_default = 10\n{other}_default = {noun}_default * 2\nregister", "launch()\n"),
        "coroutine": _template(
            "async def pump({noun}, {other}):\n    await {noun}.drain()\n    {other}.note", "    return None\n"
        ),
        "nested": _template(
            "def outer():\n    def inner({noun}):\n        banner", "        return {noun}\n    return inner\n"
        ),
        "chain": _template(
            "def report({noun}):\n    {noun}.begin()\n    {noun}.line(1)\n    {noun}.line", "    {noun}.finish()\n"
        ),
        "loop": _template(
            "for {noun} in sorted({other}, reverse=True):\n    if not {noun}:\n        continue\n    shout",
            "    total = {noun}\n",
        ),
    }

    def sites(self, text: str) -> Iterator[Site]:
        """Find calls with one plain string that are followed by a line of code."""
        for match in _CALL.finditer(text):
            yield Site(
                before=text[: match.start() + 1],
                content=match["content"],
                after=text[match.end() : match.end() + N_CONTINUATION],
            )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Open the string with either mark; hard: behind a closed string of the other kind."""
        key = rng.choice(words.KEYS)

        def side(mark: str, other: str) -> Side:
            opening = f"({mark}" if form == "plain" else f"({other}{key}{other}, {mark}"
            return Side(prompt=f"{site.before}{opening}{site.content}", answer=f"{mark})\n", continuation=site.after)

        return side('"', "'"), side("'", '"')
