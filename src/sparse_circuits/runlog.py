"""What a long run tells: metrics.jsonl for later, one progress line for now."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from sparse_circuits.errors import FormatError
from sparse_circuits.files import written_whole


class RunLog:
    """Writes every record to a JSON-lines file and, at most once a second, a line to the terminal.

    Args:
        path: The file; None keeps no file.
        n_step: Steps of the whole run, for the time left.
        cut_at: Drop records of this step and later from an existing file: they will be made again.
        stream: Where progress goes; None is silent.
    """

    def __init__(self, path: Path | None, *, n_step: int, cut_at: int = 0, stream: TextIO | None = None) -> None:
        self.n_step, self.stream = n_step, stream
        self._timed_from: tuple[float, int] | None = None
        self._shown = 0.0
        self._file = None
        if path is not None:
            kept = [r for r in read_records(path) if r["step"] < cut_at] if path.exists() else []
            with written_whole(path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
            self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, **values: Any) -> None:
        """Add a record to the file."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")

    def show(self, step: int, text: str) -> None:
        """Show progress, unless the last line is less than a second old and this is not the last step.

        The time left is that of the steps after the first, which waits for what is compiled.
        """
        now, is_last = time.monotonic(), step + 1 >= self.n_step
        started, first = self._timed_from = self._timed_from or (now, step)
        if self.stream is None or (now - self._shown < 1 and not is_last):
            return
        self._shown = now
        line = f"step {step + 1:,} of {self.n_step:,}  {text}"
        if step > first:
            line += f"  {duration((now - started) / (step - first) * (self.n_step - step - 1))} left"
        if self.stream.isatty():
            self.stream.write(f"\r{line:<100}" + ("\n" if is_last else ""))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def flush(self) -> None:
        """Make what was written visible to readers."""
        if self._file is not None:
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines; a last line that was cut short is left out.

    Raises:
        FormatError: There is no such file, it can't be read, or a line is no object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: can't be read ({error})") from None
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict):
            raise FormatError(f"{path}: line {len(records) + 1} is a {type(record).__name__}, expected an object")
        records.append(record)
    return records


def duration(seconds: float) -> str:
    """Write a duration as 41 s, 3 min 20 s or 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def say(stream: TextIO | None, text: str) -> None:
    """Tell of progress in a line of its own; None is silent."""
    if stream is not None:
        stream.write(f"{text}\n")
        stream.flush()


def terminal() -> TextIO:
    """Return where progress belongs: results go to stdout, this goes to stderr."""
    return sys.stderr
