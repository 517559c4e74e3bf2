"""Every error that this package raises on purpose.

Catching `SparseCircuitsError` catches them all; the command line prints its message as one line.

- SparseCircuitsError
    - ConfigError: a setting is unknown, of the wrong type, out of range or without effect
    - OutputExistsError: the output folder already holds a finished result, or the beginning of another one
    - FormatError: a file is truncated, of another version, or not what it says it is
    - DownloadError: a file could not be fetched, or is not what its checksum says
    - CorpusError: the text to train on is missing, unreadable or too short
    - DivergedError: training has met too many gradients in a row that are not finite, or a loss that no model has
    - DeviceError: the device is not there, or its memory can't hold what is asked
    - TapError: no activation has this name, or this edit can't be made here
    - TaskError: a task is unknown, or too few of its pairs survive the tokenizer
    - PruneError: the target can't be reached with this model
    - WrongModelError: a circuit is opened against a model that it was not cut from
"""

import difflib
from collections.abc import Iterable


class SparseCircuitsError(Exception):
    """The root of the tree."""


class ConfigError(SparseCircuitsError):
    """A setting is unknown, of the wrong type, out of range or without effect."""


class OutputExistsError(SparseCircuitsError):
    """The output folder already holds a finished result, or the beginning of another one."""


class FormatError(SparseCircuitsError):
    """A file is truncated, of another version, or not what it says it is."""


class DownloadError(SparseCircuitsError):
    """A file could not be fetched, or is not what its checksum says."""


class CorpusError(SparseCircuitsError):
    """The text to train on is missing, unreadable or too short."""


class DivergedError(SparseCircuitsError):
    """Training has met gradients that are not finite, too many times in a row, or a loss that no model has."""


class DeviceError(SparseCircuitsError):
    """The device is not there, or its memory can't hold what is asked."""


class TapError(SparseCircuitsError):
    """No activation has this name, or this edit can't be made here."""


class TaskError(SparseCircuitsError):
    """A task is unknown, or too few of its pairs survive the tokenizer."""


class PruneError(SparseCircuitsError):
    """The target can't be reached with this model."""


class WrongModelError(SparseCircuitsError):
    """A circuit is opened against a model that it was not cut from."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End a message about an unknown name with the nearest known ones, or with all if none is near.

    Returns:
        Such as `"; did you mean d_model?"`.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"; known are {shown}"
