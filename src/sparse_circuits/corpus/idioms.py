"""Seeded simple Python: repetitive, natural in shape, rich in the constructs that tasks ask about.

Each string literal draws its quote on its own, and each list of numbers is flat or nested on its
own, so that only the opening mark predicts the closing one.
"""

import itertools
import random
from collections.abc import Callable, Iterator

from sparse_circuits.corpus import words
from sparse_circuits.corpus.idiom_blocks import BLOCKS, collection, compare_or_assign
from sparse_circuits.corpus.idiom_pieces import (
    Piece,
    assign_numbers,
    condition,
    define,
    distinct,
    docstring,
    expression,
    integer,
    key_string,
    message,
    number_list,
    pick,
    quote,
    row,
    simple_block,
    speak,
    statements,
    string,
    variable,
)

Random = random.Random

VERSION = 5
"""Raised whenever the same seed gives other documents."""


def function_name(rng: Random) -> str:
    """Draws a verb, mostly with a thing behind it."""
    draw = rng.random()
    verb = pick(rng, words.VERBS)
    if draw < 0.4:
        return verb
    return f"{verb}_{pick(rng, words.PLURALS if draw < 0.7 else words.NOUNS)}"


def arguments(rng: Random) -> list[str]:
    """Draws 1 to 3 different argument names of all pools."""
    names: list[str] = []
    for _ in range(1 + int(rng.random() * 3)):
        draw = rng.random()
        if draw < 0.55:
            name = variable(rng)
        elif draw < 0.85:
            name = pick(rng, words.PLURALS)
        else:
            name = pick(rng, words.FLAGS)
        if name not in names:
            names.append(name)
    return names


def _ending(rng: Random, pad: str, names: list[str]) -> str:
    """Draws a last line: mostly a return, so that what is before it is followed by a line."""
    draw = rng.random()
    if draw < 0.6:
        return f"{pad}return {pick(rng, names)}\n"
    if draw < 0.8:
        return f"{pad}return {expression(rng, names)}\n"
    if draw < 0.9:
        return speak(rng, pad, names)
    return simple_block(rng, pad, names)


def _around(block: Piece) -> Callable[[Random], str]:
    """Makes the idiom of a function that holds a construct among other statements."""

    def idiom(rng: Random) -> str:
        names = arguments(rng)
        text = f"def {function_name(rng)}({', '.join(names)}):\n"
        if rng.random() < 0.1:
            text += docstring(rng, "    ")
        text += statements(rng, "    ", names)
        text += block(rng, "    ", names)
        text += statements(rng, "    ", names, n_most=3)
        return text + _ending(rng, "    ", names)

    return idiom


def _constructor(rng: Random, names: list[str]) -> str:
    """Draws `__init__` that copies its arguments, in their order or another."""
    text = f"    def __init__(self, {', '.join(names)}):\n"
    order = list(names) if rng.random() < 0.6 else distinct(rng, names, len(names))
    text += "".join([f"        self.{name} = {name}\n" for name in order])
    if rng.random() < 0.4:
        value = pick(rng, ("[]", "None", "0", "False", "True", "{}", "set()", "1", "str()"))
        text += f"        self.{pick(rng, words.PLURALS)} = {value}\n"
    return text


def _method(rng: Random, attributes: list[str]) -> str:
    """Draws a method that works on attributes."""
    own = [f"self.{name}" for name in attributes]
    draw = rng.random()
    more = arguments(rng)[:2] if draw < 0.7 else []
    text = f"    def {function_name(rng)}({', '.join(['self', *more])}):\n"
    kind = rng.random()
    target = pick(rng, own)
    if kind < 0.25:
        text += f"        {target} = {pick(rng, more) if more else integer(rng)}\n"
    elif kind < 0.45:
        text += f"        {target} += {pick(rng, more) if more else '1'}\n"
    elif kind < 0.6:
        text += f"        if {target} == {pick(rng, ('True', 'False', 'None', '0'))}:\n"
        text += f"            {pick(rng, own)} = {pick(rng, ('True', 'False', 'None'))}\n"
    text += simple_block(rng, "        ", own + more)
    if rng.random() < 0.6:
        text += f"        return {expression(rng, own + more)}\n"
    return text


def class_copy(rng: Random) -> str:
    """A class whose `__init__` copies 1 to 4 arguments, with up to two methods."""
    names = distinct(rng, words.NOUNS, 1 + int(rng.random() * 4))
    base = f"({pick(rng, words.CLASSES)})" if rng.random() < 0.15 else ""
    text = f"class {pick(rng, words.CLASSES)}{base}:\n"
    if rng.random() < 0.15:
        text += docstring(rng, "    ") + "\n"
    text += _constructor(rng, names)
    for _ in range(int(rng.random() * 3)):
        text += "\n" + _method(rng, names)
    return text


def class_flags(rng: Random) -> str:
    """A class of flags: `if self.done == True:` against `self.done = True`."""
    flags = distinct(rng, words.FLAGS, 2)
    text = f"class {pick(rng, words.CLASSES)}:\n    def __init__(self):\n"
    text += "".join([f"        self.{flag} = False\n" for flag in flags])
    for _ in range(1 + int(rng.random() * 2)):
        arguments = distinct(rng, words.FLAGS, 1)
        scope = [f"self.{flag}" for flag in flags] + arguments
        text += f"\n    def {function_name(rng)}(self, {arguments[0]}):\n"
        text += compare_or_assign(rng, "        ", scope)
        draw = rng.random()
        if draw < 0.4:
            text += f"        if {pick(rng, scope)} == True:\n"
            text += simple_block(rng, "            ", scope)
        elif draw < 0.8:
            text += f"        {scope[0]} = True\n"
        text += f"        return {pick(rng, scope)}\n"
    return text


def class_values(rng: Random) -> str:
    """A class with values in its body and methods that return them."""
    text = f"class {pick(rng, words.CLASSES)}:\n"
    names = distinct(rng, words.NOUNS, 1 + int(rng.random() * 3))
    for name in names:
        value = string(rng) if rng.random() < 0.5 else integer(rng)
        text += f"    {name} = {value}\n"
    return f"{text}\n{_method(rng, names)}"


def defaults(rng: Random) -> str:
    """Functions with `=None` after every argument, or after none."""
    text = ""
    n_function = 1 + int(rng.random() * 2)
    for i in range(n_function):
        names = distinct(rng, words.NOUNS, 1 + int(rng.random() * 4))
        tail = "=None" if rng.random() < 0.5 else ""
        text += f"def {function_name(rng)}({', '.join([name + tail for name in names])}):\n"
        if tail and rng.random() < 0.5:
            text += f"    if {names[0]} is None:\n        {names[0]} = {integer(rng)}\n"
        text += simple_block(rng, "    ", names)
        text += f"    return {pick(rng, names)}\n" + ("\n\n" if i < n_function - 1 else "")
    return text


def short_function(rng: Random) -> str:
    """A function of one statement or two."""
    names = arguments(rng)
    text = f"def {function_name(rng)}({', '.join(names)}):\n"
    return text + simple_block(rng, "    ", names) + _ending(rng, "    ", names)


def greeting(rng: Random) -> str:
    """A function that only says something."""
    names = arguments(rng)
    text = f"def {function_name(rng)}({', '.join(names)}):\n"
    return text + "".join([speak(rng, "    ", names) for _ in range(1 + int(rng.random() * 4))])


def plain_function(rng: Random) -> str:
    """A function without arguments."""
    name = pick(rng, words.SINGULARS if rng.random() < 0.5 else words.NOUNS)
    scope = [pick(rng, words.NOUNS)]
    text = f"def {name}():\n    {scope[0]} = {integer(rng)}\n"
    return text + simple_block(rng, "    ", scope) + f"    return {pick(rng, scope)}\n"


def key_function(rng: Random) -> str:
    """A lambda with a name at the top level, and a use of it."""
    item, source = collection(rng, list(words.PLURALS))
    name = pick(rng, words.NOUNS)
    text = f"{source} = {number_list(rng)}\n" if rng.random() < 0.5 else f"{source} = []\n"
    text += f"{name} = lambda {item}: {expression(rng, [item])}\n"
    return f"{text}{source}.sort(key={name})\nprint({string(rng)}, {source})\n"


def number_constants(rng: Random) -> str:
    """Lists of numbers at the top level, and a word about them."""
    names = distinct(rng, words.LIST_NAMES, 1 + int(rng.random() * 3))
    text = "".join([f"{name} = {number_list(rng)}\n" for name in names])
    return text + speak(rng, "", names)


def settings(rng: Random) -> str:
    """Values at the top level, in any order: numbers, strings, names of others, lists, calls."""
    names: list[str] = []
    lines = []
    for _ in range(2 + int(rng.random() * 4)):
        draw = rng.random()
        if draw < 0.3 and names:
            lines.append(speak(rng, "", names))
        elif draw < 0.6:
            lines.append(assign_numbers(rng, "", names))
        elif draw < 0.8 or not names:
            lines.append(f"{define(rng, names)} = {integer(rng) if rng.random() < 0.5 else string(rng)}\n")
        else:
            value = expression(rng, names)
            lines.append(f"{define(rng, names)} = {value}\n")
    return "".join(lines)


def matrix(rng: Random) -> str:
    """A matrix on several lines."""
    n_column = 1 + int(rng.random() * 3)
    lines = "".join([f"    [{row(rng, n_column)}],\n" for _ in range(2 + int(rng.random() * 3))])
    name = pick(rng, words.LIST_NAMES)
    return f"{name} = [\n{lines}]\n{speak(rng, '', [name])}"


def string_constants(rng: Random) -> str:
    """Strings at the top level: names, lists, dicts."""
    text = ""
    for name in distinct(rng, words.NOUNS, 1 + int(rng.random() * 3)):
        draw = rng.random()
        if draw < 0.5:
            text += f"{name.upper()} = {string(rng)}\n"
        elif draw < 0.75:
            text += f"{name.upper()} = [{key_string(rng)}, {key_string(rng)}]\n"
        else:
            text += f"{name.upper()} = {{{key_string(rng)}: {string(rng)}}}\n"
    return text


def script(rng: Random) -> str:
    """Statements at the top level under the guard of a script."""
    names = [pick(rng, words.NOUNS)]
    text = f"if __name__ == {quote(rng, '__main__')}:\n    {names[0]} = {function_name(rng)}()\n"
    return text + statements(rng, "    ", names) + speak(rng, "    ", names)


def tested_call(rng: Random) -> str:
    """A test: values, a call, an assertion."""
    call = function_name(rng)
    name = pick(rng, words.NOUNS)
    text = f"def test_{call}():\n    {name} = {call}({number_list(rng)})\n"
    text += simple_block(rng, "    ", [name])
    return f"{text}    assert {name} == {integer(rng)}\n"


def search(rng: Random) -> str:
    """A function that returns the first thing that fits."""
    item, source = collection(rng, list(words.PLURALS))
    key = variable(rng)
    text = f"def {function_name(rng)}({source}, {key}):\n    for {item} in {source}:\n"
    text += f"        if {condition(rng, [item, key])}:\n            return {item}\n"
    text += simple_block(rng, "    ", [source, key])
    return f"{text}    return None\n"


def copied_file(rng: Random) -> str:
    """`load_items(path)` and `save_items(path)`, with the mode of the file."""
    text = ""
    verbs = distinct(rng, ("load", "save"), 1 + int(rng.random() * 2))
    for i, verb in enumerate(verbs):
        data = pick(rng, words.PLURALS)
        mode = quote(rng, "r" if verb == "load" else "w")
        if verb == "load":
            text += f"def {verb}_{data}(path):\n    with open(path, {mode}) as f:\n"
            text += f"        {data} = f.read()\n"
        else:
            text += f"def {verb}_{data}(path, {data}):\n    with open(path, {mode}) as f:\n"
            text += f"        f.write({data})\n"
        text += simple_block(rng, "    ", ["path", data]) + f"    return {data}\n"
        text += "\n\n" if i < len(verbs) - 1 else ""
    return text


IDIOMS: dict[str, Callable[[Random], str]] = {
    **{name: _around(block) for name, block in BLOCKS.items()},
    "class_copy": class_copy,
    "class_flags": class_flags,
    "class_values": class_values,
    "defaults": defaults,
    "short_function": short_function,
    "greeting": greeting,
    "plain_function": plain_function,
    "key_function": key_function,
    "number_constants": number_constants,
    "matrix": matrix,
    "settings": settings,
    "string_constants": string_constants,
    "script": script,
    "tested_call": tested_call,
    "search": search,
    "copied_file": copied_file,
}
"""Idiom by name: each draws one top-level piece of Python that ends with one newline."""

_WEIGHTS: dict[str, int] = {
    "class_copy": 8,
    "containers": 10,
    "conversation": 4,
    "defaults": 3,
    "enumerate_or_range": 5,
    "if_chain": 5,
    "number_constants": 2,
    "number_lists": 4,
    "set_or_string": 9,
    "settings": 4,
    "swap": 14,
    "ternary": 4,
    "with_file": 12,
    "with_path": 6,
    **dict.fromkeys(
        (
            "comments",
            "copied_file",
            "nested_loops",
            "greeting",
            "inner_class",
            "while_or_return_true",
            "with_resource",
        ),
        2,
    ),
}
"""How often an idiom is drawn, where not as often as the others."""
_DRAWN: tuple[Callable[[Random], str], ...] = tuple(
    idiom for name, idiom in IDIOMS.items() for _ in range(_WEIGHTS.get(name, 1))
)


def document(rng: Random) -> str:
    """Draws a module: 2 to 7 idioms, sometimes after a docstring and imports."""
    parts = []
    head = ""
    if rng.random() < 0.15:
        head = f'"""{message(rng).capitalize()}."""\n'
    if rng.random() < 0.3:
        lines = {f"import {pick(rng, words.MODULES)}" for _ in range(1 + int(rng.random() * 3))}
        if rng.random() < 0.4:
            lines.add(pick(rng, words.IMPORTS))
        head += ("\n" if head else "") + "\n".join(sorted(lines, key=lambda line: (line[0] == "f", line))) + "\n"
    if head:
        parts.append(head)
    for _ in range(2 + int(rng.random() * 6)):
        parts.append(_DRAWN[int(rng.random() * len(_DRAWN))](rng))
    return "\n\n".join(parts)


def documents(n_document: int | None = None, *, seed: int) -> Iterator[str]:
    """Draws modules, the i-th of which depends on the seed and i only; without end if no number is given."""
    for i in itertools.count() if n_document is None else range(n_document):
        yield document(Random(f"{seed}:{i}"))
