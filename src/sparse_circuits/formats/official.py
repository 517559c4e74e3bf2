"""Folders of the paper's release: `beeg_config.json` and `final_model.pt`."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_circuits.configs import ModelConfig
from sparse_circuits.errors import ConfigError, FormatError
from sparse_circuits.files import read_json
from sparse_circuits.model import Transformer

CONFIG_NAME = "beeg_config.json"
WEIGHTS_NAME = "final_model.pt"

SITES = {
    "attn_in": "attn.act_in",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_out": "attn.resid_delta",
    "mlp_in": "mlp.act_in",
    "mlp_neuron": "mlp.post_act",
    "mlp_out": "mlp.resid_delta",
    "resid_post_attn": "resid_mid",
    "resid_post_mlp": "resid_out",
}
"""The release's names of AbsTopK sites, and ours."""

IGNORED = frozenset(
    """
    afrac_approx afrac_ste afrac_ste_only_non_neurons bigram_table_rank debug_exact_topk debug_nans
    dropout dropout_cat_pos_emb enable_fp8_linear enable_sparse_kernels expansion_factor
    expansion_factor_mlp flash grad_checkpointing ignore_dw_grad mup mup_width_multiplier n_embd pfrac
    rtopk scale_invariance sparse_matmul_impl tokenizer_name unembed_rank
    """.split()
)
"""Keys of published configurations that change how a model was trained or run, not what it computes."""

_BOTH = {"rms_norm": False, "bias": True, "ln_bias": True, "tied_unembed": True, "sink": False}
_READ = frozenset(
    """
    block_size vocab_size n_layer n_head d_head d_model residual_activation_type activation_type afrac
    afrac_loctypes d_mlp n_mlp enable_bigram_table learnable_bigram_table d_pos_emb
    sinusoidal_cat_pos_emb use_tied_aux_matrix
    """.split()
) | frozenset(_BOTH)


def is_official(folder: Path) -> bool:
    """Say whether the folder has the release's layout."""
    return (folder / CONFIG_NAME).exists()


def load(folder: Path) -> Transformer:
    """Open a model of the release; it is never unpickled beyond plain tensors.

    Raises:
        FormatError: A file is missing, truncated, or a tensor is missing or of another shape.
        ConfigError: The configuration asks for what this program does not have.
    """
    config = read_config(folder / CONFIG_NAME)
    path = folder / WEIGHTS_NAME
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise FormatError(f"{path}: truncated or not a checkpoint ({str(error).splitlines()[0]})") from None
    model = Transformer(config)
    load_state(model, state, where=str(path))
    return model.eval()


def read_config(path: Path) -> ModelConfig:
    """Translate a `beeg_config.json`; unknown keys are named in one warning."""
    data = read_json(path)
    unknown = sorted(set(data) - IGNORED - _READ)
    if unknown:
        warnings.warn(f"{path}: unknown keys ignored: {', '.join(unknown)}", stacklevel=2)
    if data.get("use_tied_aux_matrix"):
        raise ConfigError(f"{path}: use_tied_aux_matrix is set; models with an auxiliary matrix can't be read")
    flags = {name: data.get(name, default) for name, default in _BOTH.items()}
    d_model, n_head = data["d_model"], data["n_head"]
    has_density = data.get("afrac") is not None
    try:
        return ModelConfig(
            n_vocab=data["vocab_size"],
            n_ctx=data["block_size"],
            n_layer=data["n_layer"],
            d_model=d_model,
            n_head=n_head,
            d_head=data.get("d_head") or d_model // n_head,
            d_mlp=data.get("d_mlp") or data.get("n_mlp") or 4 * d_model,
            activation=data.get("activation_type", "gelu"),
            norm="rms" if flags["rms_norm"] else "layer",
            norm_bias=flags["ln_bias"] and not flags["rms_norm"],
            linear_bias=flags["bias"],
            act_density=data["afrac"] if has_density else None,
            act_sites=_sites(data.get("afrac_loctypes") or "", str(path)),
            attention_sink=flags["sink"],
            tied_unembedding=flags["tied_unembed"],
            bigram=_bigram(data),
            bigram_trains_last_row=_bigram(data) != "learned",
            positions=_positions(data),
            d_position=data.get("d_pos_emb"),
            residual_activation="relu" if data.get("residual_activation_type") == "relu" else "none",
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parameter_names(config: ModelConfig) -> dict[str, str]:
    """Return the release's name of each of our tensors."""
    names = {"token_embedding.weight": "transformer.wte.weight", "logit_bias": "final_logits_bias"}
    if config.positions != "none":
        names["position_embedding.weight"] = "transformer.wpe.weight"
    if not config.tied_unembedding:
        names["unembedding.weight"] = "lm_head.weight"
    if config.bigram != "none":
        names["bigram"] = "bigram_table"
    norm = ("weight", "bias") if config.norm_bias else ("weight",)
    linear = ("weight", "bias") if config.linear_bias else ("weight",)
    modules = {"final_norm": ("transformer.ln_f", norm)}
    for i in range(config.n_layer):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        for sublayer, n in (("attn", 1), ("mlp", 2)):
            modules[f"{ours}.{sublayer}.read.norm"] = (f"{theirs}.ln_{n}", norm)
            if config.has_concatenated_positions:
                modules[f"{ours}.{sublayer}.read.position_norm"] = (f"{theirs}.ln_p{n}", norm)
        modules[f"{ours}.attn.qkv"] = (f"{theirs}.attn.c_attn", linear)
        modules[f"{ours}.attn.out"] = (f"{theirs}.attn.c_proj", linear)
        modules[f"{ours}.mlp.fc_in"] = (f"{theirs}.mlp.c_fc", linear)
        modules[f"{ours}.mlp.fc_out"] = (f"{theirs}.mlp.c_proj", linear)
        if config.attention_sink:
            names[f"{ours}.attn.sink"] = f"{theirs}.attn.attn_imp.sink_logit"
    for ours, (theirs, parts) in modules.items():
        names |= {f"{ours}.{part}": f"{theirs}.{part}" for part in parts}
    return names


def load_state(model: Transformer, state: dict[str, Tensor], *, where: str) -> None:
    """Copy the release's tensors into `model`; a missing logit bias means zeros, mask buffers are dropped."""
    names = parameter_names(model.config)
    translated = {}
    for ours, tensor in model.state_dict().items():
        theirs = names[ours]
        if theirs not in state:
            if ours == "logit_bias":
                continue
            raise FormatError(f"{where}: has no tensor {theirs}")
        if state[theirs].shape != tensor.shape:
            raise FormatError(
                f"{where}: {theirs} has shape {tuple(state[theirs].shape)}, expected {tuple(tensor.shape)}"
            )
        translated[ours] = state[theirs]
    model.load_state_dict(translated, strict=False)


def _sites(names: str, where: str) -> tuple[str, ...]:
    sites = []
    for name in filter(None, names.split(",")):
        if name not in SITES:
            raise ConfigError(f"{where}: afrac_loctypes names {name!r}, expected some of {', '.join(SITES)}")
        sites.append(SITES[name])
    return tuple(sites)


def _bigram(data: dict[str, Any]) -> Any:
    if not data.get("enable_bigram_table"):
        return "none"
    return "learned" if data.get("learnable_bigram_table") else "fixed"


def _positions(data: dict[str, Any]) -> Any:
    if data.get("d_pos_emb") is None:
        return "added"
    return "sinusoidal" if data.get("sinusoidal_cat_pos_emb") else "concatenated"
