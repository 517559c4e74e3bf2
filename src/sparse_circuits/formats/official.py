"""Folders of the paper's release: `beeg_config.json` and `final_model.pt`."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_circuits.checkpoint import empty_model
from sparse_circuits.configs import ModelConfig
from sparse_circuits.errors import ConfigError, FormatError
from sparse_circuits.files import read_json, write_json, written_whole
from sparse_circuits.formats import release_tokenizer
from sparse_circuits.formats.mapped import open_weights
from sparse_circuits.formats.official_config import from_release, parameter_names, to_release
from sparse_circuits.model import Transformer

CONFIG_NAME = "beeg_config.json"
WEIGHTS_NAME = "final_model.pt"
NOTE_NAME = "sparse_circuits.json"
FORMAT, VERSION = "sparse-circuits model config", 1

_LAYER = re.compile(r"transformer\.h\.(\d{1,6})\.")
_DROPPED = re.compile(r"transformer\.h\.\d+\.attn\.bias")
"""Causal masks that the release's model stores where it has no fused attention; they are no parameters."""


def is_official(folder: Path) -> bool:
    """Say whether the folder has the release's layout."""
    return (folder / CONFIG_NAME).exists()


def load(folder: Path) -> Transformer:
    """Open a model of the release; it is never unpickled beyond plain tensors. A large one stays on disk, mapped.

    Raises:
        FormatError: A file is missing, truncated, or a tensor is missing or of another shape.
        ConfigError: The configuration asks for what this program does not have.
    """
    config = read_config(folder / CONFIG_NAME)
    path = folder / WEIGHTS_NAME
    return assemble(config, open_weights(path), where=str(path), config_name=CONFIG_NAME)


def save(model: Transformer, folder: Path) -> None:
    """Write a model so that the release's code opens it, with its tokenizer if it has one.

    What the release's configuration has no word for stands in `sparse_circuits.json`, which its code never reads.

    Raises:
        ConfigError: The release can't have such a model.
    """
    settings = to_release(model.config)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_NAME, settings)
    write_json(folder / NOTE_NAME, {"format": FORMAT, "version": VERSION, "config": model.config.to_json()})
    if model.tokenizer is not None:
        release_tokenizer.save(model.tokenizer, folder)
    with written_whole(folder / WEIGHTS_NAME) as temporary:
        torch.save(release_state(model), temporary)


def read_config(path: Path) -> ModelConfig:
    """Translate a `beeg_config.json`; unknown keys are named in one warning.

    Raises:
        FormatError: No such file, or it is not JSON.
        ConfigError: See `from_release`.
    """
    config = from_release(read_json(path), where=str(path))
    note = path.with_name(NOTE_NAME)
    if not note.exists():
        return config
    described = read_json(note, expect=FORMAT, version=VERSION).get("config")
    return exact_config(described, config, where=str(note), beside=path.name)


def exact_config(described: Any, config: ModelConfig, *, where: str, beside: str) -> ModelConfig:
    """Return our own description of a model that the release's configuration describes too.

    Args:
        described: The JSON of a `ModelConfig`.
        config: What the release's configuration says.
        where: The file of `described`, for messages.
        beside: The name of the release's configuration.

    Raises:
        ConfigError: The two don't agree.
    """
    if not isinstance(described, dict):
        raise ConfigError(f"{where}: has no config of a model")
    exact = ModelConfig.from_json(described, where=where)
    ours, theirs = to_release(exact), to_release(config)
    for name, value in ours.items():
        if value != theirs[name]:
            raise ConfigError(f"{where}: says {name} {value}, {beside} says {theirs[name]}; one of them was changed")
    return exact


def assemble(config: ModelConfig, state: dict[str, Tensor], *, where: str, config_name: str) -> Transformer:
    """Make a model of the release's tensors without copying those that are float32; it is in evaluation mode.

    A missing logit bias means zeros; the masks that the release stores are dropped; tensors that the configuration has
    no place for are named in one warning.

    Raises:
        FormatError: A tensor is missing, no matrix of numbers, or not of the shape that the configuration makes it.
    """
    n_layer = 1 + max((int(m[1]) for m in map(_LAYER.match, state) if m), default=-1)
    if n_layer != config.n_layer:
        raise FormatError(f"{where}: holds {n_layer} layers, {config_name} says n_layer {config.n_layer}")
    model = empty_model(config, where=where)
    names, found, addresses = parameter_names(config), {}, set()
    for ours, empty in model.state_dict().items():
        theirs = names[ours]
        if theirs not in state:
            if ours == "logit_bias":
                continue
            raise FormatError(f"{where}: has no tensor {theirs}, which {config_name} asks for")
        tensor = state[theirs]
        if tensor.shape != empty.shape:
            raise FormatError(
                f"{where}: {theirs} has shape {tuple(tensor.shape)}; {config_name} makes it {tuple(empty.shape)} "
                f"({_widths(config)})"
            )
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise FormatError(f"{where}: {theirs} holds {tensor.dtype} ({tensor.layout}), expected real numbers")
        tensor = tensor.detach().to(torch.float32).contiguous()
        if tensor.data_ptr() in addresses:  # stored once under two names, but two parameters here
            tensor = tensor.clone()
        addresses.add(tensor.data_ptr())
        found[ours] = tensor
    found.setdefault("logit_bias", torch.zeros(config.n_vocab))
    _warn_of_leftovers(config, state, set(names.values()), where, config_name)
    model.load_state_dict(found, assign=True)
    return model.eval()


def load_state(model: Transformer, state: dict[str, Tensor], *, where: str) -> None:
    """Copy the release's tensors into `model`."""
    made = assemble(model.config, state, where=where, config_name="its configuration")
    model.load_state_dict(made.state_dict())


def release_state(model: Transformer) -> dict[str, Tensor]:
    """Return a model's tensors under the release's names, sharing their memory."""
    config = model.config
    names = parameter_names(config)
    state = {names[ours]: tensor.detach().cpu() for ours, tensor in model.state_dict().items()}
    if config.positions == "none":
        state["transformer.wpe.weight"] = torch.zeros(config.n_ctx, config.d_model)
    if config.tied_unembedding:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def _warn_of_leftovers(
    config: ModelConfig, state: dict[str, Tensor], known: set[str], where: str, config_name: str
) -> None:
    known = known | ({"lm_head.weight"} if config.tied_unembedding else set())
    if config.positions == "none" and not state.get("transformer.wpe.weight", torch.zeros(1)).any():
        known.add("transformer.wpe.weight")
    left = sorted(name for name in state if name not in known and not _DROPPED.fullmatch(name))
    if left:
        shown = ", ".join(name[:80] for name in left[:6]) + (f" and {len(left) - 6} more" if len(left) > 6 else "")
        warnings.warn(f"{where}: {config_name} has no place for {shown}: ignored", stacklevel=4)


def _widths(config: ModelConfig) -> str:
    words = {"d_model": config.d_model, "n_head": config.n_head, "d_head": config.d_head, "d_mlp": config.d_mlp}
    words |= {"vocab_size": config.n_vocab, "block_size": config.n_ctx, "d_pos_emb": config.d_position}
    return ", ".join(f"{name} {value}" for name, value in words.items() if value is not None)
