"""What a pruning has done so far, kept in the folder of its circuit until that is there."""

from pathlib import Path

import numpy as np
import torch

from sparse_circuits.checkpoint import load_arrays, save_arrays
from sparse_circuits.errors import OutputExistsError
from sparse_circuits.masks import LearnedMasks
from sparse_circuits.refinement import Refining

NAME = "unfinished.safetensors"
"""Name of the file."""

FORMAT, VERSION = "sparse-circuits unfinished pruning", 1


class Unfinished:
    """Learned masks, and how far their refinement has come.

    Args:
        folder: Where the circuit will lie; None keeps nothing.
        made_of: What decides the result, by name: hashes, and the command.

    Raises:
        OutputExistsError: The folder holds the beginning of another pruning.
        FormatError: Its file is damaged.
    """

    def __init__(self, folder: Path | None, made_of: dict[str, str]) -> None:
        self.path = None if folder is None else folder / NAME
        self.made_of = made_of
        self.n_missed = 0
        """How many attempts missed the target."""
        self.learned: LearnedMasks | None = None
        """The masks of the attempt under way."""
        self.refining: dict[int, Refining] = {}
        """How far each way of refining, a start and an order, has come; by its number."""
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def begin(self, learned: LearnedMasks) -> None:
        """Note new masks, which nothing was removed from yet."""
        self.learned, self.refining = learned, {}
        self._write()

    def note(self, way: int, now: Refining) -> None:
        """Note how far a way has come."""
        self.refining[way] = now
        self._write()

    def miss(self) -> None:
        """Note that the masks miss the target."""
        self.n_missed += 1
        self.learned, self.refining = None, {}
        self._write()

    def remove(self) -> None:
        """Remove the file: the circuit is there."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self.path is None:
            return
        arrays = {} if self.learned is None else {"tau": self.learned.tau.numpy()}
        for way, now in self.refining.items():
            arrays |= {f"{way}.nodes": now.nodes.numpy(), f"{way}.items": now.items.numpy()}
        header = {
            "format": FORMAT,
            "version": VERSION,
            "made_of": self.made_of,
            "n_missed": self.n_missed,
            "history": None if self.learned is None else self.learned.history,
            "orders": {way: {"stage": now.stage, "rounds": now.rounds} for way, now in self.refining.items()},
        }
        save_arrays(self.path, arrays, header)

    def _read(self, path: Path) -> None:
        header, arrays = load_arrays(path, FORMAT, VERSION)
        refuse_other(path, header["made_of"], self.made_of, what="pruning")
        self.n_missed = header["n_missed"]
        if header["history"] is not None:
            self.learned = LearnedMasks(tau=_tensor(arrays["tau"]), history=header["history"])
        self.refining = {
            int(way): Refining(nodes=_tensor(arrays[f"{way}.nodes"]), items=_tensor(arrays[f"{way}.items"]), **kept)
            for way, kept in header["orders"].items()
        }


def refuse_other(path: Path, held: dict[str, str], made_of: dict[str, str], *, what: str) -> None:
    """Refuse to go on with what was begun from something else.

    Args:
        path: The file that holds the beginning.
        held: What that was made of, by name.
        made_of: What this is made of.
        what: What was begun, for the message.

    Raises:
        OutputExistsError: They differ.
    """
    for name, made in made_of.items():
        if held.get(name) != made:
            raise OutputExistsError(
                f"{path}: the {what} begun there has another {name}; repeat it as it was, name another folder, "
                "or remove the file"
            )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())
