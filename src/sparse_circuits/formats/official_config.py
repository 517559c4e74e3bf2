"""The release's configuration and tensor names, there and back; Hugging Face folders of its models use them too."""

import warnings
from collections.abc import Iterable
from typing import Any

from sparse_circuits.configs import ModelConfig
from sparse_circuits.errors import ConfigError

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

DEFAULT_SITES = "attn_in,attn_out,mlp_in,mlp_out"
"""Where the release's AbsTopK acts if its configuration doesn't say."""

IGNORED = frozenset(
    """
    afrac_approx afrac_ste afrac_ste_only_non_neurons debug_exact_topk debug_nans dropout dropout_cat_pos_emb
    enable_fp8_linear enable_sparse_kernels expansion_factor expansion_factor_mlp flash grad_checkpointing
    ignore_dw_grad mup_width_multiplier pfrac rtopk sparse_matmul_impl tokenizer_name
    """.split()
)
"""Keys of published configurations that change how a model was trained or run, not what it computes."""

EXPECTED_OFF = ("mup", "scale_invariance", "bigram_table_rank", "unembed_rank")
"""Keys that published configurations carry and the published code does not know; set, they are worth a warning."""

_FLAGS = {"rms_norm": False, "bias": True, "ln_bias": True, "tied_unembed": True, "sink": False}
_READ = frozenset(
    """
    block_size vocab_size n_layer n_head d_head d_model n_embd residual_activation_type activation_type afrac
    afrac_loctypes d_mlp n_mlp enable_bigram_table learnable_bigram_table d_pos_emb
    sinusoidal_cat_pos_emb use_tied_aux_matrix
    """.split()
) | frozenset(_FLAGS)


def from_release(data: dict[str, Any], *, where: str, known: Iterable[str] = ()) -> ModelConfig:
    """Translate the release's configuration; unknown keys are named in one warning.

    Args:
        data: Its keys and values.
        where: The file, for messages.
        known: Further keys that mean nothing here.

    Raises:
        ConfigError: A key is missing or of the wrong type, or asks for what this program does not have.
    """
    _warn_of_keys(data, where, known)
    if data.get("use_tied_aux_matrix"):
        raise ConfigError(f"{where}: use_tied_aux_matrix is set; models with an auxiliary matrix can't be read")
    key = _Keys(data, where)
    flags = {name: key.flag(name, default) for name, default in _FLAGS.items()}
    width = key.count("d_model", "n_embd")
    n_head = key.count("n_head")
    d_position = None if data.get("d_pos_emb") is None else key.count("d_pos_emb")
    bigram: Any = "none"
    if key.flag("enable_bigram_table", False):
        bigram = "learned" if key.flag("learnable_bigram_table", False) else "fixed"
    positions: Any = "added"
    if d_position is not None:
        positions = "sinusoidal" if key.flag("sinusoidal_cat_pos_emb", False) else "concatenated"
    try:
        return ModelConfig(
            n_vocab=key.count("vocab_size"),
            n_ctx=key.count("block_size"),
            n_layer=key.count("n_layer"),
            d_model=width,
            n_head=n_head,
            d_head=key.count("d_head") if data.get("d_head") else max(width // n_head, 1),
            d_mlp=key.count("d_mlp", "n_mlp") if data.get("d_mlp") or data.get("n_mlp") else 4 * width,
            activation=key.choice("activation_type", ("gelu", "relu"), "gelu"),
            norm="rms" if flags["rms_norm"] else "layer",
            norm_bias=flags["ln_bias"] and not flags["rms_norm"],
            linear_bias=flags["bias"],
            act_density=key.share("afrac"),
            act_sites=_sites(data.get("afrac_loctypes", DEFAULT_SITES), where),
            attention_sink=flags["sink"],
            tied_unembedding=flags["tied_unembed"],
            bigram=bigram,
            bigram_trains_last_row=bigram != "learned",
            positions=positions,
            d_position=d_position,
            residual_activation="relu"
            if key.choice("residual_activation_type", ("identity", "relu"), "identity") == "relu"
            else "none",
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where not in str(error) else str(error)) from None


def to_release(config: ModelConfig) -> dict[str, Any]:
    """Return the release's configuration of a model.

    A model without positions gets a table of zeros that is added, which computes the same.

    Raises:
        ConfigError: The release can't have such a model.
    """
    if config.d_model % config.n_head:
        raise ConfigError(
            f"d_model {config.d_model} is no multiple of n_head {config.n_head}; the release refuses that"
        )
    theirs = {ours: name for name, ours in SITES.items()}
    return {
        "block_size": config.n_ctx,
        "vocab_size": config.n_vocab,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "d_head": config.d_head,
        "d_model": config.d_model,
        "dropout": 0.0,
        "bias": config.linear_bias,
        "ln_bias": config.norm_bias or config.norm == "rms",
        "rms_norm": config.norm == "rms",
        "residual_activation_type": "relu" if config.residual_activation == "relu" else "identity",
        "activation_type": config.activation,
        "afrac": config.act_density,
        "afrac_loctypes": ",".join(theirs[site] for site in config.act_sites),
        "tied_unembed": config.tied_unembedding,
        "d_mlp": config.d_mlp,
        "enable_bigram_table": config.bigram != "none",
        "learnable_bigram_table": config.bigram == "learned",
        "d_pos_emb": config.d_position,
        "sinusoidal_cat_pos_emb": config.positions == "sinusoidal",
        "flash": True,
        "sink": config.attention_sink,
    }


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


class _Keys:
    """Reads typed values, and says which key of which file is wrong."""

    def __init__(self, data: dict[str, Any], where: str) -> None:
        self.data, self.where = data, where

    def count(self, *names: str) -> int:
        """Return the first of these keys that is set: a whole number from 1 on."""
        name = next((name for name in names if self.data.get(name) is not None), None)
        if name is None:
            raise ConfigError(f"{self.where}: has no {names[0]}")
        value = self.data[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise ConfigError(f"{self.where}: {name} is {_short(value)}, expected a whole number from 1 to 2^31")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return a Boolean; null is the default."""
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {name} is {_short(value)}, expected true or false")
        return value

    def share(self, name: str) -> float | None:
        """Return a number or None; the model's settings check its range."""
        value = self.data.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(f"{self.where}: {name} is {_short(value)}, expected a number or null")
        return value

    def choice(self, name: str, options: tuple[str, ...], default: str) -> Any:
        """Return one of some words."""
        value = self.data.get(name, default)
        if value not in options:
            raise ConfigError(f"{self.where}: {name} is {_short(value)}, expected {' or '.join(options)}")
        return value


def _warn_of_keys(data: dict[str, Any], where: str, known: Iterable[str]) -> None:
    unknown = sorted(set(data) - IGNORED - _READ - set(EXPECTED_OFF) - set(known))
    if unknown:
        warnings.warn(f"{where}: unknown keys ignored: {_short(', '.join(unknown), 400)}", stacklevel=3)
    on = [name for name in EXPECTED_OFF if data.get(name)]
    if on:
        warnings.warn(
            f"{where}: the release's code has no {', '.join(on)}, nor has this program: ignored", stacklevel=3
        )


def _sites(names: Any, where: str) -> tuple[str, ...]:
    if not isinstance(names, str):
        raise ConfigError(f"{where}: afrac_loctypes is {_short(names)}, expected names joined by commas")
    sites = []
    for name in filter(None, names.split(",")):
        if name not in SITES:
            raise ConfigError(f"{where}: afrac_loctypes names {_short(name)}, expected some of {', '.join(SITES)}")
        sites.append(SITES[name])
    return tuple(sites)


def _short(value: Any, limit: int = 60) -> str:
    text = value if limit > 60 else repr(value)
    return text if len(text) <= limit else text[:limit] + "…"
