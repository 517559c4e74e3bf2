"""TransformerLens's TransformerBridge around our models.

Each of its hook points is an edit of one of our taps, so the forward pass is `Transformer.run`, as everywhere. The
adapter is found by the entry point `transformer_lens.architectures`. Needs the extra `lens`.
"""

# The extra is not among those of the tests.
# pyright: reportMissingImports=false

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparse_circuits.configs import ModelConfig
from sparse_circuits.configs.models import STREAM_SITES
from sparse_circuits.errors import ConfigError, FormatError
from sparse_circuits.formats.hf_folder import ARCHITECTURE, PREFIX
from sparse_circuits.hooks import BY_HEAD
from sparse_circuits.interop.huggingface import CircuitGPTForCausalLM, CircuitGPTTokenizer
from sparse_circuits.loading import load
from sparse_circuits.model import Transformer

try:
    from transformer_lens.conversion_utils.conversion_steps import RearrangeTensorConversion
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge import ArchitectureAdapter, TransformerBridge
    from transformer_lens.model_bridge.exceptions import StopAtLayerException
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
except ImportError as error:
    raise ConfigError(f"TransformerLens needs the extra lens ({error}): pip install 'sparse-circuits[lens]'") from None

POINTS = {
    "hook_in": "resid_in",
    "attn.hook_in": "attn.act_in",
    "attn.hook_q": "attn.q",
    "attn.hook_k": "attn.k",
    "attn.hook_v": "attn.v",
    "attn.hook_z": "attn.y",
    "attn.hook_out": "attn.resid_delta",
    "hook_resid_mid": "resid_mid",
    "mlp.hook_in": "mlp.act_in",
    "mlp.hook_post": "mlp.post_act",
    "mlp.hook_out": "mlp.resid_delta",
    "hook_out": "resid_out",
}
"""The hook points of a block, and the location that each one edits."""

STREAM_ALIASES: dict[str, str | list[str]] = {"hook_resid_pre": "hook_in", "hook_resid_post": "hook_out"}
SUMMAND_ALIASES: dict[str, str | list[str]] = {"hook_attn_out": "attn.hook_out", "hook_mlp_out": "mlp.hook_out"}
"""TransformerLens adds these up to the stream, so they are there only where the stream is their sum."""


def bridge(model: Transformer | Path | str) -> TransformerBridge:
    """Open a model as a TransformerBridge.

    The bridge has modules and taps of its own, and shares the weights' memory; the model itself stays as it is.

    Args:
        model: A model, or what `sc.load` opens.

    Raises:
        FormatError: See `sc.load`.
        ConfigError: Hugging Face's class can't have such a model.
    """
    if not isinstance(model, Transformer):
        model = load(model)
    wrapped = CircuitGPTForCausalLM.wrap(_twin(model))
    tokenizer = None if model.tokenizer is None else CircuitGPTTokenizer.wrap(model.tokenizer)
    return build_bridge_from_module(wrapped, ARCHITECTURE, hf_config=wrapped.config, tokenizer=tokenizer)


class CircuitGPTAdapter(ArchitectureAdapter):
    """What TransformerLens needs to know of `CircuitGPTForCausalLM`."""

    supports_compatibility_mode = False  # folding and centring weights changes what AbsTopK keeps
    supports_hf_output_attentions = False  # no pattern is ever formed

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.component_mapping = {"embed": _Part(f"{PREFIX}token_embedding"), "blocks": _Block()}

    def prepare_model(self, hf_model: Any) -> None:
        """Take the shape from the model itself.

        Raises:
            FormatError: It is another class of the same name.
        """
        if not isinstance(hf_model, CircuitGPTForCausalLM):
            raise FormatError(f"{type(hf_model)} isn't our {ARCHITECTURE}; open the folder with `bridge(folder)`")
        config = hf_model.circuit_model.config
        vars(self.cfg).update(
            d_head=config.d_head,
            d_mlp=config.d_mlp,
            act_fn=config.activation,
            normalization_type="LN" if config.norm == "layer" else "RMS",
            final_rms=config.norm == "rms",
            positional_embedding_type="standard" if config.positions == "added" else config.positions,
            default_prepend_bos=False,
        )
        if _stream_is_a_sum(config):
            self.components["blocks"].hook_aliases = STREAM_ALIASES | SUMMAND_ALIASES

    def preprocess_weights(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Refuse to process weights.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("weights can't be folded or centred here: that changes which channels AbsTopK keeps")

    def setup_hook_compatibility(self, opened: TransformerBridge) -> None:
        """Make each hook point an edit of its tap; may be repeated."""
        model: Transformer = opened.original_model.circuit_model  # pyright: ignore
        taps = model.taps()
        for i, block in enumerate(opened.blocks):
            for name, location in POINTS.items():
                point, tap = block.get_submodule(name), taps[f"{i}.{location}"]
                if name.endswith(BY_HEAD):
                    heads = "batch pos (head d_head) -> batch pos head d_head"
                    point.enable_reshape(RearrangeTensorConversion(heads, head=model.config.n_head))
                edits = (point, block.stop) if name == "hook_in" else (point,)
                tap.edits = (*tap.edits, *(edit for edit in edits if edit not in tap.edits))


class _Part(GeneralizedComponent):
    """A part of the model that has no weights in TransformerLens's shapes."""

    def __getattr__(self, name: str) -> Any:
        """Refuse `W_Q` and its kin: TransformerLens takes zeros for some that are only absent.

        Raises:
            RuntimeError: Always, for these; of the errors that its search for hooks passes over, the one that its
                readers of weights don't.
        """
        if name.startswith(("W_", "b_")):
            raise RuntimeError(f"{name} is not offered: AbsTopK stands between the maps; see `Transformer.linears()`")
        return super().__getattr__(name)


class _Sublayer(_Part):
    """Attention or the MLP; its hook points are called by taps, not by its own forward pass."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        for point in POINTS:
            if point.startswith(f"{name}."):
                setattr(self, point.removeprefix(f"{name}."), HookPoint())

    def forward(self, *arguments: Any, **settings: Any) -> Tensor:
        """Run what it stands for."""
        return self.original_component(*arguments, **settings)  # pyright: ignore[reportOptionalCall]


class _Block(_Part):
    """A block: `Transformer.run` calls its parts one after the other."""

    is_list_item = True
    hook_aliases = STREAM_ALIASES
    _stop_at_layer_idx: int | None = None

    def __init__(self) -> None:
        super().__init__(f"{PREFIX}blocks", submodules={name: _Sublayer(name) for name in ("attn", "mlp")})
        self.hook_resid_mid = HookPoint()

    def stop(self, x: Tensor) -> Tensor:
        """End the run before this block, if TransformerLens asks for that."""
        if self._stop_at_layer_idx is not None and self.name == f"{PREFIX}blocks.{self._stop_at_layer_idx}":
            raise StopAtLayerException(x)
        return x

    @property
    def _start_at_layer_idx(self) -> None:
        """TransformerLens sets it to run the blocks from a layer on, which Hugging Face's class can't."""

    @_start_at_layer_idx.setter
    def _start_at_layer_idx(self, layer: int | None) -> None:
        if layer is not None:
            raise ConfigError("start_at_layer is not supported; `Transformer.run(x, start=2 * layer)` does that")


def _stream_is_a_sum(config: ModelConfig) -> bool:
    """Say whether the stream is token embedding plus what the sublayers write, and nothing else happens to it."""
    thinned = config.act_density is not None and any(site in config.act_sites for site in STREAM_SITES)
    return config.positions != "added" and config.residual_activation == "none" and not thinned


def _twin(model: Transformer) -> Transformer:
    """Copy the modules and share the memory of the weights."""
    shared: dict[int, Any] = {id(x): nn.Parameter(x.detach(), x.requires_grad) for x in model.parameters()}
    shared |= {id(x): x.detach() for x in model.buffers()}
    packed = [getattr(module, "packed", None) for module in model.modules()]
    shared |= {id(x): x for x in (*packed, model.tokenizer) if x is not None}
    return copy.deepcopy(model, shared)
