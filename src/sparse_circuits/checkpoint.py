"""The run folder: configuration, tokenizer, and checkpoints that are whole or absent."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sparse_circuits.configs import ModelConfig
from sparse_circuits.errors import FormatError
from sparse_circuits.files import is_done, mark_done, sha256_of_json, written_whole
from sparse_circuits.model import Transformer
from sparse_circuits.tokenizer import Tokenizer

FORMAT, VERSION = "sparse-circuits model", 1
MODEL_NAME, STATE_NAME = "model.safetensors", "state.safetensors"
N_KEPT = 2
"""Checkpoints that stay: the newest, and one to fall back on."""


def model_hash(model: Transformer) -> str:
    """Hash what a model computes: its config and, by tensor name, shape, places and values of nonzeros.

    However the weights are stored, the hash is the same. A field that is added to the config later must be left out
    here while it has the value that all models had before.
    """
    config = model.config.to_json()
    del config["bigram_trains_last_row"]  # matters in training alone
    digest = hashlib.sha256(sha256_of_json(config).encode())
    for name, (shape, places, values) in sorted(_nonzeros(model).items()):
        digest.update(f"{name}{shape}".encode())
        digest.update(places.astype("<i8").tobytes())
        digest.update(values.astype("<f4").tobytes())
    return digest.hexdigest()


def _nonzeros(model: Transformer) -> dict[str, tuple[tuple[int, ...], np.ndarray, np.ndarray]]:
    """Return shape, flat places and values of each tensor's nonzeros, packed ones included."""
    found = {}
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().cpu().float().flatten().numpy()
        places = np.flatnonzero(flat)
        found[name] = (tuple(tensor.shape), places, flat[places])
    for name, module in model.named_modules():
        packed = getattr(module, "packed", None)
        if packed is not None:
            packed = packed.mapped(Tensor.cpu)
            places = (packed.indices() * packed.shape[1] + packed.columns.long()).numpy()
            found[f"{name}.weight"] = (packed.shape, places, packed.values.float().numpy())
    return found


def save_model(model: Transformer, path: Path, *, weights: Literal["packed", "plain"] = "packed") -> None:
    """Write a model as safetensors, its config in the header.

    Packed, a matrix that is mostly zero becomes three arrays: `NAME.values`, `NAME.columns` (uint8, uint16 or uint32,
    whichever is wide enough) and `NAME.offsets` (where each row starts, and the end).
    """
    if any(getattr(module, "packed", None) is not None for module in model.modules()):
        raise ValueError("a packed model is not saved again: copy the file that it was loaded from")
    arrays = {}
    for name, tensor in model.state_dict().items():
        array = tensor.detach().cpu().numpy()
        if weights == "packed" and array.ndim == 2 and 2 * np.count_nonzero(array) < array.size:
            arrays |= {f"{name}.{part}": data for part, data in pack(array).items()}
        else:
            arrays[name] = np.ascontiguousarray(array)
    header = {"format": FORMAT, "version": VERSION, "config": model.config.to_json()}
    save_arrays(path, arrays, header)


def empty_model(config: ModelConfig, tokenizer: Tokenizer | None = None, *, where: str) -> Transformer:
    """Make a model whose tensors have shapes but no memory, to be filled by `load_state_dict(…, assign=True)`.

    Raises:
        FormatError: Its tensors could never be allocated; the message names `where`.
    """
    try:
        with torch.device("meta"), _WithoutInitialValues():
            return Transformer(config, tokenizer)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise FormatError(f"{where}: no model can be this large ({str(error).splitlines()[0]:.100})") from None


class _WithoutInitialValues(TorchFunctionMode):
    """Leaves out the initialisation of parameters that get their values later: on `meta` it imports half of torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the tensor as it is, if this would fill it."""
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def read_model(path: Path, tokenizer: Tokenizer | None = None) -> tuple[Transformer, dict[str, np.ndarray]]:
    """Return the empty model that a file's header describes, and the file's arrays as they are stored.

    Raises:
        FormatError: The file is missing, truncated, of another format or version, or of another number of layers.
    """
    header, arrays = load_arrays(path, FORMAT, VERSION)
    if not isinstance(header.get("config"), dict):
        raise FormatError(f"{path}: the header has no config")
    config = ModelConfig.from_json(header["config"], where=str(path))
    n_layer = len({name.split(".")[1] for name in arrays if name.startswith("blocks.")})
    if n_layer != config.n_layer:
        raise FormatError(f"{path}: holds {n_layer} layers, its config says n_layer {config.n_layer}")
    return empty_model(config, tokenizer, where=str(path)), arrays


def load_model(path: Path, tokenizer: Tokenizer | None = None) -> Transformer:
    """Read what `save_model` wrote, in evaluation mode.

    Raises:
        FormatError: The file is missing, truncated, of another format or version, or its tensors don't fit its config.
    """
    model, arrays = read_model(path, tokenizer)
    loaded = {}
    for name, tensor in model.state_dict().items():
        if f"{name}.values" in arrays:
            array = unpack(arrays, name, tuple(tensor.shape), str(path))
        elif name in arrays:
            array = arrays[name]
        else:
            raise FormatError(f"{path}: has no tensor {name}")
        if array.shape != tuple(tensor.shape):
            raise FormatError(f"{path}: {name} has shape {array.shape}, its config says {tuple(tensor.shape)}")
        check_type(array, name, str(path))
        loaded[name] = torch.from_numpy(array if array.flags.writeable else array.copy())
    model.load_state_dict(loaded, assign=True)
    return model.eval()


def check_type(array: np.ndarray, name: str, where: str) -> None:
    """Refuse weights that are not float32.

    Raises:
        FormatError: They are not.
    """
    if array.dtype != np.float32:
        raise FormatError(f"{where}: {name} holds {array.dtype}, expected float32")


def pack(array: np.ndarray) -> dict[str, np.ndarray]:
    """Return the nonzeros of a matrix row by row: values, columns, offsets."""
    rows, columns = np.nonzero(array)
    width = next(t for t in (np.uint8, np.uint16, np.uint32) if array.shape[1] <= np.iinfo(t).max + 1)
    return {
        "values": array[rows, columns],
        "columns": columns.astype(width),
        "offsets": np.searchsorted(rows, np.arange(array.shape[0] + 1)).astype(np.uint32),
    }


PARTS = ("values", "columns", "offsets")
"""What a packed matrix is stored as."""


def check_packed(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...], where: str) -> None:
    """Refuse parts that make no matrix of a shape.

    Raises:
        FormatError: A part is missing, or the parts don't fit each other or the shape.
    """
    try:
        values, columns, offsets = (arrays[f"{name}.{part}"] for part in PARTS)
    except KeyError as error:
        raise FormatError(f"{where}: has no tensor {error.args[0]}") from None
    is_whole = (
        values.ndim == columns.ndim == offsets.ndim == 1
        and {columns.dtype.kind, offsets.dtype.kind} <= {"i", "u"}
        and len(offsets) == shape[0] + 1
        and int(offsets[0]) == 0
        and len(values) == len(columns) == int(offsets[-1])
        and bool((np.diff(offsets.astype(np.int64)) >= 0).all())
        and (len(columns) == 0 or (int(columns.min()) >= 0 and int(columns.max()) < shape[1]))
    )
    if not is_whole:
        raise FormatError(f"{where}: the parts of {name} don't make a matrix of shape {shape}")


def unpack(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Return the matrix that `pack` took apart.

    Raises:
        FormatError: A part is missing, or the parts don't fit each other or the shape.
    """
    check_packed(arrays, name, shape, where)
    values, columns, offsets = (arrays[f"{name}.{part}"] for part in PARTS)
    counts = np.diff(offsets.astype(np.int64))
    array = _zeros(shape, values.dtype)
    array[np.repeat(np.arange(shape[0]), counts), columns] = values
    return array


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return zeros that take memory where they are written to, aligned as torch aligns its own."""
    n_byte = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(n_byte + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n_byte].view(dtype).reshape(shape)


def save_arrays(path: Path, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    """Write arrays with a JSON header, whole or not at all."""
    with written_whole(path) as temporary:
        try:
            save_file(arrays, temporary, metadata={"header": json.dumps(header)})
        except SafetensorError as error:
            raise OSError(f"{path}: could not be written ({error}); what stood there is untouched") from None


def load_arrays(path: Path, expect: str, version: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `save_arrays` wrote.

    Raises:
        FormatError: The file is missing, truncated, of another format or of a newer version.
    """
    if not path.exists():
        raise FormatError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("header", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: truncated or not a safetensors file ({error})") from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: its header is a {type(header).__name__}, expected an object")
    if header.get("format") != expect:
        raise FormatError(f"{path}: format is {header.get('format')!r}, expected {expect!r}")
    if not isinstance(header.get("version"), int) or header["version"] > version:
        raise FormatError(
            f"{path}: {expect} version {header.get('version')!r}; this program reads up to version {version}: "
            "update sparse-circuits"
        )
    return header, arrays


def save_checkpoint(
    run: Path,
    step: int,
    model: Transformer,
    state: dict[str, Tensor],
    *,
    weights: Literal["packed", "plain"],
    notes: dict[str, Any],
) -> Path:
    """Write `checkpoints/<step>`, point `latest` at it, and drop old ones.

    If the disk is full the previous checkpoint stays what `latest` names.

    Args:
        run: The run folder.
        step: Steps done.
        model: Weights.
        state: Optimizer state by name.
        weights: How the model is stored.
        notes: What a resume must know, such as the thread count.
    """
    folder = run / "checkpoints" / f"{step:08d}"
    if not is_done(folder):  # else a call that wrote it could not say so in `latest`
        shutil.rmtree(folder, ignore_errors=True)
        try:
            save_model(model, folder / MODEL_NAME, weights=weights)
            arrays = {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}
            save_arrays(folder / STATE_NAME, arrays, {"format": f"{FORMAT} state", "version": VERSION, **notes})
            mark_done(folder)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    with written_whole(run / "latest") as temporary:
        temporary.write_text(folder.name + "\n")
    for old in sorted((run / "checkpoints").iterdir())[:-N_KEPT]:
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, or None if there is none."""
    named = run / "latest"
    if named.exists():
        folder = run / "checkpoints" / named.read_text().strip()
        if is_done(folder):
            return folder
    whole = [f for f in sorted((run / "checkpoints").glob("*")) if is_done(f)]
    return whole[-1] if whole else None


def last_good(run: Path) -> str:
    """Say where a run that went wrong can be gone back to."""
    found = latest_checkpoint(run)
    return f"the last good checkpoint is {found}" if found else "no checkpoint was written yet"


def load_state(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a checkpoint's notes and optimizer state."""
    header, arrays = load_arrays(checkpoint / STATE_NAME, f"{FORMAT} state", VERSION)
    return header, {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
