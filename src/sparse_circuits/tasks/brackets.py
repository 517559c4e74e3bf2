"""Behaviours of brackets: bracket_counting, bracket_brace."""

import random
import re

from sparse_circuits.corpus import words
from sparse_circuits.corpus.idiom_pieces import Piece, assign_numbers
from sparse_circuits.tasks.pairs import Form, Side
from sparse_circuits.tasks.sampling import Behaviour, Site


class BracketCounting(Behaviour):
    """After `values = [[5, 3, 11` comes `]]`, after `values = [5, 3, 11` comes `]`.

    Side 0 is the nested list. Shortcut: counting every `[` of the context would do. Hard form: a closed list of the
    other depth stands before on each side, so the number of `[` in all is equal.
    """

    name = "bracket_counting"
    pattern = re.compile(
        r"^(?P<pad> *)(?P<target>[\w.]+ = )\[(?P<nested>\[)?(?P<numbers>\d{1,3}(?:, \d{1,3})*)"
        r"(?(nested)\])\]\n(?=[ \w])",
        re.MULTILINE,
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Open one bracket or two; hard: after a line with a closed list of the other depth."""
        pad, target, content = (site.parts[name] for name in ("pad", "target", "numbers"))
        name = rng.choice(words.LIST_NAMES)
        numbers = ", ".join(str(rng.randrange(10 ** rng.randint(1, 3))) for _ in range(rng.randint(1, 8)))

        def side(depth: int) -> Side:
            other = 3 - depth
            distractor = f"{pad}{name} = {'[' * other}{numbers}{']' * other}\n" if form == "hard" else ""
            return Side(
                prompt=f"{site.before}{distractor}{pad}{target}{'[' * depth}{content}",
                answer="]" * depth + "\n",
                continuation=site.after,
            )

        return side(2), side(1)

    def unseen_piece(self, rng: random.Random) -> Piece:
        """Return an assignment of numbers."""
        return assign_numbers


class BracketBrace(Behaviour):
    """After `data = {key` comes `:`, after `data = [key` comes `,`.

    Side 0 is the dict. Shortcut: copying the last separator, which is why only the first key is asked. Hard form: the
    container is the second one in a list, behind a closed one of either kind.
    """

    name = "bracket_brace"
    idioms = ("containers",)
    pattern = re.compile(
        r"^(?P<target> *\w+ = )[{\[](?P<key>\w+(?:\.\w+| \+ \w+)?)(?:: |, )(?P<value>\w+)[}\]]\n", re.MULTILINE
    )

    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Open a dict or a list; hard: behind another container in a list."""
        target, key, value = (site.parts[name] for name in ("target", "key", "value"))
        closed = rng.choice(("{{{}: {}}}", "[{}, {}]")).format(*rng.sample(words.NOUNS, 2))
        before, after = (f"[{closed}, ", "]") if form == "hard" else ("", "")

        def side(opening: str, separator: str, closing: str) -> Side:
            return Side(
                prompt=f"{site.before}{target}{before}{opening}{key}",
                answer=separator,
                continuation=f" {value}{closing}{after}\n{site.after}",
            )

        return side("{", ":", "}"), side("[", ",", "]")
