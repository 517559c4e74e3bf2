"""The live page's server: loopback only, one token a start, nothing served but the page and its questions."""

import json
import secrets
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_circuits.circuit import Circuit
from sparse_circuits.errors import ConfigError, FormatError, SparseCircuitsError
from sparse_circuits.viewer.live import Session
from sparse_circuits.viewer.notes import NotesChangedError, read_notes
from sparse_circuits.viewer.page import page

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
"""The only address that is listened on."""

MOST_BYTES = 1_000_000
"""Largest body of a question."""

Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""From what a question says to what is answered."""

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'"
)
"""As a page from disk, but it may ask its own server."""


def serve(
    folder: Path | str,
    view: dict[str, Any],
    *,
    port: int = 0,
    circuit: Circuit | None = None,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a circuit's page with the model behind it, until interrupted.

    Args:
        folder: The circuit's.
        view: Its view-model.
        port: Where to listen on loopback; 0 takes a free one.
        circuit: The circuit, if it is open already.
        on_ready: Called with the address to open, the token in it.

    Raises:
        ConfigError: The extra `live` is not installed, or the port is taken.
    """
    try:
        import uvicorn
    except ImportError:
        raise ConfigError("view --live needs starlette and uvicorn: pip install sparse-circuits[live]") from None
    import socket

    session = Session(circuit or Circuit.load(folder), Path(folder))
    token = secrets.token_urlsafe(24)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise ConfigError(f"port {port} can't be listened on ({error.strerror}); name another") from None
    port = listening.getsockname()[1]
    config = uvicorn.Config(make_app(session, view, token=token, port=port), log_level="warning", access_log=False)
    on_ready(f"http://{HOST}:{port}/?token={token}")
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()


def make_app(session: Session, view: dict[str, Any], *, token: str, port: int) -> "Starlette":
    """Return the application: the page under `/`, questions under `/api/`, nothing else.

    Every request must name this host and port, come from this page if it says where from, and know the token.

    Args:
        session: Answers the questions.
        view: What the page shows.
        token: What must be known, in the address of the page and in `X-Token` of a question.
        port: Where it listens.

    Raises:
        ConfigError: The extra `live` is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.responses import HTMLResponse, Response
        from starlette.routing import Route
    except ImportError:
        raise ConfigError("view --live needs starlette and uvicorn: pip install sparse-circuits[live]") from None
    guard = Guard(token, port)

    async def front(request: "Request") -> Response:
        why = guard.refusal(request, request.query_params.get("token", ""))
        if why is not None:
            return why
        shown = view | {"notes": read_notes(session.folder)}
        headers = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(page(shown, token=token, policy=POLICY), headers=headers)

    def question(answer: Answer) -> Callable[["Request"], Any]:
        async def endpoint(request: "Request") -> Response:
            why = guard.refusal(request, request.headers.get("x-token", ""))
            return await _answered(request, answer, session) if why is None else why

        return endpoint

    return Starlette(
        routes=[
            Route("/", front),
            Route("/api/run", question(session.run), methods=["POST"]),
            Route("/api/explain", question(session.explain), methods=["POST"]),
            Route("/api/predicate", question(session.predicate), methods=["POST"]),
            Route("/api/notes", question(lambda _: session.notes()), methods=["GET"]),
            Route("/api/notes", question(session.keep_notes), methods=["PUT"]),
        ]
    )


class Guard:
    """Says who is answered: this host and port, this page, and who knows the token."""

    def __init__(self, token: str, port: int) -> None:
        self.token, self.hosts = token, {f"{HOST}:{port}", f"localhost:{port}"}

    def refusal(self, request: "Request", given: str) -> "Response | None":
        """Return why a request is turned away; None if it is answered."""
        from starlette.responses import JSONResponse

        if request.headers.get("host", "") not in self.hosts:
            return JSONResponse({"error": "this server answers to its own address alone"}, 421)
        origin = request.headers.get("origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.hosts}:
            return JSONResponse({"error": "this server answers its own page alone"}, 403)
        if not secrets.compare_digest(given.encode(), self.token.encode()):
            return JSONResponse({"error": "the token is missing or wrong; open the address that was printed"}, 403)
        return None


async def _answered(request: "Request", answer: Answer, session: Session) -> "Response":
    """Answer one question, or say in one line why not; whatever goes wrong, the server goes on."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    try:
        asked = {} if request.method == "GET" else _parsed(await _body(request))
        return JSONResponse(await run_in_threadpool(answer, asked))
    except NotesChangedError as error:
        theirs = session.notes()
        return JSONResponse({"error": str(error), "conflict": theirs["notes"], "revision": theirs["revision"]}, 409)
    except TooLargeError as error:
        return JSONResponse({"error": str(error)}, 413)
    except SparseCircuitsError as error:
        return JSONResponse({"error": str(error)}, 400)
    except Exception as error:
        sys.stderr.write(traceback.format_exc())
        return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)


class TooLargeError(FormatError):
    """A question's body is over the limit."""


async def _body(request: "Request") -> bytes:
    """Read a body, and stop where it gets too large."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise TooLargeError(f"the question has more than {MOST_BYTES:,} bytes")
        parts.append(part)
    return b"".join(parts)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FormatError(f"the question is not JSON ({error})") from None
    if not isinstance(asked, dict):
        raise FormatError(f"the question is a {type(asked).__name__}, expected an object")
    return asked
