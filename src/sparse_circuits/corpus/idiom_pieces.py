"""Words, strings, number lists and statements that the idioms are put together from.

A *piece* is a function of a random generator, the indentation as a string and the names in scope.
It returns whole lines of Python, and adds the names that it defines to the scope.
"""

from collections.abc import Callable, Sequence
from random import Random

from sparse_circuits.corpus import words

Piece = Callable[[Random, str, list[str]], str]

_N_WORD = (1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7, 8, 9)
_N_ELEMENT = (1,) * 12 + (2,) * 13 + (3,) * 11 + (4,) * 7 + (5,) * 4
_PHRASE = (words.TEXT_NOUNS, words.TEXT_VERBS, words.TEXT_LINKS)


def pick(rng: Random, pool: Sequence[str]) -> str:
    """Draws one word of a pool, faster than `rng.choice`."""
    return pool[int(rng.random() * len(pool))]


def distinct(rng: Random, pool: Sequence[str], n_word: int) -> list[str]:
    """Draws different words of a pool, in random order."""
    chosen: list[str] = []
    while len(chosen) < n_word:
        word = pick(rng, pool)
        if word not in chosen:
            chosen.append(word)
    return chosen


def variable(rng: Random) -> str:
    """Draws a name for a single value, one in five of them from the held-out ones."""
    return pick(rng, words.HELD_OUT_NAMES if rng.random() < 0.2 else words.NOUNS)


def attribute(rng: Random) -> str:
    """Draws a name that follows a dot, two in five of them from the held-out ones."""
    return pick(rng, words.HELD_OUT_NAMES if rng.random() < 0.4 else words.NOUNS)


def define(rng: Random, names: list[str], pool: Sequence[str] = words.NOUNS) -> str:
    """Draws a name, preferably a new one, and adds it to the scope."""
    name = pick(rng, pool)
    if name in names:
        name = pick(rng, pool)
    if name not in names:
        names.append(name)
    return name


def two(rng: Random, names: Sequence[str]) -> tuple[str, str]:
    """Draws two names of the scope, different ones where there are two."""
    first = int(rng.random() * len(names))
    second = int(rng.random() * len(names))
    if first == second:
        second = (first + 1) % len(names)
    return names[first], names[second]


def integer(rng: Random) -> str:
    """Draws a number of one digit (half), two (a third) or three."""
    draw = rng.random()
    if draw < 0.5:
        return str(int(draw * 20))
    return str(int(rng.random() * (100 if draw < 0.83 else 1000)))


def message(rng: Random) -> str:
    """Draws a text of 1 to 9 words without quotes; about one in seven has a comma or a digit."""
    n_word = _N_WORD[int(rng.random() * len(_N_WORD))]
    phase = int(rng.random() * 3)
    if rng.random() < 0.5:
        text = [pick(rng, _PHRASE[(phase + i) % 3]) for i in range(n_word)]
    else:
        text = [pick(rng, words.TEXT_OTHERS) for _ in range(n_word)]
    if rng.random() < 0.6:
        text[0] = text[0].capitalize()
    if n_word > 1 and rng.random() < 0.16:
        at = int(rng.random() * (n_word - 1))
        if rng.random() < 0.5:
            text[at] += ","
        else:
            text[at + 1] = integer(rng)
    return " ".join(text)


def measured(rng: Random) -> str:
    """Draws what stands before a value: `Total count`, `Name is`, `Price`."""
    start = pick(rng, words.MEASURED_STARTS)
    draw = rng.random()
    if draw < 0.2:
        return start
    return f"{start} {pick(rng, words.TEXT_LINKS if draw < 0.5 else words.TEXT_NOUNS)}"


def quote(rng: Random, text: str) -> str:
    """Puts a text between quotes of a kind drawn independently of everything else."""
    return f'"{text}"' if rng.random() < 0.5 else f"'{text}'"


def string(rng: Random) -> str:
    """Draws a string literal: a message."""
    return quote(rng, message(rng))


def key_string(rng: Random) -> str:
    """Draws a string literal of one short word."""
    return quote(rng, pick(rng, words.KEYS))


def file_string(rng: Random, stems: Sequence[str]) -> str:
    """Draws a string literal that names a file."""
    stem = pick(rng, stems)
    if rng.random() < 0.2:
        stem = f"{stem}_{pick(rng, words.PLURALS)}"
    return quote(rng, f"{stem}.{pick(rng, words.ENDINGS)}")


def open_call(rng: Random, *, writes: bool) -> str:
    """Draws `open("input.txt", "r")`; one time in 64 the mode is not the one that fits the stem."""
    fits = rng.random() > 1 / 64
    mode = "w" if writes == fits else "r"
    name = file_string(rng, words.WRITE_STEMS if writes else words.READ_STEMS)
    return f"open({name}, {quote(rng, mode)})"


def row(rng: Random, n_element: int | None = None) -> str:
    """Draws numbers joined by commas: 1 to 24 of them if their number is not given."""
    if n_element is None:
        n_element = _N_ELEMENT[int(rng.random() * len(_N_ELEMENT))]
        if rng.random() < 0.06:
            n_element = 6 + int(rng.random() ** 3 * 19)
    return ", ".join([integer(rng) for _ in range(n_element)])


def number_list(rng: Random) -> str:
    """Draws a list of numbers: flat (half), of one inner row (a quarter) or of 2 to 4 rows."""
    draw = rng.random()
    if draw < 0.5:
        return f"[{row(rng)}]"
    if draw < 0.76:
        return f"[[{row(rng)}]]"
    n_column = 1 + int(rng.random() ** 2 * 3)
    n_row = 2 if draw < 0.92 else 3 if draw < 0.97 else 4
    return "[" + ", ".join([f"[{row(rng, n_column)}]" for _ in range(n_row)]) + "]"


def condition(rng: Random, names: Sequence[str]) -> str:
    """Draws a condition on names of the scope."""
    draw = int(rng.random() * 12)
    left, right = two(rng, names)
    match draw:
        case 0 | 1 | 2:
            return left
        case 3:
            return f"not {left}"
        case 4:
            return f"{left} and {right}"
        case 5:
            return f"{left} > {right}"
        case 6:
            return f"{left} < {integer(rng)}"
        case 7:
            return f"{left} == {integer(rng)}"
        case 8:
            return f"{left} == {key_string(rng)}"
        case 9:
            return f"{left} is None"
        case 10:
            return f"{left} in {right}"
        case _:
            return f"{left} == {right}"


def expression(rng: Random, names: Sequence[str]) -> str:
    """Draws a value made of names of the scope."""
    draw = int(rng.random() * 14)
    left, right = two(rng, names)
    match draw:
        case 0 | 1 | 2:
            return left
        case 3 | 4:
            return f"{left} + {right}"
        case 5:
            return f"{left} * {integer(rng)}"
        case 6:
            return f"{left} - 1"
        case 7:
            return f"{pick(rng, words.CALLS)}({left})"
        case 8 | 9:
            return f"{left}.{attribute(rng)}"
        case 10:
            return f"{left}[{right}]"
        case 11:
            return f"{left}[0]"
        case 12:
            return "None" if rng.random() < 0.5 else "False"
        case _:
            return integer(rng)


def speaker_of(rng: Random, names: Sequence[str]) -> str:
    """Draws what takes a message: `print`, another function, or a method of something."""
    draw = rng.random()
    if draw < 0.5:
        return pick(rng, words.SPEAKERS)
    if draw < 0.65:
        return f"{pick(rng, words.VERBS)}_{pick(rng, words.NOUNS)}" if draw < 0.6 else pick(rng, words.VERBS)
    owner = pick(rng, names) if draw < 0.8 else pick(rng, words.RESOURCES)
    return f"{owner}.{pick(rng, words.SPEAKING_METHODS)}"


def speak(rng: Random, pad: str, names: list[str]) -> str:
    """Calls that say something: `print("Total is", total)`, `log('done')`, `send(text("..."))`."""
    speaker = speaker_of(rng, names)
    draw = rng.random()
    if draw < 0.74:
        return f"{pad}{speaker}({string(rng)})\n"
    if draw < 0.88:
        text = quote(rng, measured(rng)) if rng.random() < 0.5 else string(rng)
        return f"{pad}{speaker}({text}, {pick(rng, names)})\n"
    if draw < 0.93:
        return f"{pad}{speaker}({pick(rng, names)}, {string(rng)})\n"
    if draw < 0.96:
        return f"{pad}{speaker}({pick(rng, words.CALLS)}({string(rng)}))\n"
    return f"{pad}{speaker}({key_string(rng)}, {string(rng)})\n"


def speak_formatted(rng: Random, pad: str, names: list[str]) -> str:
    """Calls with an f-string: `print(f"Total count {total}")`."""
    mark = '"' if rng.random() < 0.8 else "'"
    text = measured(rng) if rng.random() < 0.75 else message(rng)
    left, right = two(rng, names)
    tail = f" {pick(rng, words.TEXT_LINKS)} {{{right}}}" if rng.random() < 0.2 else ""
    return f"{pad}{pick(rng, words.SPEAKERS)}(f{mark}{text} {{{left}}}{tail}{mark})\n"


def assign_string(rng: Random, pad: str, names: list[str]) -> str:
    """Assignments of strings: `title = "..."`, `data["key"] = '...'`, `words = ["...", '...']`."""
    draw = rng.random()
    if draw < 0.5:
        return f"{pad}{define(rng, names)} = {string(rng)}\n"
    if draw < 0.75:
        source = pick(rng, names)
        return f"{pad}{define(rng, names)} = {source}[{key_string(rng)}]\n"
    if draw < 0.88:
        return f"{pad}{pick(rng, names)}[{key_string(rng)}] = {string(rng)}\n"
    items = ", ".join([string(rng) for _ in range(2 + int(rng.random() * 2))])
    return f"{pad}{define(rng, names, words.PLURALS)} = [{items}]\n"


def assign_numbers(rng: Random, pad: str, names: list[str]) -> str:
    """Assignments of number lists, flat or nested: `values = [5, 3, 11]`, `rows = [[1, 2]]`."""
    text = f"{pad}{define(rng, names, words.LIST_NAMES)} = {number_list(rng)}\n"
    if rng.random() < 0.25:
        text += f"{pad}{define(rng, names, words.LIST_NAMES)} = {number_list(rng)}\n"
    return text


def assign_names(rng: Random, pad: str, names: list[str]) -> str:
    """Assignments of lists and tuples of names: `items = [left, right]`, `pairs = [[a, b]]`."""
    left, right = two(rng, names)
    draw = rng.random()
    target = define(rng, names, words.LIST_NAMES)
    if draw < 0.4:
        return f"{pad}{target} = [{left}, {right}]\n"
    if draw < 0.6:
        return f"{pad}{target} = [[{left}, {right}]]\n"
    if draw < 0.75:
        return f"{pad}{target} = [{left}, [{right}]]\n"
    if draw < 0.9:
        return f"{pad}{target} = ({left}, {right})\n"
    return f"{pad}{target} = {{{left}, {right}}}\n"


def assign(rng: Random, pad: str, names: list[str]) -> str:
    """An assignment of an expression: `total = left + right`."""
    value = expression(rng, names)
    return f"{pad}{define(rng, names)} = {value}\n"


def change(rng: Random, pad: str, names: list[str]) -> str:
    """A change in place or a call: `total += 1`, `items.append(name)`, `update(total)`."""
    draw = rng.random()
    left, right = two(rng, names)
    if draw < 0.35:
        return f"{pad}{left} += {right if rng.random() < 0.5 else integer(rng)}\n"
    if draw < 0.7:
        return f"{pad}{left}.{pick(rng, words.METHODS)}({right})\n"
    if draw < 0.85:
        return f"{pad}{pick(rng, words.CALLS)}({left})\n"
    return f"{pad}print({left}, {right})\n"


def comment(rng: Random, pad: str, names: list[str]) -> str:
    """A comment line, sometimes one that looks like a loop: `# item in items:`."""
    if rng.random() < 0.35:
        at = int(rng.random() * len(words.PLURALS))
        text = f"{pad}# {words.SINGULARS[at]} in {words.PLURALS[at]}:\n"
    else:
        text = f"{pad}# {message(rng)}\n"
    return text + assign(rng, pad, names)


def decide(rng: Random, pad: str, names: list[str]) -> str:
    """An `if` with one or two statements below."""
    head = f"{pad}if {condition(rng, names)}:\n"
    return head + simple_block(rng, pad + "    ", list(names))


def refuse(rng: Random, pad: str, names: list[str]) -> str:
    """A check that raises: `raise ValueError("...")`."""
    error = pick(rng, words.EXCEPTIONS)
    return f"{pad}if {condition(rng, names)}:\n{pad}    raise {error}({string(rng)})\n"


def loop(rng: Random, pad: str, names: list[str]) -> str:
    """A `for` over a collection with one or two statements below."""
    at = int(rng.random() * len(words.PLURALS))
    item = words.SINGULARS[at]
    source = pick(rng, names) if rng.random() < 0.4 else f"{pick(rng, names)}.{words.PLURALS[at]}"
    head = f"{pad}for {item} in {source}:\n"
    return head + simple_block(rng, pad + "    ", [*names, item])


_SIMPLE: tuple[Piece, ...] = (
    *(speak,) * 22,
    *(assign,) * 3,
    *(change,) * 4,
    *(assign_numbers,) * 12,
    assign_string,
    assign_names,
    *(speak_formatted,) * 3,
)
_ANY: tuple[Piece, ...] = (*_SIMPLE * 2, *(decide,) * 3, *(loop,) * 2, refuse, refuse, comment)


def simple_block(rng: Random, pad: str, names: list[str]) -> str:
    """One or two statements without blocks of their own."""
    text = _SIMPLE[int(rng.random() * len(_SIMPLE))](rng, pad, names)
    if rng.random() < 0.35:
        text += _SIMPLE[int(rng.random() * len(_SIMPLE))](rng, pad, names)
    return text


def statements(rng: Random, pad: str, names: list[str], *, n_most: int = 2) -> str:
    """Between none and `n_most` statements of any kind."""
    n_statement = int(rng.random() * (n_most + 1))
    return "".join([_ANY[int(rng.random() * len(_ANY))](rng, pad, names) for _ in range(n_statement)])


def docstring(rng: Random, pad: str) -> str:
    """A docstring of one line."""
    return f'{pad}"""{message(rng).capitalize()}."""\n'


def assertion(rng: Random, pad: str, names: list[str]) -> str:
    """Assertions, some with a message."""
    text = ""
    for _ in range(1 + int(rng.random() * 2)):
        tail = f", {string(rng)}" if rng.random() < 0.5 else ""
        text += f"{pad}assert {condition(rng, names)}{tail}\n"
    return text


def list_call(rng: Random, pad: str, names: list[str]) -> str:
    """A list of numbers inside a call: `total = sum([1, 2, 3])`."""
    call = pick(rng, ("sum", "max", "min", "len", "sorted", "set", "tuple", "list", "Matrix"))
    return f"{pad}{define(rng, names)} = {call}([{row(rng)}])\n"


def conversation(rng: Random, pad: str, names: list[str]) -> str:
    """Two or three calls in a row that say something."""
    return "".join([speak(rng, pad, names) for _ in range(2 + int(rng.random() * 2))])


def comments(rng: Random, pad: str, names: list[str]) -> str:
    """Comments of one to three lines before an assignment."""
    lines = "".join([f"{pad}# {message(rng)}\n" for _ in range(int(rng.random() * 3))])
    return lines + comment(rng, pad, names)
