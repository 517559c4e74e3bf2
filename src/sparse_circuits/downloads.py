"""Fetch a released model: with progress, resumed where it broke off, checked, whole or absent."""

import base64
import contextlib
import errno
import hashlib
import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from sparse_circuits import released
from sparse_circuits.errors import DownloadError
from sparse_circuits.files import is_done, mark_done, write_json
from sparse_circuits.runlog import duration, say

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

CHUNK = 2**20
N_TRY = 4
"""How often a connection that breaks off is taken up again, as long as each try brings something."""

TIMEOUT_SECONDS = 30.0


def download(name: str, *, out: Path | None = None, mirror: str | None = None, progress: TextIO | None = None) -> Path:
    """Fetch a released model and the tokenizer; a call after one that broke off goes on from there.

    Of two calls at once for one folder the later waits for the earlier.

    Args:
        name: A released model, such as `csp_yolo2`.
        out: Its folder; its place in the cache, where `sc.load(name)` finds it, if left out.
        mirror: The address of a copy of the release; SPARSE_CIRCUITS_MIRROR or the release itself if left out.
        progress: Where to say how far it is; None is silent.

    Returns:
        The folder.

    Raises:
        FormatError: No released model is called so; the message offers the nearest names.
        DownloadError: The network or the disk failed, or a file is not what its checksum says.
    """
    name = released.resolve(name)
    base = (mirror or released.mirror()).rstrip("/")
    if Path(base).is_dir():
        base = Path(base).resolve().as_uri()
    folder = released.cache_folder() / "models" / name if out is None else out
    if is_done(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, progress):
        if is_done(folder):  # who was waited for has done it
            return folder
        for address, file in (
            (f"{base}/models/{name}/beeg_config.json", "beeg_config.json"),
            (f"{base}/tinypython/encoder.json", "encoder.json"),
            (f"{base}/tinypython/vocab.bpe", "vocab.bpe"),
            (f"{base}/models/{name}/final_model.pt", "final_model.pt"),
        ):
            fetch(address, folder / file, command=f"sparse-circuits download {name}", progress=progress)
        mark_done(folder)
    return folder


def fetch(address: str, path: Path, *, command: str, progress: TextIO | None = None) -> None:
    """Fetch one file; what came before a failure stays in `NAME.part` and is taken up by the next call.

    Args:
        address: Where it lies.
        path: Where it shall stand; it is there only when it is whole and has the checksum that the server may give.
        command: What to run to go on, for messages.
        progress: Where to say how far it is.

    Raises:
        DownloadError: See `download`.
    """
    if path.exists():
        return
    part = _Part(path)
    for _ in range(N_TRY):
        before = part.n_byte
        try:
            if _receive(address, part, progress):
                part.finish(address)
                say(progress, f"{path.name}: {size_text(path.stat().st_size)}, whole")
                return
        except urllib.error.HTTPError as error:
            raise DownloadError(f"{address}: the server answers {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DownloadError(
                    f"{part.file}: the disk is full after {size_text(part.n_byte)}; make room and run `{command}` again"
                ) from None
            if isinstance(error, OSError) and not _is_of_the_network(error):
                raise
            if part.n_byte == before:
                reason = getattr(error, "reason", None) or error
                raise DownloadError(
                    f"{address}: can't be reached ({reason}); run `{command}` where there is a network, and copy "
                    f"{path.parent} to this machine"
                ) from None
    raise DownloadError(
        f"{address}: broke off after {size_text(part.n_byte)}"
        + (f" of {size_text(part.size)}" if part.size else "")
        + f"; run `{command}` again, it goes on from there"
    )


@contextlib.contextmanager
def _alone(folder: Path, progress: TextIO | None) -> Iterator[None]:
    """Wait until nobody else fetches into a folder; without locks, as on Windows, nobody is waited for."""
    lock = folder / ".lock"
    while fcntl is not None:
        with lock.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(progress, f"{folder}: waiting for another download into it")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # the file system has none
                lock.unlink(missing_ok=True)
                break
            if not _is_open_at(file, lock):
                continue  # who held it has removed it
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return
    yield


def _is_open_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_of_the_network(error: OSError) -> bool:
    """Say whether a connection could not be made, or broke."""
    is_broken = isinstance(error, urllib.error.URLError | TimeoutError | ConnectionError | ssl.SSLError)
    return is_broken or error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)


def size_text(n_byte: int) -> str:
    """Write a number of bytes as 812 bytes, 47 kB or 1,676 MB."""
    if n_byte < 10_000:
        return f"{n_byte:,} bytes"
    return f"{n_byte / 1000:,.0f} kB" if n_byte < 10_000_000 else f"{n_byte / 1e6:,.0f} MB"


class _Part:
    """The part of a file that has come, and what the server said of the whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.with_name(path.name + ".part")
        self.note = path.with_name(path.name + ".part.json")
        self.tag: str | None = None
        self.size: int | None = None
        self.md5: str | None = None
        try:
            noted = json.loads(self.note.read_text(encoding="utf-8"))
            self.tag, self.size, self.md5 = noted["tag"], noted["size"], noted["md5"]
        except (OSError, ValueError, KeyError, TypeError):
            self.file.unlink(missing_ok=True)

    @property
    def n_byte(self) -> int:
        """Bytes that have come."""
        return self.file.stat().st_size if self.file.exists() else 0

    def begin(self, headers: http.client.HTTPMessage, size: int | None) -> None:
        """Forget what was there, and note what the server says of the whole."""
        self.file.unlink(missing_ok=True)
        self.tag, self.size = headers.get("ETag"), size
        self.md5 = headers.get("x-ms-blob-content-md5") or headers.get("Content-MD5")
        write_json(self.note, {"tag": self.tag, "size": self.size, "md5": self.md5})

    def finish(self, address: str) -> None:
        """Check the whole and give it its name.

        Raises:
            DownloadError: The checksum is another; what came is removed, because going on from it would not help.
        """
        if self.md5 is not None:
            digest = hashlib.md5(usedforsecurity=False)
            with self.file.open("rb") as file:
                while block := file.read(CHUNK):
                    digest.update(block)
            found = base64.b64encode(digest.digest()).decode()
            if found != self.md5:
                self.file.unlink()
                self.note.unlink(missing_ok=True)
                raise DownloadError(
                    f"{address}: the checksum is {found}, the server says {self.md5}; what came is removed"
                )
        self.file.touch()  # a file of no bytes is one too
        self.file.replace(self.path)
        self.note.unlink(missing_ok=True)


def _receive(address: str, part: _Part, progress: TextIO | None) -> bool:
    """Ask for what is missing and append it; return whether all has come."""
    start = part.n_byte
    if part.size is not None and start == part.size:
        return True
    if part.size is not None and start > part.size:
        part.file.unlink()  # no part of this file
        start = 0
    request = urllib.request.Request(address)
    if start and part.tag is not None:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", part.tag)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        length = answer.headers.get("Content-Length")
        if answer.status != 206:
            part.begin(answer.headers, None if length is None else int(length))
            start = 0
        _refuse_full_disk(part, start)
        meter = _Meter(part, start, progress)
        with part.file.open("ab") as file:
            while block := answer.read(CHUNK):
                file.write(block)
                meter.show(file.tell())
    return part.size is None or part.n_byte == part.size


def _refuse_full_disk(part: _Part, start: int) -> None:
    free = shutil.disk_usage(part.path.parent).free
    if part.size is not None and part.size - start > free:
        raise DownloadError(
            f"{part.path}: needs {size_text(part.size - start)} more, the disk has {size_text(free)} left"
        )


class _Meter:
    """Says how far a file is, at most once a second."""

    def __init__(self, part: _Part, start: int, stream: TextIO | None) -> None:
        self.part, self.start, self.stream = part, start, stream
        self.began = self.shown = time.monotonic()

    def show(self, n_byte: int) -> None:
        """Say that so many bytes are there."""
        now = time.monotonic()
        if self.stream is None or now - self.shown < 1:
            return
        self.shown = now
        rate = (n_byte - self.start) / (now - self.began)
        line = f"{self.part.path.name}: {size_text(n_byte)}"
        if self.part.size is not None:
            left = duration((self.part.size - n_byte) / max(rate, 1))
            line += f" of {size_text(self.part.size)}, {size_text(int(rate))} a second, {left} left"
        say(self.stream, line)
