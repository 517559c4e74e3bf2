"""Weights in other programs' files: `.pt` and `.bin` of torch, safetensors. Large files are mapped, not read."""

import json
import pickle
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparse_circuits.errors import FormatError
from sparse_circuits.files import read_json

MAPPED_FROM = 32 * 2**20
"""Bytes from which a file is mapped; a smaller one is read, so that it may change afterwards."""

PREFIXES = ("circuit_model.", "_orig_mod.", "module.")
"""What wrappers put before every name: the release's Hugging Face class, torch.compile, data parallelism."""


def open_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, prefixes of wrappers taken off; a large file is read where it is touched.

    Args:
        path: `.pt` or `.bin` (opened with `weights_only`), `.safetensors`, or the `.index.json` of several.

    Raises:
        FormatError: The file is missing, empty, truncated, wants code, or holds something else.
    """
    if not path.is_file():
        if path.with_name(path.name + ".part").exists():
            raise FormatError(f"{path}: the download is not finished; `sparse-circuits download` goes on with it")
        raise FormatError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise FormatError(f"{path}: the file is empty (0 bytes), as of a download that broke off; fetch it again")
    if path.name.endswith(".index.json"):
        tensors = _open_parts(path)
    elif path.suffix == ".safetensors":
        tensors = _open_safetensors(path)
    else:
        tensors = _open_torch(path)
    while tensors and (prefix := _shared_prefix(tensors)) is not None:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _shared_prefix(names: Collection[str]) -> str | None:
    """Return the wrapper's prefix that all names start with; wrappers may be wrapped."""
    return next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in names)), None)


def _open_parts(path: Path) -> dict[str, Tensor]:
    placed = read_json(path).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise FormatError(f"{path}: has no weight_map of names to files")
    if any(Path(name).name != name for name in placed.values()):
        raise FormatError(f"{path}: weight_map names a file outside the folder")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(placed.values())):
        tensors |= open_weights(path.with_name(name))
    return tensors


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: truncated or not a safetensors file ({_first_line(error)})") from None
    return tensors if path.stat().st_size >= MAPPED_FROM else {name: t.clone() for name, t in tensors.items()}


def _open_torch(path: Path) -> dict[str, Tensor]:
    found = open_plain(path)
    if not isinstance(found, dict) or not found:
        raise FormatError(f"{path}: holds a {type(found).__name__}, expected tensors by name")
    odd = next((name for name, value in found.items() if not isinstance(name, str) or not isinstance(value, Tensor)), 0)
    if odd != 0:
        raise FormatError(f"{path}: holds {odd!r:.60}, which is no tensor; expected a plain state dict")
    return dict(found)


def open_plain(path: Path) -> Any:
    """Return what torch saved in a file, with `weights_only`: tensors, numbers, texts, lists and dicts; never code.

    Raises:
        FormatError: The file is truncated, wants code, or was not written by torch.
    """
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=path.stat().st_size >= MAPPED_FROM)
    except pickle.UnpicklingError as error:
        raise FormatError(f"{path}: {_refused(str(error))}") from None
    except Exception as error:  # a broken pickle can raise anything
        raise FormatError(f"{path}: truncated or not a checkpoint ({_first_line(error)})") from None


def _check_archive(path: Path) -> None:
    """Refuse an archive that is broken, or that unpacks into more than its own size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise FormatError(
            f"{path}: truncated or not a checkpoint of torch 1.6 or later ({_first_line(error)})"
        ) from None
    size = path.stat().st_size
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise FormatError(f"{path}: the archive's entries are compressed or larger than the file; not written by torch")


def _refused(message: str) -> str:
    """Say in a line what a pickle wanted."""
    wanted = re.search(r"GLOBAL (\S{1,80})", message)
    if wanted is not None:
        return f"its pickle wants to call {wanted[1]}; only plain tensors are opened, and nothing was run"
    return f"not plain tensors ({_first_line(message)})"


def _first_line(error: object) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return json.dumps(lines[0][:160], ensure_ascii=False)[1:-1]
