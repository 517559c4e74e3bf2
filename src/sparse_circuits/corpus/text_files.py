"""A folder of the user's own Python or text files."""

import hashlib
from pathlib import Path

from sparse_circuits.corpus.python_files import SourceFiles
from sparse_circuits.errors import CorpusError

SUFFIXES = frozenset({".py", ".txt", ".md"})
"""Files that are read."""


def folder(path: Path) -> SourceFiles:
    """List the files of a folder, at any depth.

    Raises:
        CorpusError: There is no such folder, or nothing in it to read.
    """
    if not path.is_dir():
        raise CorpusError(f"source {path}: not a folder; expected stdlib, idioms, dist:NAME or a folder")
    paths = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    if not paths:
        raise CorpusError(f"source {path}: the folder has no {', '.join(sorted(SUFFIXES))} files")
    sizes = "".join(f"{p.relative_to(path)}:{p.stat().st_size};" for p in paths)
    return SourceFiles(f"{len(paths)} files, {hashlib.sha256(sizes.encode()).hexdigest()[:12]}", paths)


def read(path: Path) -> str | None:
    """Return a file's text with plain newlines, or None if it can't be decoded or read."""
    try:
        return path.read_text(encoding="utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except (UnicodeDecodeError, OSError):
        return None
