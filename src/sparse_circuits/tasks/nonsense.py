"""Controls: rules that the corpus never follows. A method that finds small circuits for these too shows nothing."""

import random
import re
from collections.abc import Iterator
from typing import ClassVar

from sparse_circuits.corpus import words
from sparse_circuits.corpus.idiom_pieces import Piece, assign
from sparse_circuits.tasks.pairs import Form, Side
from sparse_circuits.tasks.sampling import Behaviour, Site


class UnrelatedAnswers(Behaviour):
    """The prompts of one task with the answers of another that has nothing to do with it.

    Args:
        base: Whose prompts.
        answers: The tokens called right after side 0 and side 1.
    """

    is_control = True

    def __init__(self, base: Behaviour, answers: tuple[str, str]) -> None:
        self.base, self.answers = base, answers
        self.name = f"nonsense_{base.name}"
        self.idioms = base.idioms
        self.__doc__ = (
            f"The prompts of {base.name}; {answers[0]!r} is called right after side 0, {answers[1]!r} after 1."
        )

    def sites(self, text: str) -> Iterator[Site]:
        """Find the base's sites."""
        return self.base.sites(text)

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Make the base's prompts, and call other answers right."""
        first, second = (
            Side(prompt=side.prompt, answer=answer, continuation=" name")
            for side, answer in zip(self.base.sides(site, form, rng), self.answers, strict=True)
        )
        return first, second

    def unseen_piece(self, rng: random.Random) -> Piece:
        """Return the base's."""
        return self.base.unseen_piece(rng)


class Initial(Behaviour):
    """After `value = other` the line is called over if `value` begins with a to m, else ` +` is called right.

    A rule on a feature that means nothing. Hard form: the same.
    """

    name = "nonsense_initial"
    is_control = True
    idioms = ("for_or_while", "ternary", "comments")
    pattern = re.compile(r"^(?P<pad> *)(?P<name>[a-z]+) = (?P<value>[a-z]+)\n", re.MULTILINE)
    early: ClassVar = tuple(name for name in words.NOUNS if name[0] <= "m")
    late: ClassVar = tuple(name for name in words.NOUNS if name[0] > "m")

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Assign to a name of the first or of the second half of the alphabet."""
        pad, value = site.parts["pad"], site.parts["value"]
        return (
            Side(
                prompt=f"{site.before}{pad}{rng.choice(self.early)} = {value}", answer="\n", continuation=f"{pad}pass\n"
            ),
            Side(prompt=f"{site.before}{pad}{rng.choice(self.late)} = {value}", answer=" +", continuation=" 1\n"),
        )

    def unseen_piece(self, rng: random.Random) -> Piece:
        """Return an assignment."""
        return assign
