"""What a reader keeps beside a circuit, never in it: notes, names of their own, groups and pins, in `notes.json`."""

import re
from pathlib import Path
from typing import Any

from sparse_circuits.errors import FormatError, SparseCircuitsError
from sparse_circuits.files import read_json, sha256_of_json, write_json

FORMAT, VERSION = "sparse-circuits circuit notes", 1

NODE = re.compile(r"\d+\.(attn|mlp)\.[a-z_]+:\d+")
"""How a node is named."""


class NotesChangedError(SparseCircuitsError):
    """The notes were saved by someone else since they were read; nothing was written."""


def read_notes(folder: Path) -> dict[str, Any]:
    """Return the notes beside a circuit, empty ones if there are none.

    Raises:
        FormatError: The file is no notes, or of a newer version.
    """
    path = folder / "notes.json"
    found = read_json(path, expect=FORMAT, version=VERSION) if path.exists() else {}
    return checked({"notes": {}, "names": {}, "groups": [], "pinned": []} | found, where=str(path))


def revision(notes: dict[str, Any]) -> str:
    """Return a hash of what the notes say."""
    return sha256_of_json({name: notes[name] for name in ("notes", "names", "groups", "pinned")})[:16]


def save_notes(folder: Path, notes: dict[str, Any], *, read: str) -> str:
    """Write the notes, if nobody else has since they were read.

    Args:
        folder: The circuit's.
        notes: All of them.
        read: The revision that they were made from.

    Returns:
        The new revision.

    Raises:
        NotesChangedError: The file is of another revision.
        FormatError: They are no notes.
    """
    before = revision(read_notes(folder))
    if before != read:
        raise NotesChangedError(f"{folder / 'notes.json'}: changed since it was read; read it again and merge")
    kept = checked(notes, where="the notes to save")
    write_json(folder / "notes.json", kept)
    return revision(kept)


def checked(notes: dict[str, Any], *, where: str) -> dict[str, Any]:
    """Return the notes with what belongs to them alone.

    Raises:
        FormatError: A part is missing or not of its form; the message names it.
    """

    def is_text(value: Any) -> bool:
        return isinstance(value, str) and len(value) <= 10_000

    for part in ("notes", "names"):
        entries = notes.get(part)
        if not isinstance(entries, dict) or not all(NODE.fullmatch(k) and is_text(v) for k, v in entries.items()):
            raise FormatError(f"{where}: {part} is not an object of node name to text")
    groups = notes.get("groups")
    if not isinstance(groups, list) or not all(
        isinstance(g, dict) and is_text(g.get("name")) and _are_nodes(g.get("nodes")) for g in groups
    ):
        raise FormatError(f"{where}: groups is not a list of objects with a name and nodes")
    if not _are_nodes(notes.get("pinned")):
        raise FormatError(f"{where}: pinned is not a list of nodes")
    return {
        "format": FORMAT,
        "version": VERSION,
        "notes": notes["notes"],
        "names": notes["names"],
        "groups": [
            {"name": g["name"], "nodes": g["nodes"], "is_folded": bool(g.get("is_folded", False))} for g in groups
        ],
        "pinned": notes["pinned"],
    }


def _are_nodes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and NODE.fullmatch(name) for name in value)
