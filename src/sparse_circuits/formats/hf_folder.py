"""Hugging Face folders of the release's models: `config.json` of type circuitgpt, weights, tokenizer; no code."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sparse_circuits.configs import ModelConfig
from sparse_circuits.errors import FormatError
from sparse_circuits.files import read_json, write_json, written_whole
from sparse_circuits.formats import release_tokenizer
from sparse_circuits.formats.mapped import open_weights
from sparse_circuits.formats.model_card import model_card
from sparse_circuits.formats.official import assemble, exact_config, release_state
from sparse_circuits.formats.official_config import from_release, to_release
from sparse_circuits.model import Transformer
from sparse_circuits.tokenizer import Tokenizer

CONFIG_NAME = "config.json"
MODEL_TYPE = "circuitgpt"
ARCHITECTURE = "CircuitGPTForCausalLM"
PREFIX = "circuit_model."
OURS = "sparse_circuits"
"""The key of `config.json` under which our own description of the model stands."""

WEIGHTS_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files that weights may be in, the preferred first."""

_GENERAL = frozenset(
    """
    _name_or_path add_cross_attention architectures auto_map bad_words_ids bos_token_id chunk_size_feed_forward
    decoder_start_token_id dtype eos_token_id finetuning_task hidden_size id2label intermediate_size
    is_decoder is_encoder_decoder label2id max_position_embeddings model_type num_attention_heads num_hidden_layers
    output_attentions output_hidden_states pad_token_id prefix problem_type pruned_heads return_dict sep_token_id
    task_specific_params tie_encoder_decoder tie_word_embeddings tokenizer_class torch_dtype torchscript
    transformers_version use_bfloat16 use_cache
    """.split()
) | {OURS}


def is_hf_folder(folder: Path) -> bool:
    """Say whether the folder's `config.json` is one of the release's Hugging Face models."""
    path = folder / CONFIG_NAME
    return path.exists() and read_json(path).get("model_type") == MODEL_TYPE


def load(folder: Path) -> Transformer:
    """Open such a folder; nothing in it is run. A large file of weights stays on disk, mapped.

    Raises:
        FormatError: A file is missing, truncated, or a tensor is missing or of another shape.
        ConfigError: The configuration asks for what this program does not have.
    """
    config = read_config(folder / CONFIG_NAME)
    path = weights_path(folder)
    return assemble(config, open_weights(path), where=str(path), config_name=CONFIG_NAME)


def weights_path(folder: Path) -> Path:
    """Return the file, or the index of the files, that the weights are in.

    Raises:
        FormatError: There is none.
    """
    found = next((folder / name for name in WEIGHTS_NAMES if (folder / name).exists()), None)
    if found is None:
        raise FormatError(f"{folder}: has {CONFIG_NAME} but no weights; expected one of {', '.join(WEIGHTS_NAMES)}")
    return found


def read_config(path: Path) -> ModelConfig:
    """Translate a `config.json`.

    Raises:
        FormatError: No such file, or it is not JSON.
        ConfigError: See `official_config.from_release`; or our description in it does not agree with the rest.
    """
    return config_of(read_json(path), where=str(path))


def config_of(data: dict[str, Any], *, where: str) -> ModelConfig:
    """Translate the content of a `config.json`."""
    config = from_release(data, where=where, known=_GENERAL)
    if OURS not in data:
        return config
    return exact_config(data[OURS], config, where=f"{where}: {OURS}", beside="the rest")


def settings_of(config: ModelConfig, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """Return the content of a model's `config.json`: the release's keys, the usual names, and our own description.

    Raises:
        ConfigError: The release can't have such a model.
    """
    end = None if tokenizer is None else tokenizer.end_of_text
    return {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        **to_release(config),
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "max_position_embeddings": config.n_ctx,
        "tie_word_embeddings": config.tied_unembedding,
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end,
        OURS: config.to_json(),
    }


def save(model: Transformer, folder: Path) -> None:
    """Write a folder that `interop.huggingface` and this program open, with tokenizer and model card.

    Raises:
        ConfigError: The release can't have such a model.
    """
    settings = settings_of(model.config, model.tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_NAME, settings)
    if model.tokenizer is not None:
        _save_tokenizer(model, folder)
    with written_whole(folder / "README.md") as temporary:
        temporary.write_text(model_card(model), encoding="utf-8")
    with written_whole(folder / WEIGHTS_NAMES[0]) as temporary:
        try:
            save_file(_separate(release_state(model)), temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{folder / WEIGHTS_NAMES[0]}: could not be written ({error})") from None


def _separate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what is stored under another name already; safetensors holds no tensor twice."""
    tied = {"lm_head.weight"} if state["transformer.wte.weight"] is state.get("lm_head.weight") else set()
    return {PREFIX + name: tensor.contiguous() for name, tensor in state.items() if name not in tied}


def _save_tokenizer(model: Transformer, folder: Path) -> None:
    assert model.tokenizer is not None
    model.tokenizer.save(folder / "tokenizer.json")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": model.tokenizer.end_of_text_name,
        "pad_token": model.tokenizer.end_of_text_name,
        "padding_side": "right",
        "model_max_length": model.config.n_ctx,
        "clean_up_tokenization_spaces": False,
    }
    with written_whole(folder / "tokenizer_config.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    try:
        release_tokenizer.save(model.tokenizer, folder)
    except FormatError:
        return  # tokenizer.json says it all; the release's two files are for its own code
