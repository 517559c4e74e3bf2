"""Dense models of the transformers library, read and written at their residual stream: GPT-2, Llama, Qwen and kin."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparse_circuits.errors import ConfigError, FormatError
from sparse_circuits.norms import gained, norm_divisor
from sparse_circuits.tokenizer import Tokenizer

CONFIG_NAME = "config.json"
TOLERANCE = 1e-3
"""How far logits may be from the library's own, relative to their spread, before a model is refused."""


OWN_TYPES = ("sparse-circuits", "circuitgpt")
"""The `model_type` of run folders and of the release's models, which `loading.load` opens."""


def is_hf_folder(folder: Path) -> bool:
    """Say whether the folder has the library's layout and a model of another kind than ours."""
    path = folder / CONFIG_NAME
    if not path.exists():
        return False
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    return kind is not None and kind not in OWN_TYPES


def open_hf(folder: Path | str) -> "HFModel":
    """Open a causal language model of a local folder; nothing is downloaded and no foreign code is run.

    Raises:
        ConfigError: The library is not installed.
        FormatError: The folder can't be opened, or its blocks are not those of GPT-2, Llama or Qwen.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise ConfigError('models of transformers need the extra `hf`: pip install "sparse-circuits[hf]"') from None
    folder = Path(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FormatError(f"{folder}: transformers can't open it ({error})") from None
    place = folder / "tokenizer.json"
    return HFModel(model.float(), Tokenizer.load(place) if place.exists() else None)


class HFModel:
    """A causal language model of transformers as a `ResidualModel` (see `bridges.residual`).

    Its own blocks are called one sublayer at a time, under a causal mask over all positions. That this gives the
    library's logits is checked when it is made.

    Args:
        model: Such as `GPT2LMHeadModel`, `LlamaForCausalLM`, `Qwen2ForCausalLM`.
        tokenizer: What its tokens mean.

    Raises:
        FormatError: Its blocks are of another kind, or attend through a window.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer | None = None) -> None:
        self.model: nn.Module = model.eval()
        self.tokenizer = tokenizer
        self.config = model.config
        kind = type(model).__name__
        if "sliding_attention" in (getattr(self.config, "layer_types", None) or []):
            raise FormatError(f"{kind}: some layers attend through a window, which bridges can't run in parts")
        body: Any = getattr(model, "transformer", None) or getattr(model, "model", None)
        self.is_gpt2 = hasattr(body, "h") and hasattr(body, "wpe")
        if not self.is_gpt2 and not hasattr(getattr(body, "layers", [None])[0], "post_attention_layernorm"):
            raise FormatError(f"{kind}: not a model like GPT-2, Llama or Qwen; bridges know no others")
        self._body: Any = body
        self._blocks = list(body.h if self.is_gpt2 else body.layers)
        self._refuse_another_forward(kind)

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        return int(self.config.hidden_size)

    @property
    def n_sublayer(self) -> int:
        """Sublayers."""
        return 2 * len(self._blocks)

    @property
    def n_ctx(self) -> int:
        """Longest context, in tokens."""
        return int(self.config.max_position_embeddings)

    @property
    def n_vocab(self) -> int:
        """Tokens that it has logits for."""
        return int(self.config.vocab_size)

    @property
    def hash(self) -> str:
        """Hash of config and weights, by the library's names."""
        config = {k: v for k, v in self.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Return the stream at site 0.

        Raises:
            ValueError: The tokens reach beyond the context.
        """
        if tokens.shape[1] > self.n_ctx:
            raise ValueError(f"{tokens.shape[1]} tokens exceed the model's context of {self.n_ctx}")
        if self.is_gpt2:
            return self._body.wte(tokens) + self._body.wpe(torch.arange(tokens.shape[1]))
        return self._body.embed_tokens(tokens)

    def run(
        self, x: Float[Tensor, "batch pos d_model"], start: int = 0, stop: int | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Run sublayers `start` to `stop`."""
        n_pos = x.shape[1]
        mask = torch.full((n_pos, n_pos), torch.finfo(x.dtype).min).triu(1)[None, None]  # (1, 1, pos, pos)
        turns = None if self.is_gpt2 else self._body.rotary_emb(x, torch.arange(n_pos)[None])
        for sublayer in range(start, self.n_sublayer if stop is None else stop):
            block, norm = self._blocks[sublayer // 2], self.norm(sublayer)
            if sublayer % 2:
                x = x + block.mlp(norm(x))
            elif self.is_gpt2:
                x = x + block.attn(norm(x), attention_mask=mask)[0]
            else:
                x = x + block.self_attn(norm(x), position_embeddings=turns, attention_mask=mask)[0]
        return x

    def unembed(
        self, x: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos vocab"]:
        """Turn the last stream into logits."""
        return self.model.lm_head(self.norm(self.n_sublayer)(x))  # pyright: ignore[reportCallIssue]

    def norm(self, site: int) -> Any:
        """Return the norm that reads the stream at a site."""
        if site == self.n_sublayer:
            return self._body.ln_f if self.is_gpt2 else self._body.norm
        block = self._blocks[site // 2]
        if self.is_gpt2:
            return block.ln_2 if site % 2 else block.ln_1
        return block.post_attention_layernorm if site % 2 else block.input_layernorm

    def divisor(self, site: int, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
        """Return what the norm behind a site divides by."""
        return norm_divisor(x, centres=self.is_gpt2)

    def to_read(self, site: int, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the read times the divisor, the norm's bias left out."""
        return gained(x, self.norm(site).weight, centres=self.is_gpt2)

    @contextlib.contextmanager
    def adding(self, site: int, delta: Float[Tensor, "batch pos d_model"]) -> Iterator[None]:
        """Add to what sublayer `site` reads, behind its norm."""
        handle = self.norm(site).register_forward_hook(lambda module, inputs, output: output + delta)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _refuse_another_forward(self, kind: str) -> None:
        n_pos = min(8, self.n_ctx)
        tokens = torch.arange(2 * n_pos).reshape(2, n_pos) % self.n_vocab
        expected = self.model(tokens).logits
        error = (self.unembed(self.run(self.embed(tokens)), tokens) - expected).abs().max()
        if not float(error) <= TOLERANCE * float(expected.std()):
            raise FormatError(
                f"{kind}: run sublayer by sublayer its logits differ by {float(error):.2g} from its own forward; its "
                "blocks are not those of GPT-2, Llama or Qwen"
            )
