"""From a behaviour to a task: sites in code, pairs at the sites, splits by template."""

import abc
import dataclasses
import random
import re
from collections.abc import Iterator

from sparse_circuits.corpus.idiom_pieces import Piece
from sparse_circuits.corpus.idioms import IDIOMS
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import TaskError
from sparse_circuits.tasks.contexts import SITUATIONS, UNSEEN, Context, Snippet, Template, as_piece, in_situation
from sparse_circuits.tasks.pairs import (
    MAX_TOKENS,
    Form,
    Level,
    PairFilter,
    Pairs,
    Side,
    Task,
    TextPair,
    collect,
    hash_splits,
)
from sparse_circuits.tokenizer import Tokenizer

N_LINE = 8
"""Most lines of context before the line of a mined site."""

N_FRUITLESS = 2_000
"""Draws of code without a site, one after the other, until a sampler gives up."""

N_IN_VAIN = 400
"""Draws that a tokenizer breaks, one after the other, until it is said to break all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """A place in code where the behaviour is called for."""

    before: str
    """Code before it."""

    parts: dict[str, str]
    """What stands there, by the names of the pattern's groups; a group that took no part is left out."""

    after: str
    """Code after it."""


class Behaviour(abc.ABC):
    """One task: how to find its sites in code, and what the two sides are there."""

    name: str
    """Name of the task."""

    pattern: re.Pattern[str]
    """Matches a site, with a group for each part that the sides are made of."""

    idioms: tuple[str, ...] = ()
    """The idioms in which the behaviour is called for; none if it is in many, which are then found."""

    answers_vary: bool = False
    """Whether the answers differ from pair to pair."""

    is_control: bool = False
    """Whether its rule is one that no corpus follows."""

    last_token_tells: bool = False
    """Whether the sides may differ in their last token: then a bigram table answers, and the card says so."""

    def sites(self, text: str) -> Iterator[Site]:
        """Find the places in a piece of code where the behaviour is called for."""
        for match in self.pattern.finditer(text):
            parts = {name: part for name, part in match.groupdict().items() if part is not None}
            yield Site(before=text[: match.start()], parts=parts, after=text[match.end() :])

    @abc.abstractmethod
    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Make the two prompts at a site: `plain` with one edit, `hard` with a distractor before it."""

    def unseen_piece(self, rng: random.Random) -> Piece:
        """Return what is put into the hand-written contexts of level ii: one of the idioms."""
        return as_piece(rng.choice(self.idioms))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitSizes:
    """Pairs wanted of each split."""

    fit: int = 1024
    """For learning masks."""

    select: int = 256
    """For size, calibration and removals."""

    test: int = 512
    """For verification, of level i and again of level ii."""

    hard: int = 256
    """Of the hard form, of level i and again of level ii."""

    mined: int = 256
    """From held-out files, as many as there are."""


def sample_task(
    behaviour: Behaviour,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    corpus: Corpus | None = None,
    sizes: SplitSizes | None = None,
    max_token: int = MAX_TOKENS,
) -> Task:
    """Draw a task's pairs.

    The templates that the corpus has are dealt to `fit`, `select` and `test` in turn; `test` has hand-written contexts
    beside them, and a corpus gives the split `mined` from the held-out documents of its real code.

    Args:
        behaviour: What to sample.
        tokenizer: The model's; pairs that it breaks are dropped and counted.
        seed: Decides the pairs.
        corpus: Where to mine; None leaves `mined` out.
        sizes: Pairs wanted.
        max_token: Longer prompts are dropped.

    Raises:
        TaskError: Fewer than half the pairs wanted survive the tokenizer.
    """
    sizes = sizes or SplitSizes()
    accept = PairFilter(tokenizer, max_token=max_token, last_token_tells=behaviour.last_token_tells)
    templates = seen_templates(behaviour)
    seen = list(templates)
    dealt = {"fit": seen[0::4] + seen[2::4], "select": seen[1::4], "test": seen[3::4]}
    splits: dict[str, Pairs] = {}

    def draw(split: str, sources: list[tuple[Level, int]], form: Form) -> None:
        parts = []
        for level, n_pair in sources:
            if level == "i":
                chosen = {name: templates[name] for name in dealt["test" if split == "hard" else split]}
            else:
                chosen = unseen_templates(behaviour)
            rng = _rng(behaviour, split, level, seed)
            drawn = _drawn_pairs(behaviour, chosen, level, form, rng)
            part = collect(drawn, accept, n_pair=n_pair, n_try=20 * n_pair, n_in_vain=N_IN_VAIN)
            _refuse_too_few(behaviour, split, part, n_pair, accept)
            parts.append(part)
        splits[split] = Pairs.join(parts)

    draw("fit", [("i", sizes.fit)], "plain")
    draw("select", [("i", sizes.select)], "plain")
    draw("test", [("i", sizes.test), ("ii", sizes.test)], "plain")
    draw("hard", [("i", sizes.hard), ("ii", sizes.hard)], "hard")
    hash_ = hash_splits(splits)
    if corpus is not None:
        mined = _mined_pairs(behaviour, corpus, random.Random(f"{behaviour.name}:mined:{seed}"))
        splits["mined"] = collect(mined, accept, n_pair=sizes.mined, n_try=1 << 30)
    return Task(
        name=behaviour.name,
        seed=seed,
        splits=splits,
        n_dropped=dict(accept.n_dropped),
        answers_vary=behaviour.answers_vary,
        hash=hash_,
        max_token=max_token,
        is_control=behaviour.is_control,
    )


def unseen_pairs(behaviour: Behaviour, tokenizer: Tokenizer, *, seed: int = 0) -> Pairs:
    """Draw the pairs of `test`, level ii, alone, and some more: `test` leaves out what other splits have."""
    rng, n_pair = _rng(behaviour, "test", "ii", seed), SplitSizes().test + 32
    drawn = _drawn_pairs(behaviour, unseen_templates(behaviour), "ii", "plain", rng)
    accept = PairFilter(tokenizer, max_token=MAX_TOKENS, last_token_tells=behaviour.last_token_tells)
    return collect(drawn, accept, n_pair=n_pair, n_try=20 * n_pair, n_in_vain=N_IN_VAIN)


def seen_templates(behaviour: Behaviour) -> dict[str, Template]:
    """Return samplers of code as the corpus has it, by name.

    A behaviour that is in many idioms has them as templates, those in which it occurs in a tenth of 200 draws. One
    that is in few has the kinds of statement that an idiom puts before it.
    """
    if behaviour.idioms:
        return {
            f"{idiom} after {situation}": in_situation(idiom, situation)
            for idiom in behaviour.idioms
            for situation in SITUATIONS
        }
    found: dict[str, Template] = {}
    for name, idiom in IDIOMS.items():
        rng = random.Random(name)
        if sum(any(True for _ in behaviour.sites(idiom(rng))) for _ in range(200)) >= 20:
            found[name] = _of_idiom(name)
    return found


def _of_idiom(name: str) -> Template:
    return lambda rng: Snippet(before="", piece=IDIOMS[name](rng))


def unseen_templates(behaviour: Behaviour) -> dict[str, Template]:
    """Return samplers of code with the behaviour in a hand-written context, by name."""

    def sampler(context: Context) -> Template:
        return lambda rng: context.around(behaviour.unseen_piece(rng), rng)

    return {name: sampler(context) for name, context in UNSEEN.items()}


def longer_pairs(
    behaviour: Behaviour, tokenizer: Tokenizer, *, seed: int, above: int, max_token: int, n_pair: int
) -> Pairs:
    """Draw plain pairs of more than `above` tokens: code of other templates stands before the code of the site.

    Args:
        behaviour: What to sample; its templates are those of `test`, level i.
        tokenizer: The model's.
        seed: Decides the pairs.
        above: Prompts are longer than this.
        max_token: And at most this long.
        n_pair: Pairs wanted; fewer are returned if too few fit.
    """
    rng = random.Random(f"{behaviour.name}:longer:{seed}")
    templates = seen_templates(behaviour)
    dealt = {name: templates[name] for name in list(templates)[3::4]}
    others = list(IDIOMS.values())

    def source() -> Iterator[TextPair]:
        for pair in _drawn_pairs(behaviour, dealt, "i", "plain", rng):
            padding = ""
            while len(tokenizer.encode(padding + pair.sides[0].prompt)) <= above:
                padding += rng.choice(others)(rng)
            first, second = (dataclasses.replace(side, prompt=padding + side.prompt) for side in pair.sides)
            yield dataclasses.replace(pair, sides=(first, second))

    accept = PairFilter(tokenizer, max_token=max_token, last_token_tells=behaviour.last_token_tells)
    return collect(source(), accept, n_pair=n_pair, n_try=6 * n_pair)


def _rng(behaviour: Behaviour, split: str, level: Level, seed: int) -> random.Random:
    return random.Random(f"{behaviour.name}:{split}:{level}:{seed}")


def _drawn_pairs(
    behaviour: Behaviour, templates: dict[str, Template], level: Level, form: Form, rng: random.Random
) -> Iterator[TextPair]:
    """Yield pairs, templates in turn; it ends when `N_FRUITLESS` draws after another have no site, or nothing draws.

    Only sites in what a template is about count: the code before it has some at times, which belong to other templates.
    """
    n_fruitless = 0
    while templates and n_fruitless < N_FRUITLESS:
        for name, template in templates.items():
            code = template(rng)
            sites = [site for site in behaviour.sites(code.text) if code.is_about(len(site.before))]
            n_fruitless = 0 if sites else n_fruitless + 1
            if sites:
                yield TextPair(sides=behaviour.sides(rng.choice(sites), form, rng), template=name, level=level)


def _mined_pairs(behaviour: Behaviour, corpus: Corpus, rng: random.Random) -> Iterator[TextPair]:
    """Yield the plain pairs at all sites in the held-out documents of real code, in random order."""
    found = []
    for source in corpus.sources:
        if source == "idioms":
            continue
        for number, ids in enumerate(corpus.documents(source, "validation")):
            for site in behaviour.sites(corpus.tokenizer.decode(ids)):
                lines = site.before.splitlines(keepends=True)[-N_LINE:]
                found.append((f"{source}:{number}", dataclasses.replace(site, before="".join(lines))))
    rng.shuffle(found)
    for template, site in found:
        yield TextPair(sides=behaviour.sides(site, "plain", rng), template=template, level="iii")


def _refuse_too_few(behaviour: Behaviour, split: str, pairs: Pairs, n_wanted: int, accept: PairFilter) -> None:
    if len(pairs) >= n_wanted / 2:
        return
    reasons = "; ".join(f"{n:,} × {reason}" for reason, n in accept.n_dropped.most_common(4))
    raise TaskError(
        f"task {behaviour.name}: only {len(pairs)} of {n_wanted} {split} pairs survive this tokenizer ({reasons})"
    )
