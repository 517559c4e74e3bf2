"""Results of checks as JSON and back, and a folder that keeps each as soon as it is there."""

import dataclasses
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sparse_circuits.checkpoint import model_hash
from sparse_circuits.circuit import Circuit
from sparse_circuits.errors import FormatError
from sparse_circuits.files import read_json, sha256_of_json, write_json

FORMAT, VERSION = "sparse-circuits check", 1

Result = TypeVar("Result")


def to_json(value: Any) -> Any:
    """Return a result as JSON values: a dataclass as an object, a tuple as a list."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list | tuple) else value


def from_json(kind: Any, value: Any) -> Any:
    """Return the result of this type that `to_json` wrote."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if value is None or kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        (kind,) = (option for option in inner if option is not type(None))
        return from_json(kind, value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return typing.cast(Any, kind)(**{name: from_json(hints[name], item) for name, item in value.items()})
    if origin is dict:
        return {key: from_json(inner[1], item) for key, item in value.items()}
    if origin is list:
        return [from_json(inner[0], item) for item in value]
    if origin is tuple:
        return tuple(from_json(hint, item) for hint, item in zip(inner, value, strict=True))
    return value


def identity(circuit: Circuit) -> str:
    """Return a hash of all that decides what a circuit computes."""
    return sha256_of_json(
        {
            "model": model_hash(circuit.model),
            "nodes": circuit.node_names(),
            "edges": {name: edges.nonzero().tolist() for name, edges in circuit.edges.items()},
            "values": [float(value) for value in circuit.values],
            "calibration": dataclasses.asdict(circuit.calibration),
        }
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Store:
    """Keeps the result of each check in a file of its own; without a folder it keeps nothing."""

    folder: Path | None
    """Where."""

    about: dict[str, Any]
    """What every result depends on: circuit, task, version."""

    def result(self, name: str, kind: type[Result], settings: dict[str, Any], compute: Callable[[], Result]) -> Result:
        """Return the stored result of a check, if it was made of the same things with the same settings, or make it.

        Args:
            name: Of the check, and of its file.
            kind: The result's dataclass.
            settings: What this check depends on beside `about`.
            compute: Makes the result.
        """
        if self.folder is None:
            return compute()
        path, key = self.folder / f"{name}.json", sha256_of_json({**self.about, "settings": settings})
        if path.exists():
            try:
                found = read_json(path, expect=FORMAT, version=VERSION)
                if found["key"] == key:
                    return from_json(kind, found["result"])
            except (FormatError, KeyError, TypeError):
                pass  # a broken file is worth no more than none: the check is made again
        made = compute()
        write_json(path, {"format": FORMAT, "version": VERSION, "key": key, "result": to_json(made)})
        return made
