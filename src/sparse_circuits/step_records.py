"""What training writes down of each step, read from the device now and then."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_circuits.checkpoint import last_good
from sparse_circuits.errors import DivergedError
from sparse_circuits.optimizer import Update
from sparse_circuits.runlog import RunLog

MAX_SKIPPED = 10
"""Steps in a row without a finite gradient after which training stops."""

N_UNREAD = 10
"""Steps whose numbers stay on a GPU before they are read together: reading makes the host wait."""


class StepRecords:
    """Writes one record a step; the numbers of a few steps are read together.

    Args:
        log: Where records and progress go.
        run: The run folder, whose last checkpoint is named when training stops.
        n_token: Tokens of a step.
        n_unread: Steps that may wait before their numbers are read; 1 on a CPU, where reading costs nothing.
        skipped: Steps without a finite gradient so far, in all and in a row.
    """

    def __init__(self, log: RunLog, run: Path, *, n_token: int, n_unread: int, skipped: tuple[int, int]) -> None:
        self.log, self.run, self.n_token, self.n_unread = log, run, n_token, n_unread
        self.n_skipped, self.n_in_a_row = skipped
        self._waiting: list[tuple[int, dict[str, Any], Tensor]] = []
        self._read_at = time.monotonic()

    @property
    def skipped(self) -> tuple[int, int]:
        """Steps without a finite gradient so far, in all and in a row."""
        return self.n_skipped, self.n_in_a_row

    def add(self, step: int, loss: Tensor, update: Update, **values: Any) -> None:
        """Take a step's numbers, and read all that wait if it is time.

        Args:
            step: Which step.
            loss: A scalar on the device.
            update: What the optimizer did.
            values: What else is written down; with anything measured on the host, all is read.

        Raises:
            DivergedError: As `flush`.
        """
        record = {"lr": update.lr, "matrix_density": update.matrix_density, **values}
        numbers = torch.stack((loss.detach().float(), update.grad_rms.float(), update.is_skipped))
        self._waiting.append((step, record, numbers))
        if len(self._waiting) >= self.n_unread:
            self.flush()

    def flush(self) -> None:
        """Read what waits and write it.

        Raises:
            DivergedError: No gradient was finite for ten steps in a row.
        """
        if not self._waiting:
            return
        rows = torch.stack([numbers for _, _, numbers in self._waiting]).tolist()
        now = time.monotonic()
        seconds = (now - self._read_at) / len(rows)
        self._read_at, rate = now, self.n_token / seconds
        waiting, self._waiting = self._waiting, []
        for (step, record, _), (loss, grad_rms, is_skipped) in zip(waiting, rows, strict=True):
            self.n_skipped += int(is_skipped)
            self.n_in_a_row = self.n_in_a_row + 1 if is_skipped else 0
            record |= {"loss": _finite(loss), "grad_rms": _finite(grad_rms), "token_per_second": round(rate)}
            if self.n_skipped:
                record["n_skipped"] = self.n_skipped
            self.log.write(step, **record, seconds=round(seconds, 4))
            told = f"  {self.n_skipped} skipped" if self.n_skipped else ""
            self.log.show(step, f"loss {loss:.3f}  density {record['matrix_density']:.3f}  {rate:,.0f} tokens/s{told}")
            if self.n_in_a_row >= MAX_SKIPPED:
                self.log.flush()
                self._stop(step)

    def _stop(self, step: int) -> None:
        raise DivergedError(
            f"no gradient was finite in the {MAX_SKIPPED} steps up to {step}; none was taken, and "
            f"{last_good(self.run)}: "
            "lower optimizer.lr and start in another folder"
        )


def _finite(number: float) -> float | None:
    """Return a number that JSON has, or None."""
    return number if math.isfinite(number) else None
