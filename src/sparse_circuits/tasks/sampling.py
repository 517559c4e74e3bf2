"""From a behaviour to a task: sites in code, pairs at the sites, splits by template."""

import abc
import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import ClassVar

from sparse_circuits.corpus.idioms import IDIOMS
from sparse_circuits.corpus.shards import Corpus
from sparse_circuits.errors import TaskError
from sparse_circuits.tasks.pairs import Form, Level, PairFilter, Pairs, Side, Task, TextPair, collect, hash_splits
from sparse_circuits.tokenizer import Tokenizer

N_LINE = 8
"""Most lines of context before the line of a mined site."""

N_CONTINUATION = 40
"""Most characters kept of what follows a site."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """A place in code where the behaviour is called for, with the part that the two sides differ in left out."""

    before: str
    """Code before that part, from the start of a line."""

    content: str
    """What stands between that part and the answer, the same on both sides."""

    after: str
    """Code after the answer."""


class Behaviour(abc.ABC):
    """One task: how to find its sites in code, and what the two sides are there."""

    name: str
    """Name of the task."""

    answers_vary = False
    """Whether the answers differ from pair to pair."""

    unseen: ClassVar[dict[str, Callable[[random.Random], Site]]]
    """Hand-written templates in wording that the corpus does not have."""

    @abc.abstractmethod
    def sites(self, text: str) -> Iterator[Site]:
        """Find the places in a piece of code where the behaviour is called for."""

    @abc.abstractmethod
    def sides(self, site: Site, form: Form, rng: random.Random) -> tuple[Side, Side]:
        """Make the two prompts at a site: `plain` with one edit, `hard` with a distractor before it."""


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
) -> Task:
    """Draw a task's pairs.

    The idioms in which the behaviour occurs are dealt to `fit`, `select` and `test` in turn; `test` has hand-written
    templates beside them, and a corpus gives the split `mined` from the held-out documents of its real code.

    Args:
        behaviour: What to sample.
        tokenizer: The model's; pairs that it breaks are dropped and counted.
        seed: Decides the pairs.
        corpus: Where to mine; None leaves `mined` out.
        sizes: Pairs wanted.

    Raises:
        TaskError: Fewer than half the pairs wanted survive the tokenizer.
    """
    sizes = sizes or SplitSizes()
    accept = PairFilter(tokenizer)
    seen = seen_templates(behaviour)
    if len(seen) < 4:
        raise TaskError(f"task {behaviour.name}: it occurs in {len(seen)} idioms, too few to deal to three splits")
    dealt = {"fit": seen[0::4] + seen[2::4], "select": seen[1::4], "test": seen[3::4]}
    splits: dict[str, Pairs] = {}

    def draw(split: str, sources: list[tuple[Level, int]], form: Form) -> None:
        parts = []
        for level, n_pair in sources:
            names = dealt["test" if split == "hard" else split] if level == "i" else sorted(behaviour.unseen)
            rng = random.Random(f"{behaviour.name}:{split}:{level}:{seed}")
            drawn = _drawn_pairs(behaviour, names, level, form, rng)
            part = collect(drawn, accept, n_pair=n_pair, n_try=20 * n_pair)
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
    )


def seen_templates(behaviour: Behaviour) -> list[str]:
    """List the idioms in which the behaviour occurs often enough to draw from: in a tenth of 200 draws."""
    found = []
    for name, idiom in IDIOMS.items():
        rng = random.Random(name)
        if sum(any(True for _ in behaviour.sites(idiom(rng))) for _ in range(200)) >= 20:
            found.append(name)
    return found


def _drawn_pairs(
    behaviour: Behaviour, names: list[str], level: Level, form: Form, rng: random.Random
) -> Iterator[TextPair]:
    """Yield pairs without end, templates in turn."""
    while True:
        for name in names:
            if level == "ii":
                site = behaviour.unseen[name](rng)
            else:
                sites = list(behaviour.sites(IDIOMS[name](rng)))
                if not sites:
                    continue
                site = rng.choice(sites)
            yield TextPair(sides=behaviour.sides(site, form, rng), template=name, level=level)


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
