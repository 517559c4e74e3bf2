"""Real Python code that every machine has: the standard library and installed distributions."""

import importlib.metadata
import platform
import sysconfig
from pathlib import Path
from typing import NamedTuple

from sparse_circuits.errors import CorpusError, did_you_mean

LEFT_OUT = frozenset(
    ["test", "tests", "idle_test", "testing", "site-packages", "__pycache__", "lib2to3", "encodings", "pydoc_data"]
)
"""Folders whose files are no natural code: tests, tables, and what is installed beside the standard library."""


class SourceFiles(NamedTuple):
    """The files of a source and where they come from."""

    version: str
    """What fixes their content, such as a release number."""

    paths: list[Path]
    """In sorted order."""


def standard_library() -> SourceFiles:
    """List the standard library's modules, tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p for p in root.rglob("*.py") if not LEFT_OUT & set(p.relative_to(root).parts[:-1])]
    return SourceFiles(f"Python {platform.python_version()}", sorted(paths))


def distribution(name: str) -> SourceFiles:
    """List the modules of an installed distribution, tests left out.

    Raises:
        CorpusError: No such distribution is installed, or it has no Python files.
    """
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
        raise CorpusError(
            f"source dist:{name}: no such distribution is installed{did_you_mean(name, sorted(installed))}"
        ) from None
    files = [f for f in found.files or [] if f.suffix == ".py" and not LEFT_OUT & set(f.parts[:-1])]
    paths = sorted(Path(str(f.locate())) for f in files)
    if not paths:
        raise CorpusError(f"source dist:{name}: the distribution has no Python files")
    return SourceFiles(f"{name} {found.version}", [p for p in paths if p.exists()])
