"""Where a behaviour stands: situations as in the idioms, and code around it that the idioms never write."""

import dataclasses
import textwrap
from collections.abc import Callable
from random import Random

from sparse_circuits.corpus import words
from sparse_circuits.corpus.idiom_blocks import BLOCKS
from sparse_circuits.corpus.idiom_pieces import (
    Piece,
    assign,
    assign_names,
    assign_numbers,
    assign_string,
    change,
    comment,
    decide,
    docstring,
    loop,
    refuse,
    speak,
    speak_formatted,
)
from sparse_circuits.corpus.idioms import IDIOMS, arguments, function_name

SITUATIONS: dict[str, Piece] = {
    "nothing": lambda rng, pad, names: "",
    "docstring": lambda rng, pad, names: docstring(rng, pad),
    "message": speak,
    "f-string": speak_formatted,
    "expression": assign,
    "numbers": assign_numbers,
    "names": assign_names,
    "string": assign_string,
    "change": change,
    "comment": comment,
    "condition": decide,
    "loop": loop,
    "refusal": refuse,
}
"""Statements that the idioms put before a construct: the model saw them there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snippet:
    """Code drawn from a template, and which part of it the template is about."""

    before: str
    """Code that leads up to it."""

    piece: str
    """What it is about: the idiom that calls for the behaviour."""

    after: str = ""
    """Code behind it."""

    @property
    def text(self) -> str:
        """All of the code."""
        return f"{self.before}{self.piece}{self.after}"

    def is_about(self, place: int) -> bool:
        """Say whether a place in the text lies in the piece."""
        return 0 <= place - len(self.before) < len(self.piece)


Template = Callable[[Random], Snippet]
"""Draws code."""


def in_situation(idiom: str, situation: str) -> Template:
    """Make a sampler of an idiom right after a statement of the given kind, as the corpus has it."""
    before = SITUATIONS[situation]

    def sample(rng: Random) -> Snippet:
        if idiom not in BLOCKS:  # a top-level idiom
            above = before(rng, "", arguments(rng))
            return Snippet(before=f"{above}\n\n" if above else "", piece=IDIOMS[idiom](rng))
        names = arguments(rng)
        head = f"def {function_name(rng)}({', '.join(names)}):\n"
        return Snippet(
            before=head + before(rng, "    ", names),
            piece=BLOCKS[idiom](rng, "    ", names),
            after=f"    return {names[0]}\n",
        )

    return sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """Hand-written code with a hole, in wording that the corpus does not have."""

    before: str
    """Code before the hole; `{noun}` and `{other}` are names."""

    pad: str
    """Indentation of the hole."""

    after: str = ""
    """Code after it."""

    def around(self, piece: Piece, rng: Random) -> Snippet:
        """Draw names, and put a piece into the hole."""
        noun, other = rng.sample(words.NOUNS, 2)
        inside = piece(rng, self.pad, [noun, other])
        before, after = (text.replace("{noun}", noun).replace("{other}", other) for text in (self.before, self.after))
        return Snippet(before=before, piece=inside, after=after)


UNSEEN: dict[str, Context] = {
    "retry": Context(
        before="def retry({noun}, {other}):\n    while {noun}:\n        {noun} -= 1\n        {other}.knock()\n",
        pad="    ",
        after="    time.sleep({noun})\n",
    ),
    "guard": Context(
        before="def guard({noun}, {other}):\n    if {noun} is {other}:\n        yield {noun}\n",
        pad="    ",
        after="    return True\n",
    ),
    "usage": Context(
        before="def usage({noun}):\n    {other} = argparse.ArgumentParser({noun})\n",
        pad="    ",
        after="    return {other}.parse_args()\n",
    ),
    "decorated": Context(
        before="@cached\ndef fetch_{noun}(self):\n    self.{other} += 1\n",
        pad="    ",
        after="    return self.{other}\n",
    ),
    "handler": Context(
        before="try:\n    connect({noun})\nexcept TimeoutError as {other}:\n", pad="    ", after="    raise\n"
    ),
    "coroutine": Context(
        before="async def pump({noun}, {other}):\n    await {noun}.drain()\n", pad="    ", after="    return None\n"
    ),
    "typed": Context(
        before="def scan({noun}: int, {other}: str) -> bool:\n    assert {noun} >= 2\n",
        pad="    ",
        after="    return {noun} >= 10\n",
    ),
    "chain": Context(
        before="def report({noun}, {other}):\n    {noun}.begin().line(1).line({other})\n",
        pad="    ",
        after="    {noun}.finish()\n",
    ),
    "loop": Context(
        before="for {noun} in sorted({other}, reverse=True):\n    del {noun}.cached\n",
        pad="    ",
        after="    yield {noun}\n",
    ),
    "starred": Context(
        before="def spread(*{noun}, **{other}):\n    {noun} = [*{noun}, *{other}]\n",
        pad="    ",
        after="    return {noun}, {other}\n",
    ),
}
"""Contexts of level ii by name."""


def as_piece(idiom: str) -> Piece:
    """Return an idiom as a piece that can stand at any indentation."""
    if idiom in BLOCKS:
        return BLOCKS[idiom]
    return lambda rng, pad, names: textwrap.indent(IDIOMS[idiom](rng), pad)
