"""The models that the paper's release published: their names, and where they lie on this machine."""

import difflib
import os
import sys
from pathlib import Path

from sparse_circuits.errors import FormatError
from sparse_circuits.files import is_done

BASE = "https://openaipublic.blob.core.windows.net/circuit-sparsity"
"""Where the release lies; a mirror has the same folders `models/NAME` and `tinypython`."""

ALIASES = {
    "csp_bridge1": "csp_bridges1",
    "csp_bridge2": "csp_bridges2",
    "openai/circuit-sparsity": "csp_yolo2",
}
"""Names under which a model is known too: the release's own README, and the Hub."""

NAMES = (
    "csp_yolo1",
    "csp_yolo2",
    "csp_bridges1",
    "csp_bridges2",
    "dense1_1x",
    "dense1_2x",
    "dense1_4x",
    *(
        f"csp_sweep1_{width}x_{nonzero}Mnonzero_afrac{share}"
        for width in (1, 2, 4, 8, 16)
        for nonzero in ("0.9", "1.9", "3.7", "7.4", "14.8")
        for share in ("0.062", "0.125", "0.25", "0.5", "1.0")
    ),
)
"""Released models; of the sweep not every combination was published."""


def cache_folder() -> Path:
    """Return where downloads and packed copies are kept: SPARSE_CIRCUITS_CACHE, or the system's place for caches."""
    named = os.environ.get("SPARSE_CIRCUITS_CACHE")
    if named:
        return Path(named)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sparse-circuits"


def mirror() -> str:
    """Return where released models are fetched from: SPARSE_CIRCUITS_MIRROR (address or folder), or the release."""
    return os.environ.get("SPARSE_CIRCUITS_MIRROR") or BASE


def resolve(name: str) -> str:
    """Return the published name of a released model.

    Raises:
        FormatError: There is none of this name; the message offers the nearest.
    """
    known = ALIASES.get(name, name)
    if known not in NAMES:
        near = difflib.get_close_matches(name, [*NAMES, *ALIASES], n=3, cutoff=0.5)
        offer = (
            f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(NAMES[:7])} and csp_sweep1_…"
        )
        raise FormatError(f"no model of the release is called {name!r}{offer}")
    return known


def locate(path: Path | str) -> Path:
    """Return the folder that a path or a released name stands for.

    Raises:
        FormatError: There is no such folder; or the model was never, or not wholly, downloaded.
    """
    folder, text = Path(path), str(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FormatError(f"{folder} is a file; a model is opened by its folder, {folder.parent}")
    if text in ALIASES or text in NAMES:
        return _on_this_machine(resolve(text))
    if "\\" in text and os.sep == "/":
        turned = Path(text.replace("\\", "/"))
        hint = f"did you mean {turned}?" if turned.is_dir() else "here folders are parted by /, not by \\"
        raise FormatError(f"{text}: no model here; no such folder, {hint}")
    if folder.name != text:
        raise FormatError(f"{folder}: no model here; there is no such folder")
    try:
        resolve(text)
    except FormatError as error:
        raise FormatError(f"{text}: no model here; no such folder, and {error}") from None
    raise AssertionError(f"{text} is known but was not found as a name")


def _on_this_machine(name: str) -> Path:
    local = Path(mirror()) / "models" / name
    if local.is_dir():
        return local
    kept = cache_folder() / "models" / name
    if is_done(kept):
        return kept
    if kept.exists():
        raise FormatError(f"{kept}: the download is not finished; go on with: sparse-circuits download {name}")
    raise FormatError(f"{name} is a released model, but not on this machine; fetch it: sparse-circuits download {name}")
