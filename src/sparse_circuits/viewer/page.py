"""One self-contained HTML file: the front end, its styles and view-models, with nothing to load."""

import base64
import gzip
import json
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparse_circuits.files import written_whole

MODULES = (
    "text", "focus", "curves", "view", "layout", "strips", "attention", "graph", "camera", "notes", "exports",
    "node_panel", "circuit_panel", "prompt_panel", "notes_panel", "live", "live_panel", "menus", "address", "viewer",
)  # fmt: skip
"""The front end's files, each after those that it imports from."""

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""What the browser lets a page do: run what stands in it, and load nothing from anywhere."""


def front_end() -> str:
    """Return the front end as one ES module that exports `mount` and `default`.

    The files are plain ES modules, and a page from disk can't import from beside it; so the lines that import are left
    out and the files stand one after the other in one scope.
    """
    texts = [
        (files("sparse_circuits.viewer") / "assets" / f"{name}.js").read_text(encoding="utf-8") for name in MODULES
    ]
    joined = re.sub(r"^import [^;]*;\n", "", "\n".join(texts), flags=re.MULTILINE)
    return re.sub(r"^export (?=(async )?(function|const|class|let)\b)", "", joined, flags=re.MULTILINE)


def styles() -> str:
    """Return the front end's style sheet."""
    return (files("sparse_circuits.viewer") / "assets" / "viewer.css").read_text(encoding="utf-8")


def write_page(views: dict[str, Any] | Sequence[dict[str, Any]], path: Path) -> Path:
    """Write the page of one view-model, or of two side by side, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(page(views), encoding="utf-8")
    return path


def page(views: dict[str, Any] | Sequence[dict[str, Any]], *, token: str | None = None, policy: str = POLICY) -> str:
    """Return a page as HTML that needs nothing else.

    Args:
        views: One view-model, or several: the first is shown, the second beside it.
        token: What the server behind the page wants to hear, if there is one.
        policy: The Content-Security-Policy.
    """
    shown = [views] if isinstance(views, dict) else list(views)
    start = {"views": shown, "is_live": token is not None, "token": token}
    title = escape(shown[0]["title"].encode("utf-8", "replace").decode("utf-8"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} · sparse-circuits</title><style>\n{styles()}</style></head>\n"
        '<body><div id="viewer"></div><noscript>This page draws a circuit with JavaScript.</noscript>\n'
        f'<script type="text/plain" id="start">{embedded(start)}</script>\n'
        f'<script type="module">\n{front_end()}\n'
        "window.viewer = await mountPacked(document.getElementById('viewer'), "
        "document.getElementById('start').textContent);\n"
        "</script></body></html>\n"
    )


def embedded(data: Any) -> str:
    """Return JSON, gzipped, as base64: no letter of it can end a script element, and a browser has less to read.

    Lone surrogates, which UTF-8 can't hold, become question marks.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), mtime=0)).decode("ascii")
