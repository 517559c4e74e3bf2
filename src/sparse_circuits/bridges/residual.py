"""What a bridge needs of a model: its residual stream, taken out at one sublayer and put in at another."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparse_circuits.checkpoint import model_hash
from sparse_circuits.errors import ConfigError
from sparse_circuits.formats.hf_residual import is_hf_folder, open_hf
from sparse_circuits.layers import Norm
from sparse_circuits.loading import load
from sparse_circuits.model import Block, Transformer
from sparse_circuits.norms import gained, norm_divisor
from sparse_circuits.taps import replacing
from sparse_circuits.tokenizer import Tokenizer


@runtime_checkable
class ResidualModel(Protocol):
    """A model as bridges see it: sublayers that each read a normalised residual stream and add to it.

    Site s is the stream before sublayer s; site `n_sublayer` is the stream before the last norm.
    """

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        ...

    @property
    def n_sublayer(self) -> int:
        """Sublayers: twice the layers; there is one site more."""
        ...

    @property
    def n_ctx(self) -> int:
        """Longest context, in tokens."""
        ...

    @property
    def n_vocab(self) -> int:
        """Tokens that it has logits for."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What its tokens mean, where that is known."""
        ...

    @property
    def hash(self) -> str:
        """Hash of what it computes."""
        ...

    def embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Return the stream at site 0."""
        ...

    def run(
        self, x: Float[Tensor, "batch pos d_model"], start: int = 0, stop: int | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Run sublayers `start` to `stop`; None runs to the last."""
        ...

    def unembed(
        self, x: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos vocab"]:
        """Turn the stream at the last site into logits; tokens are those at the same positions."""
        ...

    def divisor(self, site: int, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
        """Return what the norm behind a site divides by: root mean square, or standard deviation."""
        ...

    def to_read(self, site: int, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return what of the stream the sublayer reads, times the divisor: centred under LayerNorm, times the gain."""
        ...

    def adding(self, site: int, delta: Float[Tensor, "batch pos d_model"]) -> contextlib.AbstractContextManager[None]:
        """Add to what sublayer `site` reads, behind its norm, inside a `with` block."""
        ...


class OwnModel:
    """A `Transformer` as a `ResidualModel`."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        return self.model.config.d_model

    @property
    def n_sublayer(self) -> int:
        """Sublayers."""
        return 2 * self.model.config.n_layer

    @property
    def n_ctx(self) -> int:
        """Longest context, in tokens."""
        return self.model.config.n_ctx

    @property
    def n_vocab(self) -> int:
        """Tokens that it has logits for."""
        return self.model.config.n_vocab

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What its tokens mean."""
        return self.model.tokenizer

    @property
    def hash(self) -> str:
        """The model hash."""
        return model_hash(self.model)

    def embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Return the stream at site 0."""
        return self.model.embed(tokens)

    def run(
        self, x: Float[Tensor, "batch pos d_model"], start: int = 0, stop: int | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Run sublayers."""
        return self.model.run(x, start, stop)

    def unembed(
        self, x: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos vocab"]:
        """Turn the last stream into logits."""
        return self.model.unembed(x, tokens)

    def norm(self, site: int) -> Norm:
        """Return the norm that reads the stream at a site."""
        if site == self.n_sublayer:
            return self.model.final_norm
        block = cast(Block, self.model.blocks[site // 2])
        return (block.mlp if site % 2 else block.attn).read.norm

    def divisor(self, site: int, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
        """Return what the norm behind a site divides by."""
        return norm_divisor(x, centres=self.norm(site).centres)

    def to_read(self, site: int, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the read times the divisor, the norm's bias left out."""
        norm = self.norm(site)
        return gained(x, norm.weight, centres=norm.centres)

    @contextlib.contextmanager
    def adding(self, site: int, delta: Float[Tensor, "batch pos d_model"]) -> Iterator[None]:
        """Add to a read, ahead of its AbsTopK if it has one."""
        location = read_location(site, self.n_sublayer)
        wide = F.pad(delta, (0, self.model.config.d_read - delta.shape[-1]))  # nothing to positions
        with replacing(self.model, {f"{location}.before_topk": lambda x: x + wide}):
            yield


def read_location(site: int, n_sublayer: int) -> str:
    """Name the read behind a site, such as `2.mlp.act_in` for site 5.

    Raises:
        ConfigError: Behind the last site stands the unembedding, which no node reads.
    """
    if not 0 <= site < n_sublayer:
        raise ConfigError(f"site {site} has no read with nodes; sites 0 to {n_sublayer - 1} have one")
    return f"{site // 2}.{'mlp' if site % 2 else 'attn'}.act_in"


def open_residual(path: Path | str) -> ResidualModel:
    """Open a dense model as bridges see it: a folder that `sc.load` opens, or one of transformers (extra `hf`).

    Raises:
        FormatError: Nothing there is a model, or its blocks are of another kind.
        ConfigError: It needs the extra `hf`.
    """
    return open_hf(path) if is_hf_folder(Path(path)) else OwnModel(load(path))


def as_residual(model: "Transformer | ResidualModel") -> ResidualModel:
    """Return the model as bridges see it."""
    return OwnModel(model) if isinstance(model, Transformer) else model


def frozen(model: ResidualModel) -> ResidualModel:
    """Switch off the gradients of a model's own weights, and return it in evaluation mode."""
    for module in vars(model).values():
        if isinstance(module, nn.Module):
            module.eval().requires_grad_(False)
    return model


def streams(
    model: ResidualModel, tokens: Int[Tensor, "batch pos"], sites: "tuple[int, ...] | list[int]"
) -> tuple[list[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]:
    """Return the stream at some sites, which rise, and at the last site, by one run."""
    found, site, x = [], 0, model.embed(tokens)
    for wanted in sites:
        x = model.run(x, site, wanted)
        found.append(x)
        site = wanted
    return found, model.run(x, site)


def path_of(model: "Transformer | ResidualModel | Path | str") -> str | None:
    """Return where a model lies, if that is known: the path that was given, or the folder that it was opened from."""
    folder = model.folder if isinstance(model, Transformer) else model
    return str(folder) if isinstance(folder, Path | str) else None


def run_tails(
    model: ResidualModel, starts: Mapping[int, Float[Tensor, "batch pos d_model"]]
) -> Float[Tensor, "start batch pos d_model"]:
    """Run streams that start at different sites to the last one, in as many calls as there are sublayers.

    All streams that have started go through a sublayer as one batch.

    Args:
        model: The model.
        starts: Streams by site.

    Returns:
        The stream at the last site, by start, in the order of their sites.
    """
    stream: Tensor | None = None
    for site in range(min(starts), model.n_sublayer + 1):
        if site in starts:
            stream = starts[site] if stream is None else torch.cat((stream, starts[site]))
        if site < model.n_sublayer and stream is not None:
            stream = model.run(stream, site, site + 1)
    assert stream is not None
    return stream.unflatten(0, (len(starts), -1))
