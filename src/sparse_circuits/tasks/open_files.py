"""Behaviours of opened files: with_as, with_open."""

import random
import re

from sparse_circuits.corpus import words
from sparse_circuits.tasks.pairs import Form, Side
from sparse_circuits.tasks.sampling import Behaviour, Site


class WithAs(Behaviour):
    """After `with open(path` comes `)` (and ` as f:`), after `return open(path` comes `)` with the line's end.

    Side 0 is `with`. Shortcut: a `with` anywhere. Hard form: a finished `with` block stands before, on both sides.
    """

    name = "with_as"
    idioms = ("with_path",)
    pattern = re.compile(r"^(?P<pad> *)(?:with|return) open\((?P<path>\w+)\)(?: as f:)?\n", re.MULTILINE)

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Open in a `with` or return what is opened; hard: after a `with` block."""
        pad, path = site.parts["pad"], site.parts["path"]
        other, text = rng.sample(words.NOUNS, 2)
        above = site.before
        if form == "hard":
            above += f"{pad}with open({other}) as f:\n{pad}    {text} = f.read()\n"
        return (
            Side(prompt=f"{above}{pad}with open({path}", answer=")", continuation=f" as f:\n{pad}    pass\n"),
            Side(prompt=f"{above}{pad}return open({path}", answer=")\n", continuation=f"{pad}pass\n"),
        )


class WithOpen(Behaviour):
    """After `with open("input.txt", "` comes `r`, after `with open("output.txt", "` comes `w`.

    Side 0 is a file that is read. A lexical lookup: the corpus decides which names are read. Hard form: a file of the
    other kind is opened before, the two exchanged between the sides.
    """

    name = "with_open"
    idioms = ("with_file",)
    pattern = re.compile(
        r"^(?P<pad> *)with open\((?P<mark>[\"'])\w+\.(?P<ending>\w+)(?P=mark), (?P<mode>[\"'])[rw](?P=mode)\) as f:\n",
        re.MULTILINE,
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Name a file that is read or one that is written; hard: after a block with the other kind."""
        pad, mark, ending, mode = (site.parts[name] for name in ("pad", "mark", "ending", "mode"))
        read, written = rng.choice(words.READ_STEMS), rng.choice(words.WRITE_STEMS)
        stems = {"r": (read, rng.choice(words.READ_STEMS)), "w": (written, rng.choice(words.WRITE_STEMS))}
        handler = rng.choice(words.CALLS)

        def side(letter: str, other: str) -> Side:
            above = f"{pad}with open({mark}{stems[other][1]}.{ending}{mark}, {mode}{other}{mode}) as f:\n"
            above += f"{pad}    {handler}(f)\n"
            opening = f"{pad}with open({mark}{stems[letter][0]}.{ending}{mark}, {mode}"
            return Side(
                prompt=site.before + (above if form == "hard" else "") + opening,
                answer=letter,
                continuation=f"{mode}) as f:\n{pad}    pass\n",
            )

        return side("r", "w"), side("w", "r")
