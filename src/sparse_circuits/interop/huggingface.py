"""Hugging Face's classes around our models: `AutoConfig`, `AutoModelForCausalLM` and `AutoTokenizer` open them.

The forward pass is `Transformer.run`, as everywhere; nothing is computed a second way. Needs the extra `hf`.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import tokenizers
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from sparse_circuits.configs import ModelConfig
from sparse_circuits.errors import ConfigError, FormatError
from sparse_circuits.formats import hf_folder, release_tokenizer
from sparse_circuits.loading import load
from sparse_circuits.model import LayerCache, Transformer
from sparse_circuits.taps import reading
from sparse_circuits.tokenizer import Tokenizer

try:
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationMixin
    from transformers.modeling_outputs import CausalLMOutputWithPast
except ImportError as error:
    raise ConfigError(
        f"Hugging Face's classes need the extra hf ({error}): pip install 'sparse-circuits[hf]'"
    ) from None

RUN_TYPE = "sparse-circuits"
"""The `model_type` of run folders."""

_CACHE = next(
    name
    for name in ("cache", "past_key_values")
    if name in {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
)
"""What this version of transformers calls the cache."""


class CircuitGPTConfig(transformers.PreTrainedConfig):
    """The content of a Hugging Face folder's `config.json`."""

    model_type = hf_folder.MODEL_TYPE
    keys_to_ignore_at_inference: ClassVar[list[str]] = [_CACHE]  # pyright: ignore
    attribute_map: ClassVar[dict[str, str]] = {  # pyright: ignore
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "block_size",
    }

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if (
            hf_folder.OURS not in settings and "n_layer" not in settings
        ):  # Hugging Face makes empty ones to compare with
            vars(self).update(n_layer=1, n_head=1, d_model=1, block_size=1, vocab_size=1)

    def model_config(self) -> ModelConfig:
        """Return the model's shape as ours."""
        return hf_folder.config_of(self.to_dict(), where="config.json")


class RunConfig(CircuitGPTConfig):
    """What Hugging Face sees in the `config.json` of a run folder."""

    model_type = RUN_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Take the model's settings out of a run's."""
        if "train" in config_dict:
            described = ModelConfig.from_json(config_dict["train"]["model"], where="config.json", prefix="train.model.")
            config_dict = hf_folder.settings_of(described) | {
                "model_type": RUN_TYPE,
                "eos_token_id": described.n_vocab - 1,
            }
        return super().from_dict(config_dict, **kwargs)


class CircuitGPTForCausalLM(transformers.PreTrainedModel, GenerationMixin):
    """Our model with Hugging Face's interface; `circuit_model` is the `Transformer` itself.

    Batches are padded on the right, or not at all: a mask that hides tokens at the left is refused.
    """

    config_class = CircuitGPTConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_cache_class = True

    def __init__(self, config: CircuitGPTConfig, model: Transformer | None = None) -> None:
        super().__init__(config)
        self.circuit_model = Transformer(config.model_config()) if model is None else model

    def _init_weights(self, module: Any) -> None:
        """Leave the weights as they are: they are never made here."""

    @classmethod
    def wrap(cls, model: Transformer) -> Self:
        """Put a model that is open already into Hugging Face's class."""
        return cls(CircuitGPTConfig.from_dict(hf_folder.settings_of(model.config, model.tokenizer)), model).eval()

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | Path, *_: Any, **settings: Any
    ) -> Any:
        """Open any folder that `sc.load` opens, or a repository of the Hub.

        Args:
            pretrained_model_name_or_path: Folder, released name, or the Hub's `owner/name`.
            settings: Of Hugging Face: `dtype` and `device_map` (one device) are followed; `revision`, `cache_dir`,
                `token`, `local_files_only` and `subfolder` go to the Hub.

        Raises:
            FormatError: See `sc.load`.
        """
        folder = _fetched(pretrained_model_name_or_path, settings)
        device = settings.get("device_map") or "cpu"
        if isinstance(device, dict):
            device = next(iter(device.values()))
        opened = cls.wrap(load(folder, device="cpu" if device == "auto" else str(device)))
        dtype = settings.get("dtype", settings.get("torch_dtype"))
        if isinstance(dtype, str):
            dtype = None if dtype == "auto" else getattr(torch, dtype)
        if dtype is not None:
            opened.to(dtype)
        return (
            (opened, {"missing_keys": set(), "unexpected_keys": set()})
            if settings.get("output_loading_info")
            else opened
        )

    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> None:  # pyright: ignore
        """Write a Hugging Face folder with tokenizer and model card; see docs/formats.md."""
        folder = Path(save_directory)
        hf_folder.save(self.circuit_model, folder)
        if settings.get("push_to_hub"):
            self._upload(folder, settings.get("repo_id") or folder.name, settings)

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:  # pyright: ignore
        """Upload the folder that `save_pretrained` writes, our model card included, and return the commit's address.

        Args:
            repo_id: The Hub's `owner/name`; it is made if it is not there.
            settings: `private`, `token`, `revision`, `commit_message`, `create_pr`.
        """
        with tempfile.TemporaryDirectory() as folder:
            hf_folder.save(self.circuit_model, Path(folder))
            return self._upload(Path(folder), repo_id, settings)

    def _upload(self, folder: Path, repo_id: str, settings: dict[str, Any]) -> str:
        from huggingface_hub import HfApi

        api = HfApi(token=settings.get("token"))
        name = api.create_repo(repo_id, private=settings.get("private"), exist_ok=True).repo_id
        chosen = {key: settings[key] for key in ("revision", "commit_message", "create_pr") if key in settings}
        return str(api.upload_folder(repo_id=name, folder_path=folder, **chosen))

    def get_input_embeddings(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the token embedding."""
        return self.circuit_model.token_embedding

    def get_output_embeddings(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the unembedding."""
        tied = self.circuit_model.config.tied_unembedding
        return self.circuit_model.token_embedding if tied else self.circuit_model.unembedding

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        labels: Int[Tensor, "batch pos"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Return logits, and what else is asked for.

        Args:
            input_ids: Tokens; with a cache, those after the cached ones.
            attention_mask: (batch, cached and new pos), 0 for padding, which may only stand at the right.
            cache: What an earlier call returned; `past_key_values` is its older name.
            past_key_values: See `cache`.
            labels: Tokens to predict; position t + 1 is scored against the logits after t, −100 is left out.
            use_cache: Return a cache.
            output_hidden_states: Return the residual stream: n_layer + 1 tensors (batch, pos, d_model), before each
                block and after the last, before the final norm. Sites 0, 2, … of `Transformer.run`.
            logits_to_keep: How many of the last positions to give logits for; 0 is all.
            return_dict: False gives a tuple.

        Raises:
            ValueError: The mask hides tokens at the left, or the tokens reach beyond the context.
        """
        model, cache = self.circuit_model, cache if cache is not None else past_key_values
        if attention_mask is not None:
            _refuse_left_padding(attention_mask)
        if cache is None and use_cache and not self.training:
            cache = DynamicCache()
        layers = (
            None if cache is None else [_CachedLayer(cache, i, model.config.n_head) for i in range(len(model.blocks))]
        )
        sites = [f"{i}.resid_in" for i in range(model.config.n_layer)] if output_hidden_states else ["final_resid"]
        with reading(model, *sites) as seen:
            offset = 0 if layers is None else layers[0].n_pos
            x = model.run(model.embed(input_ids, offset=offset), cache=cast("list[LayerCache] | None", layers))
        kept = slice(-logits_to_keep if logits_to_keep else None, None)
        logits = model.unembed(x[:, kept], input_ids[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, kept][:, 1:].flatten())
        hidden = (*(seen[site] for site in sites), x) if output_hidden_states else None
        output = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=hidden, **{_CACHE: cache})  # pyright: ignore
        return output.to_tuple() if return_dict is False else output


class CircuitGPTTokenizer(transformers.PreTrainedTokenizerFast):
    """Hugging Face's fast tokenizer; it opens the release's `encoder.json` and `vocab.bpe` where nothing else is."""

    @classmethod
    def wrap(cls, tokenizer: Tokenizer) -> Self:
        """Put a tokenizer that is open already into Hugging Face's class."""
        bpe, end = tokenizers.Tokenizer.from_str(tokenizer.to_json()), tokenizer.end_of_text_name
        return cls(tokenizer_object=bpe, eos_token=end, pad_token=end, padding_side="right")

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | Path, *arguments: Any, **settings: Any
    ) -> Any:
        """Open the tokenizer of a folder or of a repository of the Hub."""
        folder = Path(_fetched(pretrained_model_name_or_path, settings))
        if (folder / "tokenizer.json").exists() or not release_tokenizer.is_there(folder):
            return super().from_pretrained(folder, *arguments, **settings)
        return cls.wrap(release_tokenizer.load(folder))


class _CachedLayer:
    """One layer's part of a Hugging Face cache, with the interface of our `LayerCache`."""

    def __init__(self, cache: Any, layer: int, n_head: int) -> None:
        self.cache, self.layer, self.n_head = cache, layer, n_head

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions and return all, each (batch, pos, d_attn)."""
        k, v = (x.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for x in (k, v))  # (batch, head, pos, d_head)
        k, v = self.cache.update(k, v, self.layer)
        return k.transpose(1, 2).flatten(2), v.transpose(1, 2).flatten(2)

    @property
    def n_pos(self) -> int:
        """Positions stored."""
        return int(self.cache.get_seq_length(self.layer))


def register() -> None:
    """Make `AutoConfig`, `AutoModelForCausalLM` and `AutoTokenizer` open our folders and theirs; may be repeated."""
    for config in (CircuitGPTConfig, RunConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoTokenizer.register(config, fast_tokenizer_class=CircuitGPTTokenizer, exist_ok=True)
    for config in (CircuitGPTConfig, RunConfig):
        CircuitGPTForCausalLM.config_class = config  # registering asks for agreement, with each in turn
        AutoModelForCausalLM.register(config, CircuitGPTForCausalLM, exist_ok=True)
    CircuitGPTForCausalLM.config_class = CircuitGPTConfig


def _fetched(name: str | Path, settings: dict[str, Any]) -> Path | str:
    """Return the folder of a model, fetched from the Hub if it is neither here nor a released name."""
    if Path(name).exists() or "/" not in str(name):
        return name
    from huggingface_hub import snapshot_download

    chosen = {key: settings[key] for key in ("revision", "cache_dir", "token", "local_files_only") if settings.get(key)}
    try:
        folder = Path(snapshot_download(str(name), **chosen))
    except Exception as error:  # the Hub's client raises many kinds, of several packages
        raise FormatError(f"{name}: neither a folder here nor to be had from the Hub ({error})") from None
    return folder / settings["subfolder"] if settings.get("subfolder") else folder


def _refuse_left_padding(mask: Tensor) -> None:
    if mask.ndim == 2 and bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise ValueError("the attention mask hides tokens before others; pad on the right, or group prompts by length")
