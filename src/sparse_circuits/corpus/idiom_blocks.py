"""The constructs that stand inside functions, one piece each: loops, swaps, files, f-strings."""

from random import Random

from sparse_circuits.corpus import words
from sparse_circuits.corpus.idiom_pieces import (
    Piece,
    assertion,
    assign_names,
    assign_numbers,
    assign_string,
    attribute,
    comments,
    condition,
    conversation,
    define,
    distinct,
    expression,
    integer,
    key_string,
    list_call,
    open_call,
    pick,
    quote,
    refuse,
    simple_block,
    speak,
    speak_formatted,
    string,
    two,
)


def collection(rng: Random, names: list[str]) -> tuple[str, str]:
    """Draws a loop variable and what it runs over: `item` and `items` or an attribute of a name."""
    at = int(rng.random() * len(words.PLURALS))
    source = words.PLURALS[at]
    if source not in names:
        source = f"{pick(rng, names)}.{source}" if rng.random() < 0.5 else pick(rng, names)
    return words.SINGULARS[at], source


def with_path(rng: Random, pad: str, names: list[str]) -> str:
    """`with open(path) as f:` and `return open(path)`, in either order or alone."""
    path, other = two(rng, names)
    call = pick(rng, ("read()", "readlines()", "read().strip()", "readline()"))
    block = f"{pad}with open({path}) as f:\n{pad}    {define(rng, names)} = f.{call}\n"
    back = f"{pad}if {condition(rng, [path, other])}:\n{pad}    return open({other})\n"
    draw = rng.random()
    return block if draw < 0.3 else block + back if draw < 0.5 else back + block


def with_file(rng: Random, pad: str, names: list[str]) -> str:
    """`with open("input.txt", "r") as f:` and `lines = open("input.txt", "r")`, and the same for writing."""
    writes = rng.random() < 0.5
    if rng.random() < 0.4:
        kinds = [writes, not writes] if rng.random() < 0.5 else [writes]
        return "".join([f"{pad}{define(rng, names)} = {open_call(rng, writes=kind)}\n" for kind in kinds])
    head = f"{pad}with {open_call(rng, writes=writes)} as f:\n"
    if writes:
        return f"{head}{pad}    f.write({pick(rng, names) if rng.random() < 0.5 else string(rng)})\n"
    return f"{head}{pad}    {define(rng, names)} = f.{pick(rng, ('read', 'readlines', 'readline'))}()\n"


def with_resource(rng: Random, pad: str, names: list[str]) -> str:
    """`with lock as held:` and `return lock` under an `if`."""
    resource = define(rng, names, words.RESOURCES)
    head = f"{pad}{resource} = {pick(rng, names[:-1] or names)}.{resource}\n"
    back = f"{pad}if {condition(rng, names)}:\n{pad}    return {resource}\n"
    block = f"{pad}with {resource} as {define(rng, names)}:\n"
    block += simple_block(rng, pad + "    ", list(names))
    return head + (block + back if rng.random() < 0.5 else back + block)


def containers(rng: Random, pad: str, names: list[str]) -> str:
    """Dicts and lists of names: `{key: value}`, `[key, value]`, `[{key: value}, [key, value]]`."""
    text = ""
    for _ in range(1 + int(rng.random() * 2)):
        parts = []
        for _ in range(2 if rng.random() < 0.3 else 1):
            left, right = two(rng, names)
            draw = rng.random()
            if draw < 0.25:
                left = f"{left}.{attribute(rng)}"
            elif draw < 0.35:
                left = f"{left} + {right}"
            is_dict = rng.random() < 0.5
            parts.append(f"{{{left}: {right}}}" if is_dict else f"[{left}, {right}]")
        value = parts[0] if len(parts) == 1 else f"[{parts[0]}, {parts[1]}]"
        text += f"{pad}{define(rng, names, words.LIST_NAMES)} = {value}\n"
    return text


def string_dict(rng: Random, pad: str, names: list[str]) -> str:
    """A dict with string keys, on one line or several."""
    parts = []
    for _ in range(1 + int(rng.random() * 4)):
        draw = rng.random()
        value = pick(rng, names) if draw < 0.5 else string(rng) if draw < 0.8 else integer(rng)
        parts.append(f"{key_string(rng)}: {value}")
    target = define(rng, names)
    if len(parts) < 3:
        return f"{pad}{target} = {{{', '.join(parts)}}}\n"
    lines = "".join([f"{pad}    {part},\n" for part in parts])
    return f"{pad}{target} = {{\n{lines}{pad}}}\n"


def set_or_string(rng: Random, pad: str, names: list[str]) -> str:
    """A set and a string that grow in a loop: `text = set()`, `line = ""`, `.add`, ` +=`."""
    item, source = collection(rng, names)
    n_target = 2 if rng.random() < 0.2 else 1
    targets = distinct(rng, words.NOUNS, n_target)
    is_set = [rng.random() < 0.5]
    is_set.append(not is_set[0])
    makers = ["set()" if yes else pick(rng, ('""', "''", "str()")) for yes in is_set]
    head = "".join([f"{pad}{targets[i]} = {makers[i]}\n" for i in range(n_target)])
    head += f"{pad}for {item} in {source}:\n"
    inner = pad + "    "
    if rng.random() < 0.5:
        head += f"{inner}if {condition(rng, [item, *names])}:\n"
        inner += "    "
    order = list(range(n_target))
    if rng.random() < 0.5:
        order.reverse()
    body = "".join([f"{inner}{targets[i]}{f'.add({item})' if is_set[i] else f' += {item}'}\n" for i in order])
    names += [name for name in targets if name not in names]
    return head + body


def append_loop(rng: Random, pad: str, names: list[str]) -> str:
    """A list that is filled in a loop."""
    item, source = collection(rng, names)
    target = define(rng, names, words.LIST_NAMES)
    text = f"{pad}{target} = []\n{pad}for {item} in {source}:\n{pad}    "
    if rng.random() < 0.5:
        text += f"if {condition(rng, [item, *names])}:\n{pad}        "
    return f"{text}{target}.append({expression(rng, [item, item, *names])})\n"


def for_or_while(rng: Random, pad: str, names: list[str]) -> str:
    """`for node in nodes:` and `while node:`, each with a body."""
    text = ""
    for _ in range(1 + int(rng.random() * 2)):
        item, source = collection(rng, names)
        body = simple_block(rng, pad + "    ", [*names, item])
        if rng.random() < 0.5:
            text += f"{pad}for {item} in {source}:\n{body}"
        else:
            step = f"{pad}    {item} = {item}.{pick(rng, ('next', 'parent', 'first', 'left'))}\n"
            test = item if rng.random() < 0.8 else f"{item} and {pick(rng, names)}"
            text += f"{pad}{item} = {source}\n{pad}while {test}:\n{body}{step}"
    return text


def while_count(rng: Random, pad: str, names: list[str]) -> str:
    """`while count < limit:` with a count that grows."""
    limit = pick(rng, names) if rng.random() < 0.6 else integer(rng)
    count = define(rng, names)
    body = simple_block(rng, pad + "    ", list(names))
    return (
        f"{pad}{count} = 0\n{pad}while {count} < {limit}:\n{body}"
        f"{pad}    {count} += {pick(rng, ('1', '1', '1', '2', '10'))}\n"
    )


def while_or_return_true(rng: Random, pad: str, names: list[str]) -> str:
    """`while True:` and `return True` under an `if`, also with names in place of `True`."""
    left, right = two(rng, names)
    value = "True" if rng.random() < 0.75 else f"{left} and {right}"
    inner = pad + "    "
    text = f"{pad}if {condition(rng, names)}:\n"
    if rng.random() < 0.5:
        text += f"{inner}return {value}\n"
    else:
        body = simple_block(rng, inner + "    ", list(names))
        text += f"{inner}while {value}:\n{body}{inner}    {pick(rng, ('break', 'return True'))}\n"
    if rng.random() < 0.3:
        text += f"{pad}while True:\n{simple_block(rng, inner, list(names))}{inner}break\n"
    return text


def if_chain(rng: Random, pad: str, names: list[str]) -> str:
    """`if`, `elif` and `else`, with blocks or on one line each."""
    n_branch = 1 + int(rng.random() * 3)
    heads = [f"if {condition(rng, names)}:"]
    heads += [f"elif {condition(rng, names)}:" for _ in range(n_branch - 1)]
    if n_branch == 1 or rng.random() < 0.5:
        heads.append("else:")
    if rng.random() < 0.3:
        target = pick(rng, names)
        return "".join([f"{pad}{head} {target} = {expression(rng, names)}\n" for head in heads])
    return "".join([f"{pad}{head}\n{simple_block(rng, pad + '    ', names)}" for head in heads])


def ternary(rng: Random, pad: str, names: list[str]) -> str:
    """`value = left + right if flag else right` against `value = left` with an `if` below."""
    text = ""
    for _ in range(1 + int(rng.random() * 2)):
        left, right = two(rng, names)
        first = f"{left} + {right}" if rng.random() < 0.4 else expression(rng, names)
        test, last = condition(rng, names), expression(rng, names)
        target = define(rng, names)
        draw = rng.random()
        if draw < 0.3:
            text += f"{pad}{target} = {first} if {test} else {last}\n"
        elif draw < 0.65:
            text += f"{pad}{target} = ({first} if {test}\n{pad}else {last})\n"
        else:
            text += f"{pad}{target} = {first}\n{pad}if {test}:\n{pad}    {target} = {last}\n"
    return text


def swap(rng: Random, pad: str, names: list[str]) -> str:
    """`left, right = right, left`, and the same with three names."""
    known = [name for name in names if name not in words.HELD_OUT_NAMES]
    text = ""
    while len(known) < 3:
        text += f"{pad}{define(rng, known)} = {integer(rng)}\n"
    one, two_, three = distinct(rng, known, 3)
    for _ in range(1 + int(rng.random() * 2)):
        if rng.random() < 0.7:
            text += f"{pad}{one}, {two_} = {two_}, {one}\n"
        else:
            text += f"{pad}{one}, {two_}, {three} = {two_}, {three}, {one}\n"
        one, two_, three = three, one, two_
    names += [name for name in known if name not in names]
    return text


def comprehension(rng: Random, pad: str, names: list[str]) -> str:
    """`[item.name for item in items if item]`, as list, set, dict or within a call."""
    item, source = collection(rng, names)
    draw = rng.random()
    value = pick(rng, (item, f"{item}.{attribute(rng)}", f"{item} * 2", f"str({item})"))
    test = f" if {condition(rng, [item, *names])}" if rng.random() < 0.4 else ""
    target = define(rng, names, words.LIST_NAMES)
    clause = f"for {item} in {source}{test}"
    if draw < 0.6:
        return f"{pad}{target} = [{value} {clause}]\n"
    if draw < 0.75:
        return f"{pad}{target} = {{{item}: {value} {clause}}}\n"
    if draw < 0.85:
        return f"{pad}{target} = {{{value} {clause}}}\n"
    call = pick(rng, ("sum", "max", "min", "sorted", "list", "any", "all"))
    return f"{pad}{target} = {call}({value} {clause})\n"


def enumerate_or_range(rng: Random, pad: str, names: list[str]) -> str:
    """Loops and comprehensions over `enumerate(items)` and `range(size)`, in any order."""
    text = ""
    for _ in range(1 + int(rng.random() * 2)):
        item, _ = collection(rng, names)
        source = pick(rng, names)
        counts = rng.random() < 0.5
        head = f"i in range({source})" if counts else f"i, {item} in enumerate({source})"
        if rng.random() < 0.5:
            scope = [*names, "i"] if counts else [*names, item, "i"]
            text += f"{pad}for {head}:\n{simple_block(rng, pad + '    ', scope)}"
        else:
            value = pick(rng, ("i", f"{source} + i", "i * 2")) if counts else item
            text += f"{pad}{define(rng, names, words.LIST_NAMES)} = [{value} for {head}]\n"
    return text


def sort_key(rng: Random, pad: str, names: list[str]) -> str:
    """A sort with a lambda as key."""
    item, source = collection(rng, names)
    key = f"{item}.{attribute(rng)}" if rng.random() < 0.6 else f"{item}[{pick(rng, ('0', '1'))}]"
    if rng.random() < 0.4:
        return f"{pad}{source}.sort(key=lambda {item}: {key})\n"
    target = define(rng, names, words.LIST_NAMES)
    return f"{pad}{target} = sorted({source}, key=lambda {item}: {key})\n"


def lambda_table(rng: Random, pad: str, names: list[str]) -> str:
    """A list of lambdas, one a line."""
    lines = ""
    for _ in range(1 + int(rng.random() * 3)):
        name = pick(rng, words.SINGULARS if rng.random() < 0.5 else words.NOUNS)
        lines += f"{pad}    lambda {name}: {expression(rng, [name, name, *names])},\n"
    return f"{pad}{define(rng, names, words.LIST_NAMES)} = [\n{lines}{pad}]\n"


def inner_class(rng: Random, pad: str, names: list[str]) -> str:
    """A class inside a function, with one or two methods."""
    name = pick(rng, words.CLASSES)
    text = f"{pad}class {name}:\n"
    for method in distinct(rng, words.NOUNS, 1 + int(rng.random() * 2)):
        text += f"{pad}    def {method}(self):\n"
        text += f"{pad}        return {expression(rng, ['self.' + attribute(rng), *names])}\n\n"
    return f"{text}{pad}{define(rng, names)} = {name}()\n"


def compare_or_assign(rng: Random, pad: str, names: list[str]) -> str:
    """`if ready and mode == left:` against `if ready: mode = left`."""
    text = ""
    for _ in range(1 + int(rng.random() * 2)):
        flag, mode = two(rng, names)
        value = pick(rng, (pick(rng, names), pick(rng, names), "True", "True", integer(rng)))
        if rng.random() < 0.25 and "self" not in names:
            mode = f"{flag}.{attribute(rng)}"
        if rng.random() < 0.5:
            head = f"{flag} and {mode}" if rng.random() < 0.7 else mode
            body = simple_block(rng, pad + "    ", list(names))
            text += f"{pad}if {head} == {value}:\n{body}"
        else:
            text += f"{pad}if {flag}: {mode} = {value}\n"
    return text


def one_line_ifs(rng: Random, pad: str, names: list[str]) -> str:
    """Statements on the line of their `if`: `if done: return`."""
    text = ""
    for _ in range(1 + int(rng.random() * 2)):
        test, target = condition(rng, names), pick(rng, names)
        tail = pick(rng, (f"return {target}", f"{target} += 1", f"{target} = None", "return"))
        text += f"{pad}if {test}: {tail}\n"
    return text


def try_except(rng: Random, pad: str, names: list[str]) -> str:
    """A `try` with an `except`, sometimes a `finally`."""
    error = pick(rng, words.EXCEPTIONS)
    body = simple_block(rng, pad + "    ", names)
    inner = pad + "    "
    if rng.random() < 0.4:
        text = f"{pad}except {error} as error:\n{inner}print({string(rng)}, error)\n"
    elif rng.random() < 0.5:
        text = f"{pad}except {error}:\n{inner}raise {error}({string(rng)})\n"
    else:
        text = f"{pad}except {error}:\n{simple_block(rng, inner, list(names))}"
    if rng.random() < 0.2:
        text += f"{pad}finally:\n{speak(rng, inner, names)}"
    return f"{pad}try:\n{body}{text}"


def join_and_split(rng: Random, pad: str, names: list[str]) -> str:
    """Splits and joins of strings."""
    text = ""
    for _ in range(1 + int(rng.random() * 2)):
        source, mark = pick(rng, names), quote(rng, pick(rng, (",", " ", ", ", "-", ":")))
        if rng.random() < 0.5:
            text += f"{pad}{define(rng, names, words.PLURALS)} = {source}.split({mark})\n"
        else:
            text += f"{pad}{define(rng, names)} = {mark}.join({source})\n"
    return text


def nested_loops(rng: Random, pad: str, names: list[str]) -> str:
    """A loop in a loop or in an `if`, sometimes with an `if` inside."""
    item, source = collection(rng, names)
    other = pick(rng, words.SINGULARS)
    test = condition(rng, names)
    head = f"if {test}:" if rng.random() < 0.6 else f"for {other} in {pick(rng, names)}:"
    inner = pad + "        "
    body = ""
    if rng.random() < 0.5:
        body = f"{inner}if {condition(rng, [item, *names])}:\n"
        inner += "    "
    body += simple_block(rng, inner, [*names, item])
    before = f"{pad}    {define(rng, names)} = {integer(rng)}\n" if rng.random() < 0.5 else ""
    return f"{pad}{head}\n{before}{pad}    for {item} in {source}:\n{body}"


BLOCKS: dict[str, Piece] = {
    "number_lists": assign_numbers,
    "name_lists": assign_names,
    "string_values": assign_string,
    "f_strings": speak_formatted,
    "refusals": refuse,
    "conversation": conversation,
    "with_path": with_path,
    "with_file": with_file,
    "with_resource": with_resource,
    "containers": containers,
    "string_dict": string_dict,
    "set_or_string": set_or_string,
    "append_loop": append_loop,
    "for_or_while": for_or_while,
    "while_count": while_count,
    "while_or_return_true": while_or_return_true,
    "if_chain": if_chain,
    "ternary": ternary,
    "swap": swap,
    "comprehension": comprehension,
    "enumerate_or_range": enumerate_or_range,
    "sort_key": sort_key,
    "lambda_table": lambda_table,
    "inner_class": inner_class,
    "compare_or_assign": compare_or_assign,
    "one_line_ifs": one_line_ifs,
    "try_except": try_except,
    "join_and_split": join_and_split,
    "assertion": assertion,
    "list_call": list_call,
    "nested_loops": nested_loops,
    "comments": comments,
}
"""Construct by name; each becomes an idiom: a function around it."""
