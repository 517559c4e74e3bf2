"""Behaviours of strings: single_double_quote, fstring_brace."""

import random
import re

from sparse_circuits.corpus import words
from sparse_circuits.corpus.idiom_pieces import Piece, pick
from sparse_circuits.tasks.pairs import Form, Side
from sparse_circuits.tasks.sampling import Behaviour, Site

_THINGS = ("Backup", "Cache", "Worker", "Job", "Session", "Archive", "Device", "Packet", "Invoice", "Ticket")
_STATES = ("ready now", "almost full", "out of date", "not responding", "up again", "under review", "on hold")
_PLACES = ("in the queue", "on disk", "for today", "at startup", "by the owner", "after midnight")
_SPEAKERS = ("emit", "announce", "complain", "whisper", "banner", "shout", "register", "parser.exit", "self.note")


def _speak(rng: random.Random, pad: str, names: list[str]) -> str:
    """Draw a call with a message, in words that the corpus's messages don't use."""
    text = rng.choice(_THINGS)
    if rng.random() < 0.8:
        text += " " + rng.choice(_STATES)
    if rng.random() < 0.5:
        text += " " + rng.choice(_PLACES)
    return f'{pad}{rng.choice(_SPEAKERS)}("{text}")\n'


class SingleDoubleQuote(Behaviour):
    """After `("Some text` comes `")`, after `('Some text` comes `')`.

    Side 0 is the double quote. Shortcut: a detector of any single quote in the context would do. Hard form: a closed
    string of the other kind stands before on each side, so only the open one tells.
    """

    name = "single_double_quote"
    pattern = re.compile(
        r"""(?<=\w)\((?P<mark>["'])(?P<text>[A-Za-z][A-Za-z0-9 ,]*[A-Za-z0-9])(?P=mark)\)\n(?=[ \w])"""
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Open the string with either mark; hard: behind a closed string of the other kind."""
        key = rng.choice(words.KEYS)

        def side(mark: str, other: str) -> Side:
            opening = f"({mark}" if form == "plain" else f"({other}{key}{other}, {mark}"
            return Side(
                prompt=f"{site.before}{opening}{site.parts['text']}", answer=f"{mark})\n", continuation=site.after
            )

        return side('"', "'"), side("'", '"')

    def unseen_piece(self, rng: random.Random) -> Piece:
        """Return a call in other words than the corpus's."""
        return _speak


class FstringBrace(Behaviour):
    """After `print(f"Total count` comes ` {`, after `print("New total count` comes `",`.

    Side 0 is the f-string; side 1 has a word more, of many, where the tokenizer makes `(f"Total` a token longer than
    `("Total`. Shortcut: any `f"` in the context. Hard form: a finished call of the other kind stands before, the two
    exchanged between the sides.
    """

    name = "fstring_brace"
    idioms = ("f_strings", "conversation", "greeting")
    pattern = re.compile(
        rf'(?P<call>[\w.]+\()f?"(?P<start>{"|".join(words.MEASURED_STARTS)}) (?P<word>[a-z]+)'
        r'(?: {\w+}"|", \w+|")\)\n'
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Write `f` before the string or not; hard: after a line with the other kind."""
        call, start, word = (site.parts[name] for name in ("call", "start", "word"))
        pad = site.before[site.before.rfind("\n") + 1 :]
        other, value = f"{pick(rng, words.MEASURED_STARTS)} is", pick(rng, words.NOUNS)
        filled = f"{start} {word}"
        if rng.random() < 0.5:
            filled = f"{pick(rng, words.TEXT_NOUNS).capitalize()} {filled.lower()}"
        above = ("", "")
        if form == "hard":
            filled = f"{start} {word}"
            closed = f'{call}"{other}", {value})', f'{call}f"{other} {{{value}}}")'
            above = (f"{closed[0]}\n{pad}", f"{closed[1]}\n{pad}")
        return (
            Side(prompt=f'{site.before}{above[0]}{call}f"{start} {word}', answer=" {", continuation=f'{value}}}")\n'),
            Side(prompt=f'{site.before}{above[1]}{call}"{filled}', answer='",', continuation=f" {value})\n"),
        )
