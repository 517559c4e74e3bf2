"""Settings as frozen dataclasses that save, load, and say which file and field is wrong."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal, Self

from sparse_circuits.errors import ConfigError, did_you_mean
from sparse_circuits.files import read_json, write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all settings: a frozen dataclass that is saved whole beside every result."""

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {field.name: _to_json(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def save(self, path: Path | str) -> None:
        """Write the settings as a JSON file, whole or not at all."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote.

        Raises:
            ConfigError: A field is unknown or of the wrong type; the message names file and field.
        """
        return cls.from_json(read_json(Path(path)), where=str(path))

    @classmethod
    def from_json(cls, data: dict[str, Any], *, where: str, prefix: str = "") -> Self:
        """Build the settings from JSON values; fields left out keep their default.

        Args:
            data: Field names and values, nested for nested settings.
            where: The file, for messages.
            prefix: Path of the enclosing fields, for messages.
        """
        hints = typing.get_type_hints(cls)
        known = [field.name for field in dataclasses.fields(cls)]
        values = {}
        for name, value in data.items():
            if name not in known:
                raise ConfigError(f"{where}: {prefix}{name} is not a setting{did_you_mean(name, known)}")
            values[name] = _from_json(hints[name], value, where=where, path=f"{prefix}{name}")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {prefix}{error}") from None


def require(is_right: bool, message: str) -> None:
    """Raise a `ConfigError` with this message unless the condition holds."""
    if not is_right:
        raise ConfigError(message)


def _to_json(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_json()
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    return dict(value) if isinstance(value, dict) else value


def _from_json(hint: Any, value: Any, *, where: str, path: str) -> Any:
    """Check `value` against the type `hint`, one level at a time."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (hint,) = (option for option in inner if option is not type(None))
        return _from_json(hint, value, where=where, path=path)
    if isinstance(hint, type) and issubclass(hint, Config) and isinstance(value, dict):
        return hint.from_json(value, where=where, prefix=f"{path}.")
    if origin is tuple and isinstance(value, list):
        return tuple(_from_json(inner[0], item, where=where, path=f"{path}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _from_json(inner[1], item, where=where, path=f"{path}.{key}") for key, item in value.items()}
    if origin is Literal:
        if value in inner:
            return value
        raise ConfigError(f"{where}: {path} is {value!r}{did_you_mean(str(value), map(str, inner))}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        isinstance(hint, type)
        and isinstance(value, hint)
        and (hint is bool or (value is not True and value is not False))
    ):
        return value
    expected = hint.__name__ if isinstance(hint, type) else str(hint)
    raise ConfigError(f"{where}: {path} is {value!r}, expected {expected}")
