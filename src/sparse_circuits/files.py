"""Files that are whole or absent: atomic writes, JSON with a format and a version, the DONE marker."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparse_circuits.errors import FormatError, OutputExistsError

DONE = "DONE"
"""Name of the empty file that is written last into a folder that is complete."""


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on a clean exit, make it durable and rename it.

    Whatever goes wrong inside (a full disk, an interrupt), a file that stood at `path` stays as it was.

    Args:
        path: Where the file shall stand; its folder is made.

    Raises:
        IsADirectoryError: A folder stands there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: dict[str, Any], *, indent: int | None = 1) -> None:
    """Write `data` as JSON, whole or not at all; NaN is refused."""
    with written_whole(path) as temporary:
        text = json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, *, expect: str | None = None, version: int = 1) -> dict[str, Any]:
    """Read a JSON object and check what it says of itself.

    Args:
        path: The file.
        expect: The `format` that it must name; None checks neither format nor version.
        version: The newest major version that the caller understands.

    Raises:
        FormatError: No such file, not JSON, not an object, of another format or of a newer version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        told = "" if expect is None else f", so {path.parent} holds no {expect}, or one that is not finished"
        raise FormatError(f"{path}: no such file{told}") from None
    except OSError as error:
        raise FormatError(f"{path}: can't be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number too long, or lists too deep
        raise FormatError(f"{path}: not a whole JSON file ({error})") from None
    if not isinstance(data, dict):
        raise FormatError(f"{path}: holds a {type(data).__name__}, expected an object")
    if expect is not None:
        if data.get("format") != expect:
            raise FormatError(f"{path}: format is {data.get('format')!r}, expected {expect!r}")
        if not isinstance(data.get("version"), int) or data["version"] > version:
            raise FormatError(
                f"{path}: {expect} version {data.get('version')!r}; this program reads up to "
                f"version {version}: update sparse-circuits"
            )
    return data


def sha256_of_json(data: Any) -> str:
    """Hash a JSON value independently of the order of its keys."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def is_done(folder: Path) -> bool:
    """Say whether the folder was written to its end."""
    return (folder / DONE).exists()


def mark_done(folder: Path) -> None:
    """Say that the folder is complete."""
    with written_whole(folder / DONE) as temporary:
        temporary.touch()


def refuse_finished(folder: Path, what: str) -> None:
    """Refuse to write over a finished result.

    Raises:
        OutputExistsError: `folder` is complete.
    """
    if is_done(folder):
        raise OutputExistsError(f"{folder} already holds a finished {what}; name another folder or remove it")
